"""A limit on the bytes that are in memory at one time, shared by all workers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class MemoryBudget:
    """Shares out bytes up to a limit, first come, first served.

    Args:
        total: the most bytes in use at a time.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self._used = 0
        self._freed = threading.Condition()
        # A thread that waits for a large share holds this lock, so that small shares do not overtake it for ever.
        self._turn = threading.Lock()

    @contextmanager
    def share(self, size: int) -> Iterator[None]:
        """Hold a share while the block runs; a share above the limit is held alone."""
        size = min(size, self.total)
        with self._turn, self._freed:
            self._freed.wait_for(lambda: self._used + size <= self.total)
            self._used += size
        try:
            yield
        finally:
            with self._freed:
                self._used -= size
                self._freed.notify()
