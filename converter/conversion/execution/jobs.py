"""The work of a conversion: a job for each tensor of the source, and the memory that it takes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import lcm, prod
from pathlib import Path

from converter.checkpoint.dtypes import BITS
from converter.checkpoint.layout import Layout, Slot, TensorSpec, lay_out
from converter.checkpoint.source import SourceTensor
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
class KeepJob:
    """A tensor that is copied, rounded to its new dtype."""

    tensor: SourceTensor
    kept: Output

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what is made."""
        return (self.kept.spec.name,)

    @property
    def working_bytes(self) -> int:
        """Memory that one number takes while it is converted, source included."""
        return element_bytes(self.tensor) + OWN_WORKING_BYTES

    @property
    def largest_share(self) -> int:
        """The least memory, in bytes, with which it can be converted: that of one number."""
        return self.working_bytes


@dataclass(frozen=True)
class QuantizeJob:
    """A weight that becomes SDNQ's parts."""

    tensor: SourceTensor
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
        return element_bytes(self.tensor) + _WORKING_BYTES[self.method.kind]

    @property
    def largest_share(self) -> int:
        """The least memory, in bytes, with which it can be converted: that of its longest run of rows."""
        rows = max(last - first for first, last in self.row_runs(1))
        return rows * prod(self.module.shape[1:]) * self.working_bytes

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
        start = 0
        while start < rows:
            stop = min(start + step, rows)
            # A last run that is too short for SDNQ's decision joins the run before it.
            if self.method.kind is Kind.ROWS and rows - stop < MATMUL_ROWS:
                stop = rows
            yield start, stop
            start = stop


Job = KeepJob | QuantizeJob


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
        return max((job.largest_share for job in self.jobs), default=0)

    @property
    def content(self) -> str:
        """What the slots are filled with, and by which method, as a digest for the journal."""
        digest = hashlib.sha256()
        for file in self.layout.files:
            digest.update(file.header)
        for job in self.jobs:
            if isinstance(job, QuantizeJob):
                digest.update(f"{job.tensor.entry.name} {job.method}\n".encode())
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


def make_work(target: Target, plan: Plan, *, use_fused: bool = True, spooled: Mapping[str, Path] | None = None) -> Work:
    """Lay the tensors of a plan out, and make the jobs that fill their slots.

    Args:
        target: source and options.
        plan: what to make.
        use_fused: whether lensconv's own kernel may be used.
        spooled: files that contain parts already, by the source name of their weight.
    """
    layout = lay_out(
        plan.specs, stem=plan.stem, shard_bytes=target.options.shard_bytes, index_metadata=plan.index_metadata
    )
    tensors = target.checkpoint.tensors
    files = {file.name: number for number, file in enumerate(layout.files)}
    slots = layout.slots
    jobs: list[Job] = [KeepJob(tensors[kept.source], Output(kept.spec, slots[kept.spec.name])) for kept in plan.kept]
    for source, specs in plan.parts.items():
        module = plan.modules[source]
        outputs = {part: Output(spec, slots[spec.name]) for part, spec in specs.items()}
        method = choose_method(module, specs, use_fused=use_fused)
        if method.kind is Kind.FUSED and not target.options.is_on_cpu:
            method = replace(method, kind=Kind.DEVICE)
        jobs.append(QuantizeJob(tensors[source], outputs, module, method, (spooled or {}).get(source)))

    def position(job: Job) -> tuple[int, int]:
        return min((files[slots[name].file], slots[name].offset) for name in job.outputs)

    return Work(plan, layout, tuple(sorted(jobs, key=position)))
