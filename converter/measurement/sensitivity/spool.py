"""Files that hold the parts of a weight in one storage, so that a variant is put in place without quantizing again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from converter.checkpoint.layout import Layout, TensorSpec, lay_out
from converter.checkpoint.weights import WEIGHTS_SUFFIX
from converter.checkpoint.writer import SlotWriter, writing
from converter.measurement.sensitivity.parts import COLUMN_NOISE
from converter.measurement.sensitivity.storage import Storage


def spool_layout(storage: Storage) -> Layout:
    """The layout of the file of a quantized tensor: its parts, and ``column_noise``.

    Args:
        storage: of the tensor; it is not kept.
    """
    module = storage.quantized
    if module is None:
        raise ValueError(f"{storage.source} is kept; only quantized tensors have spool files")
    columns = module.shape[1] if len(module.shape) > 1 else 1
    specs = [TensorSpec(part, spec.dtype, spec.shape) for part, spec in storage.parts.items()]
    specs.append(TensorSpec(COLUMN_NOISE, "F32", (columns,)))
    stem = storage.spool_file(Path()).name.removesuffix(WEIGHTS_SUFFIX)
    return lay_out(specs, stem=f"{stem}.draft", shard_bytes=sum(spec.bytes for spec in specs) + 1)


class SpoolFile:
    """The file of one storage while it is written; it appears whole, or not at all.

    A draft that a killed run left is overwritten by the next run that wants the same storage.

    Args:
        folder: of the spool; it exists.
        storage: of a tensor that is quantized.
        layout: from ``spool_layout``.

    Raises:
        DiskError: the disk is full.
        OutputError: the folder cannot be written to.
    """

    def __init__(self, folder: Path, storage: Storage, layout: Layout) -> None:
        self._file = storage.spool_file(folder)
        self._layout = layout
        self._writer = SlotWriter(folder, layout)

    def write(self, part: str, start: int, data: memoryview) -> None:
        """Write bytes of a part.

        Args:
            part: its name.
            start: the first of the bytes, counted from the start of the part.
            data: the bytes.

        Raises:
            DiskError: the disk is full.
            OutputError: the file cannot be written.
        """
        slot = self._layout.slots[part]
        with writing(self._file):
            self._writer.write(slot.file, slot.offset + start, data)

    def publish(self, noise_by_column: NDArray[np.float32]) -> None:
        """Write ``column_noise``, force the file to the disk, and give it its name.

        Raises: what ``write`` raises.
        """
        self.write(COLUMN_NOISE, 0, noise_by_column.data)
        with writing(self._file):
            self._writer.sync()
            self._file.with_name(self._layout.files[0].name).replace(self._file)

    def close(self) -> None:
        """Close the file."""
        self._writer.close()
