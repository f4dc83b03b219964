"""The work of a conversion: the slots of a plan's tensors, the jobs that fill them, and the memory that it takes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from converter.checkpoint.layout import Layout, lay_out
from converter.conversion.adapters.additions import Addition
from converter.conversion.execution.jobs import Job, KeepJob, Output, QuantizeJob
from converter.conversion.planning.methods import OWN_KINDS, Kind, choose_method
from converter.conversion.planning.plan import Plan
from converter.conversion.planning.rounding import choose_roundings
from converter.conversion.recipe.recipe import NEAREST
from converter.conversion.request import Target
from converter.errors import MemoryLimitError
from converter.libraries import library_threads

#: Memory that conversions use for pieces unless a tensor needs more, or the user says otherwise.
DEFAULT_BUDGET = 256_000_000


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
        return max([self.check_bytes, *(job.largest_share for job in self.jobs)])

    @property
    def check_bytes(self) -> int:
        """Memory that it takes to choose how products of adapters are computed."""
        return max((job.addition.check_bytes for job in self.jobs if job.addition), default=0)

    @property
    def is_calibrated(self) -> bool:
        """Whether codes of some modules are calibrated."""
        return any(isinstance(job, QuantizeJob) and job.moments is not None for job in self.jobs)

    @property
    def in_blocks(self) -> bool:
        """Whether products of adapters are computed in blocks, with one thread of torch; False without adapters."""
        return any(job.addition is not None and job.addition.in_blocks for job in self.jobs)

    @property
    def has_whole_products(self) -> bool:
        """Whether whole products of adapters are computed, which depend on the number of threads."""
        return any(job.addition is not None and not job.addition.in_blocks for job in self.jobs)

    @property
    def needs_sdnq(self) -> bool:
        """Whether a job uses functions of SDNQ or torch."""
        return self.is_calibrated or any(
            job.addition is not None or (isinstance(job, QuantizeJob) and job.method.kind not in OWN_KINDS)
            for job in self.jobs
        )

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
    return budget_for(work.needed_bytes, allowed)


def budget_for(needed: int, allowed: int | None) -> int:
    """The same for what needs at least so many bytes."""
    if allowed is None:
        return max(DEFAULT_BUDGET, needed)
    if allowed < needed:
        reason = f"--memory {allowed} is too little: one tensor alone needs {needed} with this recipe"
        raise MemoryLimitError(reason, f"Allow at least --memory {needed}.")
    return allowed


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
    roundings = choose_roundings(plan, target)
    jobs: list[Job] = [
        KeepJob(tensors[kept.source], Output(kept.spec, slots[kept.spec.name]), addition=added.get(kept.source))
        for kept in plan.kept
    ]
    for source, specs in plan.parts.items():
        module = plan.modules[source]
        outputs = {part: Output(spec, slots[spec.name]) for part, spec in specs.items()}
        method = choose_method(module, specs, use_fused=use_fused, rounding=roundings.by_source[source])
        if method.kind is Kind.FUSED and method.rounding == NEAREST and not target.options.is_on_cpu:
            method = replace(method, kind=Kind.DEVICE)
        file = (spooled or {}).get(source)
        moments, addition = roundings.moments.get(source), added.get(source)
        jobs.append(QuantizeJob(tensors[source], outputs, module, method, file, moments, addition=addition))

    def position(job: Job) -> tuple[int, int]:
        return min((files[slots[name].file], slots[name].offset) for name in job.outputs)

    return Work(plan, layout, tuple(sorted(jobs, key=position)))
