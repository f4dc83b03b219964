"""Reading files and folders of users: never more than a limit, and never from a pipe."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from converter.checkpoint.header import parse_json_object
from converter.errors import FileError, MalformedCheckpoint, MissingInput, unreadable

#: Limit for configs and indexes, which are read completely; real ones are far shorter.
MAXIMUM_JSON_BYTES = 64_000_000


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


def read_json(file: Path) -> dict[str, Any]:
    """Read a file that must contain one JSON object.

    Raises:
        MissingInput: it does not exist or cannot be read.
        MalformedCheckpoint: it contains something else.
    """
    return parse_json_object(read_bounded(file, MAXIMUM_JSON_BYTES, MalformedCheckpoint), file, what="its content")


def list_folder(folder: Path) -> list[Path]:
    """The files and folders in a folder, sorted by name.

    Raises:
        MissingInput: it cannot be read.
    """
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise unreadable(folder, error) from error


def is_plain_name(name: str) -> bool:
    """Whether a name from a file stays inside its folder, and has no half of a surrogate pair, as JSON may have."""
    return name not in ("", ".", "..") and not re.search("[/\\\\\0\ud800-\udfff]", name)


def holds(question: Callable[[], bool]) -> bool:
    """The answer about a path; no for a name that is too long, and for what may not be read."""
    try:
        return question()
    except OSError:
        return False
