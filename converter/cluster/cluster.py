"""A cluster of Ray: its nodes, and how to have something computed there.

A thread that waits for a node looks again and again whether it should stop, so Ctrl-C never waits for the cluster.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import ModuleType, TracebackType
from typing import Any, Self, TypeVar

from converter.cluster.environment import shared_environment
from converter.cluster.hosts import Host, answer_function, take
from converter.errors import ClusterError, LensconvError, first_line, printable
from converter.temporary import remove_marked
from converter.threads import run_in_threads

#: Seconds between two looks at whether to stop, and at the nodes.
_POLL = 0.5
#: Seconds that nodes get to remove temporary folders.
_CLEANING = 5.0
#: What Ray raises when a process or a node ended; what it held can be computed again.
_LOSSES = {
    "NodeDiedError",
    "WorkerCrashedError",
    "RayActorError",
    "ObjectLostError",
    "OutOfMemoryError",
    "LocalRayletDiedError",
}
_INSTALL = "Install lensconv, with the same versions, in the Python that Ray uses on each node."
#: Consecutive losses without any progress, after which something else is wrong.
MOST_LOSSES = 3


_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Lost(Exception):
    """A node, or a process of Ray on it, ended while it worked. What it had not finished has to be done again."""


class Stopped(Exception):
    """The work on the cluster was stopped."""


@dataclass(frozen=True)
class Node:
    """A node of the cluster."""

    id: str
    name: str
    """Its address, and the beginning of Ray's name for it, as several can be on one machine."""
    cpus: float
    gpus: float


@dataclass(frozen=True)
class Need:
    """What a process on a node needs."""

    cpus: float = 1.0
    gpus: float = 0.0


@dataclass
class Cluster:
    """An open connection.

    Args:
        ray: the package.
    """

    ray: ModuleType
    uses: Callable[[Node], bool] = field(default=lambda node: node.cpus > 0)
    """Whether to use a node."""
    software: Mapping[str, Any] = field(default_factory=dict)
    """What every process on a node must have, as ``describe_software`` returns it."""
    _stopping: threading.Event = field(default_factory=threading.Event)
    _hosted: set[Hosted] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    mark: str = field(default_factory=lambda: secrets.token_hex(4))
    """In the names of the temporary folders of its processes."""

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The nodes that are alive and used, in the order of their names.

        Raises:
            ClusterError: there are none.
        """
        found = [_node(entry) for entry in self.ray.nodes() if entry["Alive"]]
        used = sorted(filter(self.uses, found), key=lambda node: (node.name, node.id))
        if not used:
            raise ClusterError(
                "the cluster of Ray has no node left that can be used",
                "Start nodes with `ray start`, and run it again.",
            )
        return tuple(used)

    def call(self, node: Node, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function on a node, and return what it returns.

        Args:
            node: where; resources are not asked for.
            function: importable there.
            arguments: of the function.

        Raises:
            LensconvError: as the function raised it, with the node's name.
            ClusterError: the node died.
        """
        return self._taken(node, self._pinned(node, function, *arguments))

    def each(self, function: Callable[..., Any], *arguments: Any, gpus: float = 0.0) -> dict[Node, Any]:
        """Call a function on every node at the same time, and return what each returns.

        Args:
            function: importable there.
            arguments: of the function.
            gpus: that it needs; without any, it sees none.

        Raises: as ``call``.
        """
        found = {node: self._pinned(node, function, *arguments, gpus=gpus) for node in self.nodes}
        return {node: self._taken(node, reference) for node, reference in found.items()}

    def _taken(self, node: Node, reference: Any) -> Any:
        """The result of a function on a node; errors name it."""
        try:
            return take(self.wait(reference))
        except Lost as loss:
            raise ClusterError(f"node {node.name}: {loss}", "Run it again without this node.") from loss
        except LensconvError as error:
            content = error.to_dict()["error"]
            raise LensconvError.from_dict({**content, "message": f"node {node.name}: {error.message}"}) from error

    def _pinned(self, node: Node, function: Callable[..., Any], *arguments: Any, gpus: float = 0.0) -> Any:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        strategy = NodeAffinitySchedulingStrategy(node.id, soft=False)
        remote = self.ray.remote(num_cpus=0, num_gpus=gpus, max_retries=0, scheduling_strategy=strategy)(
            answer_function
        )
        return remote.remote(shared_environment(), function, *arguments)

    def host(
        self, need: Need, kind: Callable[..., Any], *arguments: Any, is_wanted: Callable[[], bool] = lambda: True
    ) -> Hosted:
        """Make an object in a process on a node that Ray chooses.

        Args:
            need: what the process takes while it exists.
            kind: its class, importable there.
            arguments: of the class.
            is_wanted: whether to wait on, where no node has what it needs yet.

        Raises:
            Lost: the process ended.
            Stopped: the work was stopped, or it is not wanted any longer.
            LensconvError: as the class raised it.
        """
        hosted = self.prepare(need, kind, *arguments)
        try:
            hosted.wait_until_made(is_wanted)
        except BaseException:
            hosted.close()
            raise
        return hosted

    def prepare(self, need: Need, kind: Callable[..., Any], *arguments: Any) -> Hosted:
        """Begin to make an object as ``host`` does, and do not wait for it: ``Hosted.wait_until_made`` does.

        Raises:
            Stopped: the work was stopped.
        """
        # Ray's own retries would mix what two processes answered.
        remote = self.ray.remote(num_cpus=need.cpus, num_gpus=need.gpus, max_restarts=0, max_task_retries=0)(Host)
        with self._lock:
            if self.is_stopping:
                raise Stopped
            actor = remote.options(scheduling_strategy="SPREAD").remote(shared_environment(), self.mark, self.software)
            hosted = Hosted(self, actor, actor.make.remote(kind, arguments))
            self._hosted.add(hosted)
        return hosted

    def run(
        self, function: Callable[[_Item], _Result], items: Sequence[_Item], *, refresh: Callable[[], None]
    ) -> list[_Result | None]:
        """Call a function with every item, each in a thread of its own, which waits for nodes.

        Args:
            function: what the threads call.
            items: one for each thread.
            refresh: called in the main thread, a few times a second.

        Returns:
            What the calls returned; None of one that was stopped.

        Raises:
            BaseException: what the first failed call raised, or a signal's handler. All processes on nodes have ended
                then, and the cluster cannot be used any longer.
        """

        ended = list[None]()

        def call(item: _Item) -> _Result | None:
            found = None
            # What stopped it is raised in the main thread.
            with suppress(Stopped):
                found = function(item)
            ended.append(None)
            return found

        def stop() -> None:
            if len(ended) < len(items):
                self.stop()

        workers = max(1, len(items))
        return run_in_threads(call, items, workers=workers, name="node", refresh=refresh, stop=stop)

    def wait(self, reference: Any, is_wanted: Callable[[], bool] = lambda: True) -> Any:
        """Wait for the result behind a reference.

        Args:
            reference: Ray's.
            is_wanted: whether to wait on.

        Raises:
            Lost: what computed it ended.
            Stopped: the work was stopped, or the result is not wanted any longer.
            ClusterError: no node is left.
        """
        while not self.ray.wait([reference], timeout=_POLL)[0]:
            if self.is_stopping or not is_wanted():
                raise Stopped
            _ = self.nodes
        return self.get(reference)

    def get(self, reference: Any) -> Any:
        """Return the result behind a reference that is there.

        Raises:
            Lost: what computed it ended.
            Stopped: the work was stopped.
            ClusterError: the cluster cannot compute it.
        """
        errors = self.ray.exceptions
        try:
            return self.ray.get(reference)
        except errors.RayTaskError as error:
            if isinstance(error.cause, ImportError) or "failed to import on the worker" in str(error):
                raise ClusterError(f"a node cannot import lensconv: {first_line(error.cause)}", _INSTALL) from error
            raise
        except errors.RayError as error:
            if self.is_stopping:
                raise Stopped from error
            reason = printable(str(error).partition("\n")[0])
            if _LOSSES & {kind.__name__ for kind in type(error).__mro__}:
                raise Lost(reason) from error
            raise ClusterError(f"Ray: {reason}", "See `ray status` and Ray's logs.") from error

    @property
    def is_stopping(self) -> bool:
        """Whether the work is being stopped."""
        return self._stopping.is_set()

    def stop(self) -> None:
        """End all processes on nodes, so that every thread that waits for one of them ends."""
        with self._lock:
            self._stopping.set()
            found = list(self._hosted)
        for hosted in found:
            hosted.close()

    def end(self, hosted: Hosted) -> None:
        """End a process on a node."""
        with self._lock:
            actor, hosted.actor = hosted.actor, None
            self._hosted.discard(hosted)
        if actor is not None:
            self.ray.kill(actor)

    def clean(self) -> None:
        """Remove the temporary folders that ended processes have left on the nodes, as far as this is quick."""
        with suppress(self.ray.exceptions.RayError, ClusterError):
            found = [self._pinned(node, remove_marked, self.mark) for node in self.nodes]
            self.ray.wait(found, num_returns=len(found), timeout=_CLEANING)


class Losses:
    """Counts losses of what is tried again and again."""

    def __init__(self) -> None:
        self._count = 0

    def note(self, loss: Lost) -> None:
        """Count a loss.

        Raises:
            ClusterError: nothing was achieved since several losses.
        """
        self._count += 1
        if self._count > MOST_LOSSES:
            raise ClusterError(
                f"Ray lost {self._count} processes in a row: {loss}", "See `ray status` and Ray's logs."
            ) from loss

    def reset(self) -> None:
        """Something was achieved."""
        self._count = 0


@dataclass(eq=False)
class Hosted:
    """An object in a process on a node; a context manager that ends the process.

    Args:
        cluster: where it is.
        actor: Ray's handle of its ``Host``; None once it has ended. A handle that outlives its connection ends another
            process in the next one, where Ray gives the same names again.
        making: Ray's reference for the making of the object; None once it is made.
    """

    cluster: Cluster
    actor: Any
    making: Any = None

    def wait_until_made(self, is_wanted: Callable[[], bool] = lambda: True) -> None:
        """Wait until the object is made.

        Args:
            is_wanted: whether to wait on; if not, the making goes on.

        Raises: as ``Cluster.host``.
        """
        if self.making is not None:
            take(self.cluster.wait(self.making, is_wanted))
            self.making = None

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method, and return what it returns.

        Raises:
            Lost: the process ended.
            LensconvError: as the method raised it.
        """
        return take(self.cluster.wait(self._alive.call.remote(method, arguments)))

    def stream(self, method: str, *arguments: Any, most: int = -1) -> Iterator[Any]:
        """Call a method that yields values.

        Args:
            method: its name.
            arguments: of the method.
            most: values that may wait to be taken, before the method waits; no limit if negative.

        Raises:
            Lost: the process ended.
            LensconvError: as the method raised it.
        """
        options = {"num_returns": "streaming", "_generator_backpressure_num_objects": most}
        for reference in self._references(self._alive.stream.options(**options).remote(method, arguments)):
            yield take(self.cluster.get(reference))

    def _references(self, generator: Any) -> Iterator[Any]:
        ray = self.cluster.ray
        while True:
            while not ray.wait([generator], timeout=_POLL)[0]:
                if self.cluster.is_stopping:
                    raise Stopped
            try:
                yield next(generator)
            except StopIteration:
                return

    def close(self) -> None:
        """End the process."""
        self.cluster.end(self)

    @property
    def _alive(self) -> Any:
        if self.actor is None:
            raise Stopped
        return self.actor

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _node(entry: Mapping[str, Any]) -> Node:
    resources: Mapping[str, float] = entry["Resources"]
    name = f"{printable(entry['NodeName'])} ({entry['NodeID'][:8]})"
    return Node(entry["NodeID"], name, resources.get("CPU", 0.0), resources.get("GPU", 0.0))


def in_words(nodes: Sequence[Node]) -> str:
    """How many nodes and GPUs there are."""
    gpus = sum(node.gpus for node in nodes)
    count = f"{len(nodes)} node{'s' if len(nodes) != 1 else ''}"
    return f"{count}, {gpus:g} GPU{'s' if gpus != 1 else ''}" if gpus else count
