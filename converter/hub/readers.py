"""Readers of tensors in a repo on the Hub, in place of those of a file on this machine."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.checkpoint.header import Header
from converter.checkpoint.reader import TensorReader
from converter.checkpoint.source import Checkpoint, SourceTensor
from converter.console import SILENT, Reporter
from converter.errors import CorruptDownload
from converter.hub.recorded_sum import CORRUPT_HINT, RecordedSum
from converter.hub.shadow import Shadow

#: Bytes between two tensors that are read and dropped at a time.
_DROPPED_BYTES = 1 << 20
#: Bytes of a tensor after which it is noted how far it is: what a connection reads again after a kill, at most, besides
#: a piece. Notes have 400 bytes.
NOTED_BYTES = 32 << 20


class RangeReader(TensorReader):
    """Reads any range of any tensor, each with a request of its own; what it reads is not compared with a checksum.

    Tensors of other files are read on this machine.

    Args:
        shadow: in which the files of the repo are.
    """

    def __init__(self, shadow: Shadow) -> None:
        super().__init__()
        self._shadow = shadow

    def read(self, tensor: SourceTensor, start: int, target: NDArray[np.uint8]) -> None:
        """Fill a buffer with bytes of a tensor.

        Raises:
            HubError: the Hub refuses, or cannot be reached.
        """
        if not tensor.file.is_relative_to(self._shadow.folder):
            super().read(tensor, start, target)
            return
        first = tensor.offset + start
        content = self._shadow.repo.read(self._shadow.path_of(tensor.file), first, first + target.nbytes)
        target[:] = np.frombuffer(content, np.uint8)


def read_by_ranges(checkpoint: Checkpoint, shadow: Shadow | None) -> Checkpoint:
    """The same checkpoint, whose tensors are read from the Hub if it is in a folder in place of a repo."""
    return checkpoint if shadow is None else replace(checkpoint, open_other=partial(RangeReader, shadow))


class StreamReader(RangeReader):
    """Reads the tensors of one file in its order, over one connection, and compares the whole file with its checksum.

    A tensor that is asked for again is read by its range.

    Args:
        shadow: in which the file is.
        header: of the file.
        saved: ``stream`` of what ``facts`` returned in an earlier run; None to begin.
        reporter: is told if the server ignores ranges.
    """

    def __init__(
        self, shadow: Shadow, header: Header, saved: Mapping[str, Any] | None = None, reporter: Reporter = SILENT
    ) -> None:
        super().__init__(shadow)
        self._header = header
        path = shadow.path_of(header.file)
        self.where = shadow.repo.where(path)
        record = shadow.repo.files[path]
        self._size = record.bytes
        offset = saved["offset"] if saved else 0
        self._sum = RecordedSum(record, saved["state"] if saved else None)
        self._stream = shadow.repo.stream(path, offset, reporter)
        self._noted = offset

    def read(self, tensor: SourceTensor, start: int, target: NDArray[np.uint8]) -> None:
        """Fill a buffer with bytes of a tensor; what is between the last ones and these is only added to the sum.

        Raises:
            CorruptDownload: the header is not the one that was examined.
            HubError: the Hub refuses, or has not sent a further byte for a while.
        """
        position = tensor.offset + start
        if position < self._stream.position:
            super().read(tensor, start, target)
            return
        self._pass(position)
        self._take(target.data)

    def facts(self) -> dict[str, Any]:
        """Where the file has been read to, as ``stream``, for another reader; empty where the sum cannot continue."""
        state = self._sum.save()
        self._noted = self._stream.position
        return {"stream": {"offset": self._noted, "state": state}} if state is not None else {}

    def facts_inside(self) -> dict[str, Any]:
        """The same, if so much has been read since the last time that it should not be read again; else empty."""
        return self.facts() if self._stream.position - self._noted >= NOTED_BYTES else {}

    def finish(self) -> None:
        """Read the rest of the file, and compare its checksum with the Hub's record.

        Raises:
            CorruptDownload: they differ.
            HubError: as for ``read``.
        """
        self._pass(self._size)
        self._sum.check(self.where)

    def close(self) -> None:
        """Close the connection."""
        self._stream.close()
        super().close()

    def _pass(self, position: int) -> None:
        if self._stream.position == 0:
            self._check_header()
        buffer = memoryview(bytearray(min(_DROPPED_BYTES, max(0, position - self._stream.position))))
        while self._stream.position < position:
            self._take(buffer[: position - self._stream.position])

    def _check_header(self) -> None:
        content = bytearray(self._header.data_start)
        self._take(memoryview(content))
        if hashlib.sha256(content).hexdigest() != self._header.sha256:
            reason = "its header is not the one that was read before"
            raise CorruptDownload(f"{self.where}: {reason}", CORRUPT_HINT)

    def _take(self, target: memoryview) -> None:
        self._stream.read_into(target)
        self._sum.update(target)
