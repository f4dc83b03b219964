"""What the scan does with one tensor: which storages are made of it, and in which runs of rows."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

from converter.checkpoint.layout import Layout, Slot
from converter.checkpoint.reader import ranges
from converter.checkpoint.source import SourceTensor
from converter.conversion.execution.jobs import Job, KeepJob, Output, QuantizeJob, element_bytes
from converter.conversion.planning.methods import Kind, choose_method
from converter.measurement.sensitivity.integers import integer_form
from converter.measurement.sensitivity.spool import spool_layout
from converter.measurement.sensitivity.storage import Storage
from converter.measurement.sensitivity.sums import IntegerForm

#: Numbers that count as a row in tensors that no storage quantizes, whatever their shape; no more than fill a cache.
LINE = 1024
#: Bytes that one number takes while it is compared, besides what quantizing it takes: the restored number.
COMPARING_BYTES = 4
#: The kinds of methods, those that work on the most rows at a time last.
_BY_ROWS = (Kind.FUSED, Kind.ROWS, Kind.COLUMNS, Kind.WHOLE)

Runs = Iterator[tuple[int, int]]


@dataclass(frozen=True)
class Wanted:
    """One storage that is made of a tensor."""

    storage: Storage
    job: Job
    """What makes it; nothing is written to the slots of a kept tensor."""
    layout: Layout | None
    """The layout of its spool file; None if it is kept."""
    form: IntegerForm | None
    """How its integers are stored, if lensconv restores them; None if it is kept, or SDNQ restores it."""


@dataclass(frozen=True)
class Task:
    """A tensor of the source and the storages that are made of it."""

    tensor: SourceTensor
    width: int
    """Numbers in a row."""
    wanted: tuple[Wanted, ...]

    def without(self, found: Collection[tuple[str, str]]) -> Task:
        """The same task without storages whose figures are known, by tensor and ``Storage.key``."""
        left = (wanted for wanted in self.wanted if (wanted.storage.source, wanted.storage.key) not in found)
        return replace(self, wanted=tuple(left))

    @property
    def row_bytes(self) -> int:
        """Bytes of a row; the last row may be shorter."""
        return self.width * element_bytes(self.tensor)

    @property
    def least_memory(self) -> int:
        """The least memory, in bytes, with which it can be done: with the shortest runs of rows."""
        return self.memory(1)

    def memory(self, piece_bytes: int) -> int:
        """The memory, in bytes, that it takes from the first run of rows to the last; argument as for ``runs``."""
        longest = max((last - first for first, last in self.runs(piece_bytes)), default=0) * self.width
        return longest * self._working_bytes + sum(wanted.job.fixed_bytes for wanted in self.wanted)

    def piece_within(self, budget: int, piece_bytes: int) -> int:
        """The bytes of the source to take at a time, so that the memory for them is within a budget.

        Args:
            budget: bytes of memory.
            piece_bytes: the most bytes of the source.
        """
        left = budget - sum(wanted.job.fixed_bytes for wanted in self.wanted)
        return max(1, min(piece_bytes, left // self._working_bytes * element_bytes(self.tensor)))

    @property
    def _working_bytes(self) -> int:
        """Memory that one number takes, source included."""
        return max(wanted.job.working_bytes for wanted in self.wanted) + COMPARING_BYTES

    def runs(self, piece_bytes: int) -> Runs:
        """Runs of rows that are read at a time, as (first, after last), so that every storage can be made of them.

        Args:
            piece_bytes: the most bytes of the source in a run, where possible.
        """
        jobs = [wanted.job for wanted in self.wanted if isinstance(wanted.job, QuantizeJob)]
        if jobs:
            return max(jobs, key=lambda job: _BY_ROWS.index(job.method.kind)).row_runs(piece_bytes)
        rows = -(-self.tensor.entry.bytes // self.row_bytes)
        return ranges(rows, max(1, piece_bytes // self.row_bytes))

    def runs_within(self, job: Job, first: int, last: int, piece_bytes: int) -> Runs:
        """Runs of rows of which one job is done at a time, within rows that were read.

        Args:
            job: that of one storage.
            first: the first row that was read.
            last: the row after the last one.
            piece_bytes: the most bytes of the source in a run, where possible.
        """
        if isinstance(job, QuantizeJob) and (first, last) == (0, job.module.shape[0]):
            # Another storage may need all rows at a time; the caches hold fewer.
            return job.row_runs(piece_bytes)
        return iter([(first, last)])


def make_task(tensor: SourceTensor, storages: Sequence[Storage], *, use_fused: bool) -> Task:
    """Make the task of one tensor.

    Args:
        tensor: of the source.
        storages: all that are wanted of it, finished ones too: they decide what a row is.
        use_fused: whether lensconv's own kernel may be used.
    """
    shape = next((storage.quantized.shape for storage in storages if storage.quantized), None)
    distinct: Mapping[str, Storage] = {storage.key: storage for storage in storages}
    wanted = tuple(_make_wanted(tensor, storage, use_fused=use_fused) for storage in distinct.values())
    return Task(tensor, LINE if shape is None else max(1, prod(shape[1:])), wanted)


def _make_wanted(tensor: SourceTensor, storage: Storage, *, use_fused: bool) -> Wanted:
    module = storage.quantized
    if module is None:
        (spec,) = storage.parts.values()
        return Wanted(storage, KeepJob(tensor, Output(spec, Slot("", 0, spec.bytes))), None, None)
    layout = spool_layout(storage)
    outputs = {part: Output(spec, layout.slots[part]) for part, spec in storage.parts.items()}
    method = choose_method(module, storage.parts, use_fused=use_fused, rounding=storage.rounding)
    job = QuantizeJob(tensor, outputs, module, method)
    return Wanted(storage, job, layout, integer_form(job))
