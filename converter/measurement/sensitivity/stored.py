"""One tensor in one storage while it is made: checksums, sums, and its file in the spool."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.conversion.execution.arithmetic import Columns
from converter.conversion.execution.jobs import QuantizeJob
from converter.conversion.planning.methods import Kind
from converter.measurement.sensitivity.figures import StorageFigures
from converter.measurement.sensitivity.spool import SpoolFile
from converter.measurement.sensitivity.sums import Comparison
from converter.measurement.sensitivity.tasks import Wanted


class StoredTensor:
    """A tensor whose parts arrive row by row.

    Args:
        wanted: the storage.
        width: numbers in a row.
        spool: the folder for its file; None to keep none.

    Raises: what ``SpoolFile`` raises.
    """

    def __init__(self, wanted: Wanted, width: int, spool: Path | None) -> None:
        self.job = wanted.job
        self.storage = wanted.storage
        self.form = wanted.form
        self._columns: Columns | None = None
        if isinstance(wanted.job, QuantizeJob) and wanted.job.method.kind is Kind.COLUMNS:
            self._columns = Columns(wanted.job)
        self.comparison = Comparison(width)
        self._digests = {part: hashlib.sha256() for part in wanted.storage.parts}
        self._written = dict.fromkeys(wanted.storage.parts, 0)
        self._file: SpoolFile | None = None
        if spool is not None and wanted.layout is not None:
            self._file = SpoolFile(spool, wanted.storage, wanted.layout)

    def add(self, first: int, last: int, parts: Mapping[str, NDArray[Any]]) -> None:
        """Take the parts of the next rows.

        Args:
            first: the first row.
            last: the row after the last one.
            parts: the bytes of these rows, by part.

        Raises:
            DiskError: the disk is full.
            OutputError: the file in the spool cannot be written.
        """
        if self._columns is None:
            self._take(parts)
        else:
            self._columns.put(first, last, parts)

    def _take(self, parts: Mapping[str, NDArray[Any]]) -> None:
        for part, values in parts.items():
            data = values.reshape(-1).view(np.uint8).data
            self._digests[part].update(data)
            if self._file is not None:
                self._file.write(part, self._written[part], data)
                self._written[part] += data.nbytes

    def finish(self) -> None:
        """Put the file in the spool into its place, all rows done. Raises what ``add`` raises."""
        if self._columns is not None:
            self._take(self._columns.parts)
        module = self.storage.quantized
        if self._file is not None and module is not None:
            self._file.publish(self.comparison.noise_by_column(prod(module.shape[2:])))

    def figures(self, energy: float) -> StorageFigures:
        """What was measured, all rows done.

        Args:
            energy: the sum of the squares of the source.
        """
        return StorageFigures(
            source=self.storage.source,
            key=self.storage.key,
            bytes=self.storage.bytes,
            energy=energy,
            noise=self.comparison.noise,
            dot=self.comparison.dot,
            length=self.comparison.length,
            sha256={part: digest.hexdigest() for part, digest in self._digests.items()},
        )

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
