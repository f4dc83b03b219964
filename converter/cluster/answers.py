"""Waiting for what Ray computes.

A thread that waits looks again and again whether it should stop, so Ctrl-C never waits for the cluster.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from converter.cluster.losses import Lost, Stopped
from converter.errors import ClusterError, first_line, printable

#: Seconds between two looks at whether to stop.
_POLL = 0.5
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


@dataclass
class Answers:
    """Waits for results, in any thread.

    Args:
        ray: the package, connected.
        check: is called now and then; raises an error if no result can come any longer.
    """

    ray: ModuleType
    check: Callable[[], object]
    _stopping: threading.Event = field(default_factory=threading.Event)

    @property
    def is_stopping(self) -> bool:
        """Whether the work is being stopped."""
        return self._stopping.is_set()

    def stop(self) -> None:
        """Have every thread that waits stop."""
        self._stopping.set()

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
            self.check()
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

    def each(self, generator: Any) -> Iterator[Any]:
        """Yield the results of a generator of Ray's as they come.

        Raises: as ``wait``.
        """
        while True:
            while not self.ray.wait([generator], timeout=_POLL)[0]:
                if self.is_stopping:
                    raise Stopped
                self.check()
            try:
                reference = next(generator)
            except StopIteration:
                return
            yield self.get(reference)
