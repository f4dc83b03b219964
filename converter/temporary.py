"""Temporary folders that are removed even after their process was killed: by the next one that makes such a folder."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

#: Of these folders only; others are not locked.
_PREFIX = "lensconv-temporary-"
#: Follows the prefix in the names of this process's folders.
_marks: list[str] = []
#: Seconds during which a new folder may not be locked yet.
_NEW_SECONDS = 60.0


@contextmanager
def temporary_folder(parent: Path | None = None) -> Iterator[Path]:
    """Make a folder for the block, and remove those of processes that were killed.

    Args:
        parent: where to make it; the system's folder for temporary files when None.
    """
    parent = parent or Path(tempfile.gettempdir())
    _remove_abandoned(parent)
    with tempfile.TemporaryDirectory(
        prefix="".join([_PREFIX, *_marks]), dir=parent, ignore_cleanup_errors=True
    ) as name:
        # The system releases the lock of a process that ends in any way.
        descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield Path(name)
        finally:
            os.close(descriptor)


def mark_folders(mark: str) -> None:
    """Have this process put a mark into the names of its folders."""
    _marks[:] = [f"{mark}-"]


def remove_marked(mark: str) -> None:
    """Remove the folders of processes with this mark, which have ended."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}{mark}-*"):
        shutil.rmtree(folder, ignore_errors=True)


def _remove_abandoned(parent: Path) -> None:
    for folder in parent.glob(f"{_PREFIX}*"):
        # Someone else's folder, or one that another process has just removed.
        with suppress(OSError):
            status = folder.lstat()
            if status.st_uid != os.geteuid() or time.time() - status.st_mtime < _NEW_SECONDS:
                continue
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
            finally:
                os.close(descriptor)
