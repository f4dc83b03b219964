"""Writing the pictures of a command into a folder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from converter.checkpoint.writer import replace_file, write_error


def replace_pictures(folder: Path, contents: Mapping[str, bytes], pattern: re.Pattern[str]) -> None:
    """Write pictures, each whole or not at all, and then remove other pictures of earlier runs.

    Args:
        folder: where to write them; it is created.
        contents: by file name.
        pattern: matches the names of the pictures that an earlier run may have written.

    Raises:
        OutputError: a file cannot be written or removed.
        DiskError: the disk is full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            replace_file(folder / name, content)
        for file in sorted(folder.iterdir()):
            # A link is removed itself, not the file that it leads to.
            is_file = file.is_symlink() or file.is_file()
            if is_file and file.name not in contents and pattern.fullmatch(file.name):
                file.unlink()
    except OSError as error:
        raise write_error(folder, error) from error
