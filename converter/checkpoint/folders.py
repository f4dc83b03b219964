"""Folder operations that the standard library lacks: exchange two in one step, sync their names, find mounts."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
from collections.abc import Callable, Collection
from pathlib import Path

from converter.checkpoint.writer import writing

#: Flags of Linux' renameat2.
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
_AT_FDCWD = -100


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def inode_of(path: Path) -> tuple[int, int] | None:
    """Device and inode of a path, which a rename keeps; None when nothing is there."""
    try:
        status = path.stat(follow_symlinks=False)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def find_mount(folder: Path) -> Path | None:
    """The folder itself or one below it on which a file system is mounted; None if there is none.

    ``Path.is_mount`` compares devices, and so misses a folder that is mounted from elsewhere on the same device.

    Raises:
        OSError: a folder cannot be examined.
    """
    outside = _mount_number(folder.parent)
    found = (Path(parent) for parent, _, _ in os.walk(folder))
    return next((place for place in found if _mount_number(place) != outside), None)


def _mount_number(folder: Path) -> str:
    descriptor = os.open(folder, os.O_PATH | os.O_CLOEXEC)
    try:
        (number,) = re.findall(r"^mnt_id:\s*(\d+)$", Path(f"/proc/self/fdinfo/{descriptor}").read_text(), re.MULTILINE)
    finally:
        os.close(descriptor)
    return str(number)


def rename_folder(source: Path, target: Path, flag: int) -> None:
    """Rename a folder without replacing another, or exchange two folders; in one step where the system can.

    Raises:
        OSError: the system refuses.
    """
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is not None:
        if renameat2(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flag) == 0:
            return
        code = ctypes.get_errno()
        if code not in (errno.ENOSYS, errno.EINVAL):
            raise OSError(code, os.strerror(code), str(target))
    if flag == RENAME_EXCHANGE:
        target.rename(source.with_name("replaced"))
    source.rename(target)


def remove_in_order(folder: Path, order: Callable[[Path], int]) -> None:
    """Remove a folder with all that is in it.

    Args:
        folder: which one.
        order: says of a file when it is removed; those with the highest number come last.

    Raises:
        OSError: the system refuses.
    """
    files = [Path(parent, name) for parent, _, names in os.walk(folder) for name in names]
    for file in sorted(files, key=order):
        file.unlink()
    shutil.rmtree(folder)


def remove_all_but(folder: Path, wanted: Collection[Path]) -> None:
    """Remove files that an interrupted run left and that are not wanted; the source may no longer have them.

    Raises:
        OutputError: the system refuses.
    """
    with writing(folder):
        for parent, _, files in os.walk(folder, topdown=False):
            for file in (Path(parent) / name for name in files):
                if file not in wanted:
                    file.unlink()
            if Path(parent) != folder and not any(Path(parent).iterdir()):
                Path(parent).rmdir()
