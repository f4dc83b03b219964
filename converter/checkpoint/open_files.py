"""Files that stay open between two uses, but never so many that the system refuses the next one."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: Files that stay open while no thread uses them, at most. A checkpoint may have more shards than a process may open
#: files: the limit is often 1024, and the shards of some models are small.
IDLE_FILES = 8


class OpenFiles:
    """Opens files on demand, and keeps those that were used last open; any thread may call it.

    Args:
        flags: how to open them, as for ``os.open``.
        synced: whether a file is forced to the disk before it is closed. An error of a disk that is busy with a file
            that nobody has open may be reported to nobody.
    """

    def __init__(self, flags: int, *, synced: bool = False) -> None:
        self._flags = flags | os.O_CLOEXEC
        self._synced = synced
        #: Files that no thread uses, in the order of their last use.
        self._idle: list[tuple[Path, int]] = []
        self._lock = threading.Lock()

    @contextmanager
    def opened(self, file: Path) -> Iterator[int]:
        """Give this thread alone a descriptor of a file, for the duration of the block.

        Raises:
            OSError: the file cannot be opened, or another one that is closed for it cannot be forced to the disk.
        """
        with self._lock:
            found = [entry for entry in self._idle if entry[0] == file]
            if found:
                # The one that was used last, so that others of the same file grow old.
                self._idle.remove(found[-1])
        descriptor = found[-1][1] if found else os.open(file, self._flags, 0o666)
        try:
            yield descriptor
        finally:
            with self._lock:
                self._idle.append((file, descriptor))
                oldest = self._idle.pop(0)[1] if len(self._idle) > IDLE_FILES else None
            if oldest is not None:
                self._close(oldest)

    def _close(self, descriptor: int) -> None:
        try:
            if self._synced:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Close all files; none is forced to the disk."""
        while self._idle:
            os.close(self._idle.pop()[1])
