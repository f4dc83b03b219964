"""The numbers of a job's tensor, a piece at a time, with its adapters added, and the memory that a piece takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from converter.checkpoint.source import SourceTensor
from converter.conversion.adapters.additions import ADDED_DTYPE, Addition
from converter.conversion.execution.budget import MemoryBudget
from converter.conversion.execution.jobs import Job, KeepJob, element_bytes
from converter.conversion.kernels import fused

if TYPE_CHECKING:
    from converter.conversion.adapters.weights import NewBias, NewWeight

Bytes = NDArray[np.uint8]
#: Reads bytes of a tensor, from a first one on, so many.
Source = Callable[[SourceTensor, int, int], Bytes]


@dataclass(frozen=True)
class Pieces:
    """Pieces of one tensor, as they are rounded or quantized."""

    job: Job
    """Whose tensor."""
    source: Source
    """Reads its bytes."""
    budget: MemoryBudget | None
    """Where each piece takes its memory; None if all have theirs already."""
    bytes: int
    """Of the source in a piece, where possible."""
    adding: NewWeight | NewBias | None = None
    """What adds adapters to rows of the tensor; None to leave it as it is."""

    def share(self, size: int) -> AbstractContextManager[None]:
        """Hold the memory for a piece of so many bytes of the source while the block runs."""
        if self.budget is None:
            return nullcontext()
        return self.budget.share(size // element_bytes(self.job.tensor) * self.job.working_bytes)

    def read(self, start: int, size: int) -> Bytes:
        """Numbers of the job's dtype.

        Args:
            start: first byte of the source; that of a row, if there are adapters.
            size: bytes of the source.
        """
        data = self.source(self.job.tensor, start, size)
        if self.adding is None:
            return data
        row = self.job.tensor.entry.bytes // self.job.tensor.entry.shape[0]
        return add_adapters(self.adding, self.job.tensor, data, start // row)


def add_adapters(adding: NewWeight | NewBias, tensor: SourceTensor, data: Bytes, first: int) -> Bytes:
    """Rows of a tensor with adapters added, in float32.

    Args:
        adding: adds them.
        tensor: the tensor.
        data: the bytes of some of its rows; they may be changed.
        first: the number of the first of them.
    """
    # Imported here: it imports torch.
    from converter.conversion.kernels.sdnq import as_tensor

    added = fused.widen(data, tensor.entry.dtype).view(np.uint8)
    adding.add(as_tensor(added, ADDED_DTYPE, (-1, *tensor.entry.shape[1:])), first)
    return added


@contextmanager
def open_pieces(job: Job, source: Source, budget: MemoryBudget, piece_bytes: int) -> Iterator[Pieces]:
    """Get ready to read a job's tensor in pieces, and to add its adapters, if there are any.

    Args:
        job: whose tensor.
        source: reads its bytes.
        budget: where the memory is taken.
        piece_bytes: the most bytes of the source in a piece, where possible.

    Raises: what ``TensorReader.read`` raises, for the adapters.
    """
    if not job.fixed_bytes:
        yield Pieces(job, source, budget, piece_bytes)
        return
    # What is fixed stays until the last piece, so it is taken together with the memory for pieces: a worker that waits
    # for memory must not have any.
    left = (budget.total - job.fixed_bytes) // job.working_bytes * element_bytes(job.tensor)
    piece_bytes = max(1, min(piece_bytes, left))
    if isinstance(job, KeepJob):
        longest = max(stop - start for start, stop in job.ranges(piece_bytes))
    else:
        longest = max(last - first for first, last in job.row_runs(piece_bytes)) * job.row_bytes
    with budget.share(job.fixed_bytes + longest // element_bytes(job.tensor) * job.working_bytes):
        yield Pieces(job, source, None, piece_bytes, _start(job.addition) if job.addition else None)


def _start(addition: Addition) -> NewWeight | NewBias:
    # Imported here: it imports torch.
    from converter.conversion.adapters.weights import start

    return start(addition)
