"""Where workers of a benchmark run on a cluster: alone on a node, or beside others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from converter.checkpoint.writer import replace_file
from converter.cluster.cluster import Cluster
from converter.cluster.hosted import Hosted
from converter.cluster.losses import Losses, Lost
from converter.cluster.resources import Need
from converter.errors import unreadable
from converter.measurement.benchmark.job import Job
from converter.measurement.benchmark.journal import Journal
from converter.measurement.benchmark.node_repos import NodeRepos
from converter.measurement.benchmark.node_worker import FILES, NodeWorker

#: Events that may wait to be taken.
_MOST_EVENTS = 8


@dataclass
class Nodes:
    """The nodes of a benchmark.

    Args:
        cluster: whose nodes.
        repos: which all of them have.
        device: where images are generated, ``cuda`` or ``cpu``.
    """

    cluster: Cluster
    repos: NodeRepos
    device: str

    @property
    def whole(self) -> Need:
        """All of a node."""
        node = self.cluster.nodes[0]
        return Need(node.cpus, node.gpus)

    @property
    def slot(self) -> Need:
        """What one worker needs: a GPU, or all processors, since torch uses them all."""
        return Need(1.0, 1.0) if self.device == "cuda" else Need(self.cluster.nodes[0].cpus)

    @property
    def slots(self) -> int:
        """How many workers there can be at a time."""
        nodes = self.cluster.nodes
        return int(sum(node.gpus for node in nodes)) if self.device == "cuda" else len(nodes)


@dataclass
class _Place:
    """Workers in a process of Ray, which is started with the first one and again after a loss."""

    nodes: Nodes
    need: Need
    method: str
    is_timed: bool
    _hosted: Hosted | None = None
    _losses: Losses = field(default_factory=Losses)
    _numbers: list[int] = field(default_factory=list)

    def number(self, journal: Journal) -> int:
        """Return the number of the next worker.

        In each process of Ray, the first two workers have adjacent numbers. So a pair whose sessions were on different
        nodes has other numbers between its own, and counts as interrupted.
        """
        if self._hosted is None:
            self._numbers = [journal.new_worker(), journal.new_worker()]
        return self._numbers.pop(0) if self._numbers else journal.new_worker()

    @contextmanager
    def start(self, job: Job, timeout: float, _tick: Callable[[], None]) -> Iterator[NodeSession]:
        """Start a worker on a node; it waits until a node is free.

        Raises: as ``open``.
        """
        yield NodeSession(self.open(timeout), self.method, job, self._losses.reset)

    def open(self, timeout: float, is_wanted: Callable[[], bool] = lambda: True) -> Hosted:
        """Start the process of Ray, if it does not run, and wait until a node is free for it.

        Args:
            timeout: seconds without an event after which a worker counts as hanging.
            is_wanted: whether to wait on.

        Raises:
            Stopped: it is not wanted any longer, or the work was stopped.
            InputError: the node lacks a repo.
            ClusterError: too many processes were lost, or no node is left.
        """
        while self._hosted is None:
            try:
                self._hosted = self.nodes.cluster.host(
                    self.need, NodeWorker, self.nodes.repos, timeout, is_wanted=is_wanted
                )
            except Lost as loss:
                self.note_loss(loss)
        return self._hosted

    def note_loss(self, loss: Lost) -> None:
        """Start another process with the next worker.

        Raises:
            ClusterError: too many were lost.
        """
        self._end()
        self._losses.note(loss)

    def _end(self) -> None:
        if self._hosted is not None:
            self._hosted.close()
            self._hosted = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None and self._hosted is not None:
            # Files are removed; a node that is lost has none.
            with suppress(Lost):
                self._hosted.call("close")
        self._end()


def alone_on_a_node(nodes: Nodes) -> _Place:
    """A place for a timed pair: one node, to itself, for both sessions."""
    return _Place(nodes, nodes.whole, "run", is_timed=True)


def beside_others(nodes: Nodes, *, keeps_loaded: bool) -> _Place:
    """A place for what is not timed.

    Args:
        nodes: of the benchmark.
        keeps_loaded: whether each job has one task, and a pipeline stays loaded for the next one.
    """
    return _Place(nodes, nodes.slot, "draw" if keeps_loaded else "run", is_timed=False)


@dataclass
class NodeSession:
    """A worker on a node.

    Args:
        hosted: starts it.
        method: of ``NodeWorker``.
        job: its work.
        achieved: is called with each event.
    """

    hosted: Hosted
    method: str
    job: Job
    achieved: Callable[[], None]

    def events(self) -> Iterator[dict[str, Any]]:
        """Yield its events, after writing the files that they are about.

        Raises:
            Lost: the process of Ray ended.
            OutputError: a file cannot be written.
            DiskError: the disk is full.
        """
        arguments = (self.job, self._inputs()) if self.method == "run" else (self.job,)
        for event in self.hosted.stream(self.method, *arguments, most=_MOST_EVENTS):
            for path, content in event.pop(FILES, {}).items():
                replace_file(Path(path), content)
            self.achieved()
            yield event

    def _inputs(self) -> Mapping[str, bytes]:
        """Contents of the files that tasks read."""
        try:
            return {task.replay: Path(task.replay).read_bytes() for task in self.job.tasks if task.replay}
        except OSError as error:
            raise unreadable(error.filename, error) from error
