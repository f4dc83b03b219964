"""Work that several processes on nodes share: each takes what is left, and what is lost with one is taken again."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from converter.cluster.cluster import Cluster
from converter.cluster.hosted import Hosted
from converter.cluster.losses import Losses, Lost, Stopped
from converter.cluster.resources import Need
from converter.console import Progress

Item = TypeVar("Item")
Place = TypeVar("Place")


class Work(Generic[Item]):
    """Items to work on, in groups. Who has begun a group goes on with it, as another one takes time to prepare.

    Args:
        groups: the items by their group, in the order in which one worker takes them.
    """

    def __init__(self, groups: Mapping[str, Sequence[Item]]) -> None:
        self._left = {group: deque(items) for group, items in groups.items() if items}
        self._begun = set[str]()
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        """How many items nobody has taken."""
        return sum(map(len, self._left.values()))

    def take(self, last: str | None = None) -> tuple[str, Item] | None:
        """Take an item, with its group: if possible of the same group as the last one; None if nothing is left."""
        with self._lock:
            groups = [group for group, items in self._left.items() if items]
            if not groups:
                return None
            fresh = (group for group in groups if group not in self._begun)
            group = last if last in groups else next(fresh, max(groups, key=lambda group: len(self._left[group])))
            self._begun.add(group)
            return group, self._left[group].popleft()

    def put_back(self, group: str, item: Item) -> None:
        """Put an item back that was taken and not finished."""
        with self._lock:
            self._left[group].appendleft(item)

    def drop(self, group: str) -> list[Item]:
        """Take all items of a group that are left, which is not worked on any longer."""
        with self._lock:
            items, self._left[group] = self._left[group], deque()
            return list(items)


@dataclass(frozen=True)
class _Member(Generic[Place]):
    hosted: Hosted
    place: Place


class Crew(Generic[Place]):
    """Objects of one kind in processes on nodes, which share work. Each is kept for the next work.

    Args:
        cluster: where they are.
        need: what each process takes.
        most: how many processes there are at most.
        kind: class of the objects, importable there.
        arguments: of the class.
        placed: makes of such an object what the functions of ``run`` get.
    """

    def __init__(
        self,
        cluster: Cluster,
        need: Need,
        most: int,
        kind: Callable[..., Any],
        arguments: Sequence[Any],
        placed: Callable[[Hosted], Place],
    ) -> None:
        self._cluster = cluster
        self._need = need
        self._most = most
        self._kind = kind
        self._arguments = arguments
        self._placed = placed
        self._idle = list[_Member[Place]]()
        self._lock = threading.Lock()

    def run(self, work: Work[Item], function: Callable[[Place, Item], object], shown: Progress) -> None:
        """Call a function with every item, in one thread for each process.

        Args:
            work: the items.
            function: gets an object that only its thread uses, and an item; called again if the process ended.
            shown: refreshed meanwhile.

        Raises:
            ClusterError: several processes ended one after the other, or no node is left.
            LensconvError: as the function raised it.
        """

        def work_on(_number: int) -> None:
            losses = Losses()
            while work.size:
                self._use_one(work, function, losses)

        self._cluster.run(work_on, range(min(self._most, work.size)), refresh=shown.refresh)

    def close(self, method: str = "") -> None:
        """End all processes, after each has called a method of its object to free what it has, if one is named."""
        for member in self._idle:
            if method and member.hosted.making is None:
                with suppress(Lost, Stopped):
                    member.hosted.call(method)
            member.hosted.close()

    def _use_one(self, work: Work[Item], function: Callable[[Place, Item], object], losses: Losses) -> None:
        """Take items until none is left, or the process ends.

        Raises:
            Stopped: the work was stopped, or others finished it.
        """
        member = self._take()
        try:
            # If others finish the work meanwhile, it is for the next one. On a node that died it would never be made.
            member.hosted.wait_until_made(lambda: work.size > 0)
            group: str | None = None
            while (taken := work.take(group)) is not None:
                group, item = taken
                try:
                    function(member.place, item)
                except Lost:
                    work.put_back(group, item)
                    raise
                losses.reset()
        except Lost as loss:
            member.hosted.close()
            losses.note(loss)
        finally:
            if member.hosted.actor is not None:
                with self._lock:
                    self._idle.append(member)

    def _take(self) -> _Member[Place]:
        """An idle process, one that is made already if there is such a one, else a new one."""
        with self._lock:
            if self._idle:
                self._idle.sort(key=lambda member: member.hosted.making is not None)
                return self._idle.pop(0)
        hosted = self._cluster.prepare(self._need, self._kind, *self._arguments)
        return _Member(hosted, self._placed(hosted))
