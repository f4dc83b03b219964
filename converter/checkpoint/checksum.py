"""sha256 of files."""

from __future__ import annotations

import hashlib
from pathlib import Path

from converter.console import Progress

#: Bytes read at a time.
_READ_BYTES = 1 << 22


def file_sha256(file: Path, progress: Progress | None = None) -> str | None:
    """sha256 of a file in hexadecimal digits; None if it is not a regular file.

    Args:
        file: what to read.
        progress: counts bytes.

    Raises:
        OSError: it cannot be read.
    """
    # A pipe would block on open.
    if not file.is_file():
        return None
    progress = progress or Progress()
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_READ_BYTES))
    with file.open("rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            digest.update(buffer[:count])
            progress.advance(count)
            progress.refresh()
    return digest.hexdigest()
