"""Check that files are still those that were hashed, without reading them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from converter.errors import MalformedCheckpoint, unreadable


def file_states(files: Iterable[Path]) -> dict[str, list[int]]:
    """Return device, inode, size and time of change of files, by their paths.

    Raises:
        MissingInput: a file does not exist any more.
    """
    found = {}
    for file in files:
        try:
            status = file.stat()
        except OSError as error:
            raise unreadable(file, error) from error
        found[str(file.absolute())] = [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns]
    return found


def refuse_changed_files(states: Mapping[str, list[int]]) -> None:
    """Refuse files that were changed.

    Args:
        states: from ``file_states``.

    Raises:
        MissingInput: a file does not exist any more.
        MalformedCheckpoint: a file was changed or replaced.
    """
    found = file_states(map(Path, states))
    for name, state in states.items():
        if found[name] != state:
            raise MalformedCheckpoint(name, "changed while it was measured", hint="Measure again with --restart.")
