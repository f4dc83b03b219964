"""Reading of files that must be short, whoever wrote them."""

from __future__ import annotations

from pathlib import Path

from converter.errors import FileError, MissingInput, unreadable


def read_small_file(file: Path, limit: int, error: type[FileError]) -> bytes:
    """Read a whole file, but never more than a limit.

    Args:
        file: a regular file; a pipe or a device is not opened.
        limit: most bytes that it may have.
        error: what to raise for a file that is longer.

    Raises:
        MissingInput: it does not exist, is not a regular file, or cannot be read.
        FileError: it is longer.
    """
    try:
        if not file.is_file():
            raise MissingInput(file, "is a folder" if file.is_dir() else "no such file", "Check the path.")
        with file.open("rb") as stream:
            content = stream.read(limit + 1)
    except OSError as cause:
        raise unreadable(file, cause) from cause
    if len(content) > limit:
        raise error(file, f"is longer than {limit} bytes")
    return content
