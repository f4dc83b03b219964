"""Running jobs with a pool of workers, in the order and with the threads that their bytes need."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext

from converter.checkpoint.journal import Finished
from converter.checkpoint.reader import open_reader
from converter.conversion.execution.jobs import Job, QuantizeJob, kinds_of
from converter.conversion.execution.randomness import seeded_randomness
from converter.conversion.execution.streaming import Streams
from converter.conversion.execution.work import Work
from converter.conversion.execution.workers import Batch, WorkerPool
from converter.conversion.kernels import fused, searching
from converter.conversion.planning.methods import Kind
from converter.conversion.recipe.recipe import NEAREST
from converter.conversion.request import Target


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
