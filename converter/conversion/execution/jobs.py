"""The work of a conversion: a job for each tensor of the source, and the memory that it takes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import lcm, prod
from pathlib import Path

from converter.checkpoint.dtypes import BITS
from converter.checkpoint.layout import Layout, Slot, TensorSpec, lay_out
from converter.checkpoint.reader import ranges
from converter.checkpoint.source import SourceTensor
from converter.conversion.adapters.additions import ADDED_BYTES, ADDED_DTYPE, BLOCK_ROWS, Addition
from converter.conversion.options import ConvertOptions
from converter.conversion.planning.methods import (
    OWN_KINDS,
    ROWS_WORKING_BYTES,
    WHOLE_WORKING_BYTES,
    Kind,
    Method,
    choose_method,
)
from converter.conversion.planning.plan import Plan, PlannedModule
from converter.conversion.request import Target
from converter.errors import MemoryLimitError
from converter.libraries import library_threads

#: Bytes of the source that a worker takes at a time: large enough to hide the cost of a call, small enough for a cache.
PIECE_BYTES = 4 << 20
#: The same on a device other than the CPU, where each piece costs some twenty calls and a wait.
DEVICE_PIECE_BYTES = 8 << 20
#: The most bytes that lensconv's own loops take for one number besides its source: the widened copy and the results.
OWN_WORKING_BYTES = 8
#: The same of lensconv's kernel for devices: besides the results, what torch's operations take, which on a CUDA device
#: is memory of the device; measured on the CPU.
DEVICE_WORKING_BYTES = 20
#: The number of rows decides whether SDNQ uses quantized matmul; for runs of at least so many, in multiples of it,
#: it decides as for the whole tensor (``check_quantized_matmul_is_allowed`` of SDNQ 0.2.8).
MATMUL_ROWS = 32
_WORKING_BYTES = {
    Kind.FUSED: OWN_WORKING_BYTES,
    Kind.DEVICE: DEVICE_WORKING_BYTES,
    Kind.ROWS: ROWS_WORKING_BYTES,
    Kind.WHOLE: WHOLE_WORKING_BYTES,
}
#: Memory that conversions use for pieces unless a tensor needs more, or the user says otherwise.
DEFAULT_BUDGET = 256_000_000


@dataclass(frozen=True)
class Output:
    """One tensor of the output and its slot."""

    spec: TensorSpec
    slot: Slot


@dataclass(frozen=True)
class _TensorJob:
    """A tensor of the source that becomes tensors of the output."""

    tensor: SourceTensor
    addition: Addition | None = field(default=None, kw_only=True)
    """What adapters add to it before it is rounded or quantized."""

    @property
    def dtype(self) -> str:
        """The dtype of the numbers that are rounded or quantized."""
        return self.tensor.entry.dtype if self.addition is None else ADDED_DTYPE

    @property
    def source_bytes(self) -> int:
        """Memory that one number takes before it is rounded or quantized."""
        return element_bytes(self.tensor) + (ADDED_BYTES if self.addition else 0)

    @property
    def fixed_bytes(self) -> int:
        """Memory that is taken from the first number to the last."""
        return self.addition.fixed_bytes if self.addition else 0


@dataclass(frozen=True)
class KeepJob(_TensorJob):
    """A tensor that is copied, rounded to its new dtype."""

    kept: Output

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what is made."""
        return (self.kept.spec.name,)

    @property
    def working_bytes(self) -> int:
        """Memory that one number takes while it is converted, source included."""
        return self.source_bytes + OWN_WORKING_BYTES

    @property
    def step_numbers(self) -> int:
        """Numbers that are converted together: one, or those of a row."""
        return self.addition.row_numbers if self.addition else 1

    @property
    def largest_share(self) -> int:
        """The least memory, in bytes, with which it can be converted: that of its shortest piece."""
        return self.fixed_bytes + self.step_numbers * self.working_bytes

    def ranges(self, piece_bytes: int) -> Iterator[tuple[int, int]]:
        """Pieces that are converted at a time, as (first byte, after last byte) of the source.

        Args:
            piece_bytes: the most bytes in a piece, where possible.
        """
        step = self.step_numbers * element_bytes(self.tensor)
        return ranges(self.tensor.entry.bytes, step * _in_blocks(max(1, piece_bytes // max(1, step)), self.addition))


@dataclass(frozen=True)
class QuantizeJob(_TensorJob):
    """A weight that becomes SDNQ's parts."""

    parts: Mapping[str, Output]
    """The tensors of the output, by part."""
    module: PlannedModule
    method: Method
    spooled: Path | None = None
    """A file that contains the parts already."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what is made."""
        return tuple(output.spec.name for output in self.parts.values())

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of the source."""
        return self.tensor.entry.bytes // self.module.shape[0]

    @property
    def working_bytes(self) -> int:
        """Memory that one number takes while it is converted, source included."""
        return self.source_bytes + _WORKING_BYTES[self.method.kind]

    @property
    def largest_share(self) -> int:
        """The least memory, in bytes, with which it can be converted: that of its longest run of rows."""
        rows = max(last - first for first, last in self.row_runs(1))
        return self.fixed_bytes + rows * prod(self.module.shape[1:]) * self.working_bytes

    def row_runs(self, piece_bytes: int) -> Iterator[tuple[int, int]]:
        """Runs of rows that are quantized at a time, as (first, after last).

        Args:
            piece_bytes: the most bytes of the source in a run, where possible.
        """
        rows = self.module.shape[0]
        if self.method.kind is Kind.WHOLE:
            yield 0, rows
            return
        step = 1 if self.method.kind in OWN_KINDS else lcm(MATMUL_ROWS, self.method.rows_multiple)
        step *= max(1, piece_bytes // max(1, step * self.row_bytes))
        step = _in_blocks(step, self.addition if self.method.kind in OWN_KINDS else None)
        start = 0
        while start < rows:
            stop = min(start + step, rows)
            # A last run that is too short for SDNQ's decision joins the run before it.
            if self.method.kind is Kind.ROWS and rows - stop < MATMUL_ROWS:
                stop = rows
            yield start, stop
            start = stop


Job = KeepJob | QuantizeJob


def _in_blocks(rows: int, addition: Addition | None) -> int:
    """So many rows, or fewer if they then are whole blocks, so that no block of a product is computed twice."""
    return rows - rows % BLOCK_ROWS if addition and rows > BLOCK_ROWS else rows


@dataclass(frozen=True)
class Work:
    """A plan, the slots of its tensors, and the jobs that fill them."""

    plan: Plan
    layout: Layout
    jobs: tuple[Job, ...]
    """The jobs, in the order in which their results are in the files."""

    @cached_property
    def needed_bytes(self) -> int:
        """The least memory with which every job can run."""
        shares = (max(job.largest_share, job.addition.check_bytes if job.addition else 0) for job in self.jobs)
        return max(shares, default=0)

    @property
    def in_blocks(self) -> bool:
        """Whether products of adapters are computed in blocks, with one thread of torch; False without adapters."""
        return any(job.addition is not None and job.addition.in_blocks for job in self.jobs)

    @property
    def has_whole_products(self) -> bool:
        """Whether whole products of adapters are computed, which depend on the number of threads."""
        return any(job.addition is not None and not job.addition.in_blocks for job in self.jobs)

    def with_blocks(self) -> Work:
        """The same work, in which products of adapters are computed in blocks."""
        jobs = (
            replace(job, addition=replace(job.addition, in_blocks=True)) if job.addition else job for job in self.jobs
        )
        return replace(self, jobs=tuple(jobs))

    @property
    def content(self) -> str:
        """What the slots are filled with, and by which method, as a digest for the journal."""
        digest = hashlib.sha256()
        for file in self.layout.files:
            digest.update(file.header)
        for job in self.jobs:
            if isinstance(job, QuantizeJob):
                digest.update(f"{job.tensor.entry.name} {job.method}\n".encode())
        if self.has_whole_products:
            digest.update(f"{library_threads()} threads\n".encode())
        return digest.hexdigest()


def memory_budget(work: Work, allowed: int | None) -> int:
    """The maximum number of bytes of weights and results in memory at one time.

    Args:
        work: what to do.
        allowed: what the user allows; None to take what is needed.

    Raises:
        MemoryLimitError: a tensor needs more than the user allows.
    """
    needed = work.needed_bytes
    if allowed is None:
        return max(DEFAULT_BUDGET, needed)
    if allowed < needed:
        reason = f"--memory {allowed} is too little: one tensor alone needs {needed} with this recipe"
        raise MemoryLimitError(reason, f"Allow at least --memory {needed}.")
    return allowed


def largest_piece(options: ConvertOptions) -> int:
    """Bytes of the source that a worker takes at a time, where there is enough memory."""
    return PIECE_BYTES if options.is_on_cpu else DEVICE_PIECE_BYTES


def kinds_of(jobs: Iterable[Job]) -> set[Kind]:
    """The kinds of methods by which jobs quantize."""
    return {job.method.kind for job in jobs if isinstance(job, QuantizeJob)}


def element_bytes(tensor: SourceTensor) -> int:
    """Bytes of one number of a tensor; pieces are cut between numbers."""
    return max(1, BITS[tensor.entry.dtype] // 8)


def make_work(
    target: Target,
    plan: Plan,
    *,
    use_fused: bool = True,
    spooled: Mapping[str, Path] | None = None,
    additions: Mapping[str, Addition] | None = None,
) -> Work:
    """Lay the tensors of a plan out, and make the jobs that fill their slots.

    Args:
        target: source and options.
        plan: what to make.
        use_fused: whether lensconv's own kernel may be used.
        spooled: files that contain parts already, by the source name of their weight.
        additions: what adapters add, by the source name of the tensor.
    """
    added = additions or {}
    layout = lay_out(
        plan.specs, stem=plan.stem, shard_bytes=target.options.shard_bytes, index_metadata=plan.index_metadata
    )
    tensors = target.checkpoint.tensors
    files = {file.name: number for number, file in enumerate(layout.files)}
    slots = layout.slots
    jobs: list[Job] = [
        KeepJob(tensors[kept.source], Output(kept.spec, slots[kept.spec.name]), addition=added.get(kept.source))
        for kept in plan.kept
    ]
    for source, specs in plan.parts.items():
        module = plan.modules[source]
        outputs = {part: Output(spec, slots[spec.name]) for part, spec in specs.items()}
        method = choose_method(module, specs, use_fused=use_fused)
        if method.kind is Kind.FUSED and not target.options.is_on_cpu:
            method = replace(method, kind=Kind.DEVICE)
        file = (spooled or {}).get(source)
        jobs.append(QuantizeJob(tensors[source], outputs, module, method, file, addition=added.get(source)))

    def position(job: Job) -> tuple[int, int]:
        return min((files[slots[name].file], slots[name].offset) for name in job.outputs)

    return Work(plan, layout, tuple(sorted(jobs, key=position)))
