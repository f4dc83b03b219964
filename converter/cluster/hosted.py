"""Objects in processes on nodes, as the process of the command sees them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from converter.cluster.answers import Answers
from converter.cluster.hosts import take
from converter.cluster.losses import Stopped

#: Seconds after which it is said what is waited for.
_SILENT = 20.0


@dataclass(eq=False)
class Hosted:
    """An object in a process on a node; a context manager that ends the process.

    Args:
        answers: waits for what it answers.
        actor: Ray's handle of its ``Host``; None once it has ended. A handle that outlives its connection ends another
            process in the next one, where Ray gives the same names again.
        making: Ray's reference for the making of the object; None once it is made.
        ended: is called when the process is to end.
        slow: is called again and again when making the object takes long.
    """

    answers: Answers
    actor: Any
    making: Any
    ended: Callable[[Hosted], object]
    slow: Callable[[], object] = lambda: None
    _closing: threading.Lock = field(default_factory=threading.Lock)

    def wait_until_made(self, is_wanted: Callable[[], bool] = lambda: True) -> None:
        """Wait until the object is made.

        Args:
            is_wanted: whether to wait on; if not, the making goes on.

        Raises: as ``Cluster.host``.
        """
        deadline = time.monotonic() + _SILENT

        def is_wanted_still() -> bool:
            if time.monotonic() > deadline:
                self.slow()
            return is_wanted()

        if self.making is not None:
            take(self.answers.wait(self.making, is_wanted_still))
            self.making = None

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method, and return what it returns.

        Raises:
            Lost: the process ended.
            LensconvError: as the method raised it.
        """
        return take(self.answers.wait(self._alive.call.remote(method, arguments)))

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
        yield from map(take, self.answers.each(self._alive.stream.options(**options).remote(method, arguments)))

    def close(self) -> None:
        """End the process."""
        with self._closing:
            actor, self.actor = self.actor, None
        if actor is not None:
            self.ended(self)
            self.answers.ray.kill(actor)

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
