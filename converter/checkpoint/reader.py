"""Reading tensors piece by piece, with plain reads.

A memory map counts every page of the source as memory of the process, and is many times slower on network volumes.
``preadv`` into a buffer that is used again has neither fault.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from converter.checkpoint.open_files import OpenFiles
from converter.checkpoint.source import Checkpoint, SourceTensor
from converter.errors import MalformedCheckpoint, MissingInput, lacking, reason_of


class TensorReader:
    """Reads ranges of tensors; any thread may call it. The files that were read last stay open."""

    def __init__(self) -> None:
        self._files = OpenFiles(os.O_RDONLY)

    def read(self, tensor: SourceTensor, start: int, target: NDArray[np.uint8]) -> None:
        """Fill a buffer with bytes of a tensor.

        Args:
            tensor: which one.
            start: first byte, counted from the start of the tensor.
            target: one-dimensional; its length is the number of bytes to read.

        Raises:
            MissingInput: the system cannot read the file.
            MalformedCheckpoint: the file has become shorter than its header said.
            ResourceError: too many files are open.
        """
        view = target.data
        position = tensor.offset + start
        try:
            with self._files.opened(tensor.file) as descriptor:
                while view:
                    count = os.preadv(descriptor, [view], position)
                    if count == 0:
                        reason = "became shorter while it was read"
                        raise MalformedCheckpoint(tensor.file, reason, tensor=tensor.entry.name)
                    view = view[count:]
                    position += count
        except OSError as error:
            missing = MissingInput(tensor.file, f"cannot be read: {reason_of(error)}", "Check the disk.")
            raise lacking(error, tensor.file) or missing from error

    def read_all(self, tensor: SourceTensor) -> NDArray[np.uint8]:
        """All bytes of a tensor, in a new buffer. Raises what ``read`` raises."""
        target = np.empty(tensor.entry.bytes, np.uint8)
        self.read(tensor, 0, target)
        return target

    def facts(self) -> dict[str, Any]:
        """What to note with a tensor that has just been read, so that another run can continue behind it."""
        return {}

    def facts_inside(self) -> dict[str, Any]:
        """The same inside of a tensor, if much has been read since the last note; else empty."""
        return {}

    def close(self) -> None:
        """Close all files."""
        self._files.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_reader(checkpoint: Checkpoint) -> TensorReader:
    """A reader of any tensor of a checkpoint, wherever its files are."""
    opened: TensorReader = checkpoint.open_other() if checkpoint.open_other else TensorReader()
    return opened


def ranges(total: int, step: int) -> Iterator[tuple[int, int]]:
    """Consecutive (start, stop) pairs that cover ``range(total)`` in steps."""
    return ((start, min(start + step, total)) for start in range(0, total, step))
