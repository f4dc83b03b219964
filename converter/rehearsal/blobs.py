"""Content by its sha256, in files. A file is complete or absent, whenever the process ends."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

#: Bytes read or written at once.
PIECE_BYTES = 4 * 2**20


class Draft:
    """A file that is being uploaded: written and hashed piece by piece, then kept or discarded.

    Args:
        path: its temporary path.
    """

    def __init__(self, path: Path) -> None:
        path.touch()
        self.path = path
        self._hash = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes | bytearray) -> None:
        """Append bytes."""
        self._hash.update(data)
        self.size += len(data)
        with self.path.open("ab") as stream:
            stream.write(data)

    @property
    def sha256(self) -> str:
        """The hash of the bytes that were written so far."""
        return self._hash.hexdigest()

    def close(self) -> None:
        """Remove the file, unless it was kept."""
        self.path.unlink(missing_ok=True)


class Blobs:
    """The folder of all content.

    Args:
        folder: is made if it does not exist.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "blobs"
        self._incoming = folder / "incoming"
        for path in (self._folder, self._incoming):
            path.mkdir(parents=True, exist_ok=True)
        for abandoned in self._incoming.glob("*.draft"):
            abandoned.unlink(missing_ok=True)

    def path(self, sha256: str) -> Path:
        """Return the file of some content, whether it exists or not."""
        return self._folder / sha256[:2] / sha256

    def size(self, sha256: str) -> int | None:
        """Return the bytes of some content; None if it is not stored."""
        try:
            return self.path(sha256).stat().st_size
        except FileNotFoundError:
            return None

    def draft(self) -> Draft:
        """Return a file to be written."""
        return Draft(self._incoming / f"{secrets.token_hex(16)}.draft")

    def keep(self, path: Path, sha256: str) -> None:
        """Store a file that is complete, such as a draft's."""
        self.path(sha256).parent.mkdir(parents=True, exist_ok=True)
        path.replace(self.path(sha256))

    def put(self, content: bytes) -> None:
        """Store content, unless it is stored."""
        if self.size(hashlib.sha256(content).hexdigest()) == len(content):
            return
        with closing(self.draft()) as draft:
            draft.write(content)
            self.keep(draft.path, draft.sha256)

    def read(self, sha256: str, start: int, stop: int) -> Iterator[bytes]:
        """Return the bytes of some content, in pieces.

        Raises:
            FileNotFoundError: it is not stored.
        """
        with self.path(sha256).open("rb") as stream:
            stream.seek(start)
            while start < stop and (piece := stream.read(min(PIECE_BYTES, stop - start))):
                start += len(piece)
                yield piece

    def write_part(self, sha256: str, offset: int, data: bytes | bytearray) -> None:
        """Write bytes of an upload that comes in parts."""
        self._parts(sha256).touch()
        with self._parts(sha256).open("r+b") as stream:
            stream.seek(offset)
            stream.write(data)

    def join_parts(self, sha256: str) -> bool:
        """Store the parts of an upload as one file if their sha256 is right; otherwise remove them."""
        parts = self._parts(sha256)
        try:
            with parts.open("rb") as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
        except FileNotFoundError:
            return self.size(sha256) is not None
        if found == sha256:
            self.keep(parts, sha256)
        else:
            parts.unlink(missing_ok=True)
        return found == sha256

    def _parts(self, sha256: str) -> Path:
        return self._incoming / f"{sha256}.parts"
