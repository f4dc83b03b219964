"""Executing the work of a conversion: workers fill the slots, and the files are hashed right behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from converter.checkpoint.journal import Finished
from converter.checkpoint.reader import open_reader
from converter.checkpoint.staging import SPOOLED, StagedComponent
from converter.checkpoint.writer import SlotWriter, writing
from converter.console import Reporter
from converter.conversion.execution.hashing import FollowingHasher
from converter.conversion.execution.jobs import Job, KeepJob, QuantizeJob, kinds_of
from converter.conversion.execution.randomness import seeded_randomness
from converter.conversion.execution.streaming import PROVEN, Streams
from converter.conversion.execution.work import Work
from converter.conversion.execution.workers import Batch, WorkerPool
from converter.conversion.kernels import fused, searching
from converter.conversion.kernels.host import Host
from converter.conversion.planning.methods import Kind
from converter.conversion.recipe.recipe import NEAREST
from converter.conversion.request import Target
from converter.hub.shadow import Shadow

if TYPE_CHECKING:
    from converter.conversion.kernels.devices import Device


@dataclass(frozen=True)
class Outcome:
    """The result of the work, once all slots are filled."""

    digests: Mapping[str, str]
    """sha256 of the weight files, by name."""
    resumed_tensors: int
    """Tensors of the output that an interrupted run had finished."""
    nonfinite: Mapping[str, int]
    """Numbers that are not finite, by tensor of the source."""
    damped: Mapping[str, float]
    """What was added to second moments that are not positive semidefinite, as parts of their mean diagonal, by tensor
    of the source."""
    bytes_read: int
    """Bytes of the source that were read."""
    proven: frozenset[str] = frozenset()
    """Names of the source's files whose checksums were compared with the Hub's record."""


def execute(
    target: Target,
    work: Work,
    staged: StagedComponent,
    finished: Finished,
    budget: int,
    reporter: Reporter,
    device: Host | Device,
    shadow: Shadow | None = None,
) -> Outcome:
    """Fill all slots, and hash the files behind the workers.

    Args:
        target: source, recipe and options.
        work: what to do.
        staged: where the files are; its journal notes every finished tensor.
        finished: what an interrupted run had finished.
        budget: the most bytes of weights and results in memory at a time.
        reporter: shows progress.
        device: where weights are quantized.
        shadow: of the source, if it is on the Hub.

    Raises:
        LensconvError: a tensor cannot be converted, or the output cannot be written.
        KeyboardInterrupt: the user stopped it.
    """
    jobs = ordered_jobs(target, work)
    todo = [job for job in jobs if job.tensor.entry.name not in finished]
    folder = staged.folder
    total = sum(job.tensor.entry.bytes for job in jobs)
    with (
        writing(folder),
        SlotWriter(folder, work.layout) as writer,
        reporter.progress("converting", total) as progress,
        FollowingHasher(folder, work.layout) as hasher,
    ):
        for job in jobs:
            if job.tensor.entry.name in finished:
                hasher.finish_slot(*job.outputs)
                progress.skip(job.tensor.entry.bytes)
        pool = WorkerPool(staged, hasher, writer, progress, target.options, device)
        streams = Streams(target, shadow, staged, reporter) if shadow is not None else None
        run_jobs(target, work, todo, finished, pool, budget, streams)
        # The disk works while the hasher catches up.
        writer.sync()
        digests = hasher.digests()
    resumed = [job for job in jobs if {job.tensor.entry.name, SPOOLED + job.tensor.entry.name} & finished.keys()]
    return Outcome(
        digests=digests,
        resumed_tensors=sum(len(job.outputs) for job in resumed),
        nonfinite=staged.nonfinite,
        damped=staged.damped,
        proven=frozenset(name.removeprefix(PROVEN) for name in staged.finished if name.startswith(PROVEN)),
        bytes_read=sum(job.tensor.entry.bytes for job in todo if isinstance(job, KeepJob) or job.spooled is None),
    )


def ordered_jobs(target: Target, work: Work) -> Sequence[Job]:
    """The jobs in the order in which to begin them: where SDNQ uses random numbers, in that of the modules."""
    return _in_random_order(work) if _uses_random_numbers(target) else work.jobs


def run_jobs(
    target: Target,
    work: Work,
    jobs: Sequence[Job],
    finished: Finished,
    pool: WorkerPool,
    budget: int,
    streams: Streams | None = None,
) -> None:
    """Do jobs with a pool of workers.

    Args:
        target: source, recipe and options.
        work: what the jobs are a part of.
        jobs: in the order in which to begin them.
        finished: what an interrupted run had finished.
        pool: writes and notes what is done.
        budget: the most bytes of weights and results in memory at a time.
        streams: the files of the source, if it is on the Hub.

    Raises: what ``WorkerPool.run`` raises.
    """
    if Kind.FUSED in kinds_of(jobs):
        fused.compile_kernels(round_weights=not target.options.from_float32)
    if target.recipe.rounding != NEAREST:
        searching.compile_kernels(calibrated=work.is_calibrated)
    is_random = _uses_random_numbers(target)
    randomness = seeded_randomness(target, finished, pool.device) if is_random else nullcontext()
    with randomness as random_state, _torch_threads(work, jobs), ExitStack() as stack:
        pool.random_state = random_state
        if streams is not None:
            pool.halt = streams.shadow.repo.halt
            stack.callback(streams.shadow.repo.stopping.clear)
        if streams is not None and target.recipe.reads_in_order:
            pool.run(streams.batches(jobs, finished), workers=streams.connections, budget=budget)
        else:
            reader = stack.enter_context(open_reader(target.checkpoint))
            batches = (Batch([job], lambda: nullcontext(reader)) for job in jobs)
            pool.run(batches, workers=1 if is_random else target.options.workers, budget=budget)


def _uses_random_numbers(target: Target) -> bool:
    # Where the weights decide, all random numbers have been used before.
    return target.recipe.is_random and not target.recipe.is_data_dependent


def _in_random_order(work: Work) -> Sequence[Job]:
    """The jobs in the order of the modules, in which SDNQ uses random numbers; kept tensors, which use none, last."""
    order = {source: number for number, source in enumerate(work.plan.modules)}
    return sorted(work.jobs, key=lambda job: order.get(job.tensor.entry.name, len(order)))


def _torch_threads(work: Work, jobs: Sequence[Job]) -> AbstractContextManager[None]:
    """Let each worker use one thread of torch where the results do not depend on their number."""
    methods = {job.method for job in jobs if isinstance(job, QuantizeJob)}
    # Where scales are searched, nothing is factorised.
    needs_threads = any(method.kind is Kind.WHOLE and method.rounding == NEAREST for method in methods)
    uses_torch = kinds_of(jobs) & {Kind.ROWS, Kind.COLUMNS} or work.is_calibrated
    if not work.in_blocks and (not uses_torch or needs_threads or work.has_whole_products):
        return nullcontext()
    # Imported here: it imports torch.
    from converter.conversion.kernels.sdnq import one_torch_thread

    return one_torch_thread()
