"""A cluster of Ray: its nodes, and how to have something computed there."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType
from typing import Any, TypeVar

from converter.cluster.answers import Answers
from converter.cluster.environment import shared_environment
from converter.cluster.heads import ANSWERING, touch
from converter.cluster.hosted import Hosted
from converter.cluster.hosts import Host, answer_function, take
from converter.cluster.losses import Lost, Stopped
from converter.cluster.resources import Need, Node, node_of
from converter.errors import ClusterError, LensconvError, reason_of
from converter.temporary import remove_marked
from converter.threads import begin, run_in_threads

#: Seconds that nodes get to remove temporary folders.
_CLEANING = 5.0
_AGAIN = "Start it again, and run the same command."
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass
class Cluster:
    """An open connection.

    Args:
        ray: the package.
    """

    ray: ModuleType
    uses: Callable[[Node], bool] = field(default=lambda node: node.cpus > 0)
    """Whether to use a node."""
    tell: Callable[[str], object] = field(default=lambda _: None)
    """Is told once what is waited for."""
    software: Mapping[str, Any] = field(default_factory=dict)
    """What every process on a node must have, as ``describe_software`` returns it."""
    _hosted: set[Hosted] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    mark: str = field(default_factory=lambda: secrets.token_hex(4))
    """In the names of the temporary folders of its processes."""

    def __post_init__(self) -> None:
        """Wait for results only as long as there are nodes."""
        self.answers = Answers(self.ray, lambda: self.nodes)

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The nodes that are alive and used, in the order of their names.

        Raises:
            ClusterError: there are none, or the head of the cluster has ended.
        """
        found = [node_of(entry) for entry in self._entries() if entry["Alive"]]
        used = sorted(filter(self.uses, found), key=lambda node: (node.name, node.id))
        if not used:
            raise ClusterError(
                "the cluster of Ray has no node left that can be used",
                "Start nodes with `ray start`, and run it again.",
            )
        return tuple(used)

    @property
    def has_head(self) -> bool:
        """Whether the head of the cluster answers."""
        try:
            self._entries()
        except ClusterError:
            return False
        return True

    def _entries(self) -> Sequence[Mapping[str, Any]]:
        """What the head says of the nodes. It is asked in a thread of its own, as it may end before it answers.

        Raises:
            ClusterError: it has ended, or does not answer.
        """
        address = self.ray.get_runtime_context().gcs_address
        try:
            touch(address)
            entries: Sequence[Mapping[str, Any]] = begin(self.ray.nodes, "nodes").result(ANSWERING)
        except TimeoutError as error:
            raise ClusterError("the head of the cluster of Ray does not answer", _AGAIN) from error
        except OSError as error:
            raise ClusterError(
                f"the head of the cluster of Ray, {address}, has ended: {reason_of(error)}", _AGAIN
            ) from error
        return entries

    def each(self, function: Callable[..., Any], *arguments: Any, gpus: float = 0.0) -> dict[Node, Any]:
        """Call a function on every node at the same time, and return what each returns.

        Args:
            function: importable there.
            arguments: of the function.
            gpus: that it needs; without any, it sees none.

        Raises:
            LensconvError: as the function raised it, with the node's name.
            ClusterError: a node died.
        """
        found = {node: self._pinned(node, function, *arguments, gpus=gpus) for node in self.nodes}
        return {node: self._taken(node, reference) for node, reference in found.items()}

    def _taken(self, node: Node, reference: Any) -> Any:
        """The result of a function on a node; errors name it."""
        try:
            return take(self.answers.wait(reference))
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
            if self.answers.is_stopping:
                raise Stopped
            actor = remote.options(scheduling_strategy="SPREAD").remote(shared_environment(), self.mark, self.software)
            hosted = Hosted(
                self.answers, actor, actor.make.remote(kind, arguments), self._forget, partial(self._tell, need)
            )
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

    def stop(self) -> None:
        """End all processes on nodes, so that every thread that waits for one of them ends."""
        with self._lock:
            self.answers.stop()
            found = list(self._hosted)
        for hosted in found:
            hosted.close()

    def _tell(self, need: Need) -> None:
        """Say what is waited for, once."""
        with self._lock:
            tell, self.tell = self.tell, lambda _: None
        gpus = f" and {need.gpus:g} GPUs" if need.gpus else ""
        tell(f"waiting for a node that has {need.cpus:g} CPUs{gpus} free for Ray, or loads slowly")

    def _forget(self, hosted: Hosted) -> None:
        with self._lock:
            self._hosted.discard(hosted)

    def clean(self) -> None:
        """Remove the temporary folders that ended processes have left on the nodes, as far as this is quick."""
        with suppress(self.ray.exceptions.RayError, ClusterError):
            found = [self._pinned(node, remove_marked, self.mark) for node in self.nodes]
            self.ray.wait(found, num_returns=len(found), timeout=_CLEANING)
