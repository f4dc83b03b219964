"""Executing the work of a conversion: workers fill the slots, and the files are hashed right behind them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from converter.checkpoint.journal import Finished
from converter.checkpoint.staging import SPOOLED, StagedComponent
from converter.checkpoint.writer import SlotWriter, writing
from converter.cluster.cluster import Cluster
from converter.console import Reporter
from converter.conversion.execution.hashing import FollowingHasher
from converter.conversion.execution.jobs import KeepJob
from converter.conversion.execution.on_nodes import NodeConversion
from converter.conversion.execution.running import ordered_jobs, run_jobs
from converter.conversion.execution.streaming import PROVEN, Streams
from converter.conversion.execution.work import Work
from converter.conversion.execution.workers import WorkerPool
from converter.conversion.kernels.host import Host
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
    cluster: Cluster | None = None,
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
        cluster: on whose nodes to convert; None to convert here.

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
        if cluster is not None:
            NodeConversion(cluster, target, work, budget, staged, hasher, writer, progress, reporter, shadow).run()
        else:
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
