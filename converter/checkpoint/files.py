"""Reading files of users: never more than a limit, and never from a pipe."""

from __future__ import annotations

from pathlib import Path

from converter.errors import FileError, MissingInput, unreadable


def read_bounded(file: Path, limit: int, error: type[FileError]) -> bytes:
    """Read a whole file that should be short.

    Args:
        file: what to read.
        limit: the most bytes that it may have.
        error: what to raise for a longer file.

    Raises:
        MissingInput: it does not exist or cannot be read.
        FileError: it is longer.
    """
    try:
        # A pipe would block on open.
        if not file.is_file():
            raise MissingInput(file, "is a folder" if file.is_dir() else "no such file", "Check the path.")
        with file.open("rb") as stream:
            content = stream.read(limit + 1)
    except OSError as cause:
        raise unreadable(file, cause) from cause
    if len(content) > limit:
        raise error(file, f"is longer than {limit} bytes")
    return content
