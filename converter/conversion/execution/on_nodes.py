"""Converting on the nodes of a cluster: each process there takes whole weight files, and returns what to write.

This process plans, writes, notes and hashes. What a node had finished before it was lost is in the journal by then, and
another process continues there, as the next run does after a kill.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from converter.checkpoint.journal import Finished
from converter.checkpoint.staging import StagedComponent
from converter.cluster.cluster import Cluster
from converter.cluster.connection import opened_cluster
from converter.cluster.hosted import Hosted
from converter.cluster.losses import Losses, Lost
from converter.cluster.nodes import refuse_other_software
from converter.cluster.resources import Need
from converter.console import Progress, Reporter
from converter.conversion.execution.relaying import Count, FinishSlots, Note, NoteBegun, Received, Step, Tell, Write
from converter.conversion.execution.shard_converter import HubSource, ShardConverter, WeightFile, find_files, find_repo
from converter.conversion.execution.sinks import Follower, Slots
from converter.conversion.execution.streaming import PROVEN
from converter.conversion.execution.work import Work
from converter.conversion.options import ConvertOptions
from converter.conversion.request import Request, Target
from converter.errors import UsageError
from converter.hub.shadow import Shadow

#: Messages of a process that may wait for this one. With what waits on the node, some 40 MB are on their way.
_WAITING_MESSAGES = 2


def refuse_options(options: ConvertOptions) -> None:
    """Refuse options that nodes cannot follow.

    Raises:
        UsageError: there is such an option.
    """
    if not options.is_on_cpu:
        raise UsageError(f"--ray with --device {options.device}: nodes convert on their CPUs", "Omit --device.")
    if options.adapters:
        raise UsageError("--ray with --lora: adapters are added on one machine only", "Omit --ray.")


def refuse_recipes(request: Request) -> None:
    """Refuse recipes whose bytes depend on the order of all modules, or on the machine.

    Raises:
        UsageError: there is such a recipe.
    """
    for recipe in (target.recipe for target in request.targets):
        reason = ""
        if recipe.is_data_dependent:
            reason = "the weights decide its dtypes, in the order of the modules"
        elif recipe.is_random:
            reason = "it draws random numbers in the order of the modules"
        elif recipe.depends_on_threads:
            reason = "its bytes depend on the number of threads"
        if reason:
            raise UsageError(f"--ray with recipe {recipe.name}: {reason}", "Omit --ray.")


@contextmanager
def opened_nodes(request: Request, address: str | None, reporter: Reporter) -> Iterator[Cluster | None]:
    """Connect to a cluster for the block, all nodes of which have the same software and find the source.

    Args:
        request: what to convert.
        address: of the cluster; None to do without.
        reporter: is told how many nodes there are.

    Raises:
        ClusterError: the cluster cannot be used, or a node has other software.
        InputError: a node does not have the source, or has another one.
        HubError: a node cannot read the source.
    """
    if address is None:
        yield None
        return
    with opened_cluster(address, reporter) as cluster:
        refuse_other_software(cluster)
        if request.shadow is not None:
            cluster.each(find_repo, _hub_source(request.shadow), request.main.checkpoint.headers[0])
        else:
            headers = [header for checkpoint in request.checkpoints for header in checkpoint.headers]
            cluster.each(find_files, [WeightFile.of(header) for header in headers])
        count = len(cluster.nodes)
        reporter.note(f"converting on {count} node{'s' if count != 1 else ''}")
        yield cluster


def _hub_source(shadow: Shadow) -> HubSource:
    return HubSource(shadow.repo.known(), shadow.folder)


@dataclass
class NodeConversion:
    """Threads each of which takes weight files from a queue, and has a process on a node convert them.

    Args:
        cluster: where.
        target: source, recipe and options.
        work: what to do.
        budget: the most bytes of weights and results in memory at a time, in each process.
        staged: notes every finished tensor in its journal.
        hasher: is notified of every filled slot.
        writer: writes the slots.
        progress: shows the user what is done.
        reporter: is told what takes longer.
        shadow: of the source, if it is on the Hub.
    """

    cluster: Cluster
    target: Target
    work: Work
    budget: int
    staged: StagedComponent
    hasher: Follower
    writer: Slots
    progress: Progress
    reporter: Reporter
    shadow: Shadow | None
    _waiting: deque[str] = field(default_factory=deque)
    """Files that no process converts."""
    _begun: dict[str, dict[str, Any]] = field(default_factory=dict)

    def run(self) -> None:
        """Convert all files that are not finished.

        Raises:
            LensconvError: a tensor cannot be converted, the output cannot be written, or the cluster cannot be used.
            KeyboardInterrupt: the user stopped it.
        """
        self._waiting.extend(self._files())
        self.cluster.run(self._work, range(self._workers()), refresh=self.progress.refresh)

    def _files(self) -> list[str]:
        """Names of the files that are not finished, or on the Hub not proven, in their order."""
        finished = self.staged.finished
        headers = [header.file for header in self.target.checkpoint.headers]
        if self.shadow is not None:
            return [file.name for file in headers if PROVEN + file.name not in finished]
        jobs = (job for job in self.work.jobs if job.tensor.entry.name not in finished)
        unfinished = {job.tensor.file for job in jobs}
        return [file.name for file in headers if file in unfinished]

    def _workers(self) -> int:
        """Processes to have at a time."""
        options = self.target.options
        cpus = max(1, int(sum(node.cpus for node in self.cluster.nodes)))
        most = options.connections if self.shadow is not None else cpus
        return min(len(self._waiting), cpus, most, options.jobs or cpus)

    def _work(self, _number: int) -> None:
        losses = Losses()
        while self._waiting:
            try:
                with self._host() as converter:
                    while (file := self._take()) is not None:
                        self._convert(converter, file, losses)
            except Lost as loss:
                losses.note(loss)

    def _take(self) -> str | None:
        # Another thread may have taken the last one.
        with suppress(IndexError):
            return self._waiting.popleft()
        return None

    def _host(self) -> Hosted:
        target = replace(self.target, checkpoint=replace(self.target.checkpoint, open_other=None))
        hub = _hub_source(self.shadow) if self.shadow is not None else None
        # While all CPUs are taken, other threads may convert the files that are left.
        return self.cluster.host(
            Need(), ShardConverter, target, self.work, self.budget, hub, is_wanted=lambda: bool(self._waiting)
        )

    def _convert(self, converter: Hosted, file: str, losses: Losses) -> None:
        """Have a process convert a file, and do its steps here.

        Raises:
            Lost: the process ended; the file is back in the queue.
        """
        counted = 0
        try:
            for steps in converter.stream("convert", file, *self._noted(file), most=_WAITING_MESSAGES):
                for step in steps:
                    self._do(step)
                    match step:
                        case Count():
                            counted += step.bytes
                        case NoteBegun():
                            losses.reset()
                        case Note():
                            counted = 0
                            losses.reset()
        except Lost:
            # The next process counts what it does again.
            self.progress.advance(-counted)
            self._waiting.appendleft(file)
            raise

    def _noted(self, file: str) -> tuple[Finished, Finished]:
        """What is finished of a file, and what is begun."""
        tensors = self.target.checkpoint.tensors
        names = {name for name, tensor in tensors.items() if tensor.file.name == file}
        begun = {**self.staged.begun, **self._begun}
        finished = self.staged.finished
        return {name: finished[name] for name in names & finished.keys()}, {
            name: begun[name] for name in names & begun.keys()
        }

    def _do(self, step: Step) -> None:
        match step:
            case Write(name, offset, data):
                self.writer.write(name, offset, data)
            case Note(tensor, facts):
                self.staged.note(tensor, **facts)
            case NoteBegun(tensor, facts):
                self._begun[tensor] = facts
                self.staged.note_begun(tensor, **facts)
            case FinishSlots(names):
                self.hasher.finish_slot(*names)
            case Count(size, is_skipped):
                (self.progress.skip if is_skipped else self.progress.advance)(size)
            case Tell(text):
                self.reporter.note(text)
            case Received(size) if self.shadow is not None:
                self.shadow.repo.count_received(size)
