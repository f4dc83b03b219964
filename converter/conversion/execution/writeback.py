"""Writing finished parts of a file to the disk while the rest is still being made.

An output that stays in the page cache until the last fsync takes its whole size in memory. The source's pages lose
that memory, and the system finds fresh pages far more slowly than it reuses old ones. So finished parts are written
back early and then dropped from the cache.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable

#: Bytes that are written back at a time: long enough for the disk, and small compared with other memory use.
STEP_BYTES = 32 << 20
#: Flags of Linux' sync_file_range: wait for what is on its way, begin, wait for the end.
_WAIT_BEFORE, _WRITE, _WAIT_AFTER = 1, 2, 4


class WriteBack:
    """Writes a file back from front to back, a step behind the calls of ``advance``.

    It does early what fsync would do at the end, and does not replace it; without it, fsync does everything.

    Args:
        descriptor: of the file, open for reading.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._dropped = 0
        self._begun = 0
        self._sync_file_range: Callable[..., int] | None = getattr(ctypes.CDLL(None), "sync_file_range", None)

    def advance(self, position: int) -> None:
        """Say that everything before a position is finished and not needed any more."""
        if position - self._begun < STEP_BYTES:
            return
        self._sync(self._begun, position, _WRITE)
        self._sync(self._dropped, self._begun, _WAIT_BEFORE | _WRITE | _WAIT_AFTER)
        if self._begun > self._dropped:
            os.posix_fadvise(self._descriptor, self._dropped, self._begun - self._dropped, os.POSIX_FADV_DONTNEED)
        self._dropped, self._begun = self._begun, position

    def _sync(self, start: int, stop: int, flags: int) -> None:
        # fsync, which runs before the output appears, reports errors of the disk again.
        if stop > start and self._sync_file_range is not None:
            self._sync_file_range(
                self._descriptor, ctypes.c_int64(start), ctypes.c_int64(stop - start), ctypes.c_uint(flags)
            )
