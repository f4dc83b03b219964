"""Content by its sha256, in files. A file is there whole or not at all, whenever the process ends."""

from __future__ import annotations

import hashlib
import os
import secrets
from contextlib import suppress
from pathlib import Path

from converter.rehearsal.xet import flip_byte

#: Bytes read or written at once.
PIECE_BYTES = 4 * 2**20


class Draft:
    """A file on its way in: written and hashed piece by piece, kept under its name or thrown away.

    Args:
        path: where it is written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stream = path.open("xb", buffering=0)
        self._hash = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes | bytearray) -> None:
        """Append bytes."""
        view = memoryview(data)
        self._hash.update(view)
        self.size += len(view)
        while view:
            view = view[self._stream.write(view) :]

    @property
    def sha256(self) -> str:
        """The hash of what was written so far."""
        return self._hash.hexdigest()

    def keep(self, path: Path) -> None:
        """Put the file where it belongs."""
        self._stream.close()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path.replace(path)

    def discard(self) -> None:
        """Remove the file, unless it was kept."""
        self._stream.close()
        self._path.unlink(missing_ok=True)


class Blobs:
    """The folder of all content.

    Args:
        folder: is made if it is not there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "blobs"
        self._incoming = folder / "incoming"
        for place in (self._folder, self._incoming):
            place.mkdir(parents=True, exist_ok=True)
        for abandoned in self._incoming.glob("*.draft"):
            abandoned.unlink(missing_ok=True)

    def path(self, sha256: str) -> Path:
        """Where content is, or would be."""
        return self._folder / sha256[:2] / sha256

    def size(self, sha256: str) -> int | None:
        """Bytes of content; None if it is not there."""
        try:
            return self.path(sha256).stat().st_size
        except FileNotFoundError:
            return None

    def draft(self) -> Draft:
        """A file to be written."""
        return Draft(self._incoming / f"{secrets.token_hex(16)}.draft")

    def keep(self, draft: Draft) -> None:
        """Put a draft under its hash."""
        draft.keep(self.path(draft.sha256))

    def put(self, content: bytes) -> str:
        """Store content; gives its sha256."""
        sha256 = hashlib.sha256(content).hexdigest()
        if self.size(sha256) != len(content):
            draft = self.draft()
            try:
                draft.write(content)
                self.keep(draft)
            finally:
                draft.discard()
        return sha256

    def read(self, sha256: str, start: int = 0, size: int = -1) -> bytes:
        """Content, or a part of it.

        Raises:
            FileNotFoundError: it is not there.
        """
        with self.path(sha256).open("rb") as stream:
            stream.seek(start)
            return stream.read(size)

    def parts_file(self, sha256: str) -> Path:
        """The file that the parts of an upload are written into, each at its place."""
        return self._incoming / f"{sha256}.parts"

    def write_part(self, sha256: str, offset: int, data: bytes | bytearray) -> None:
        """Write bytes of a part at their place."""
        descriptor = os.open(self.parts_file(sha256), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            view = memoryview(data)
            while view:
                written = os.pwrite(descriptor, view, offset)
                view, offset = view[written:], offset + written
        finally:
            os.close(descriptor)

    def join_parts(self, sha256: str) -> bool:
        """Make a file of the parts of an upload, if they are all there and right; else throw them away."""
        parts = self.parts_file(sha256)
        try:
            with parts.open("rb") as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
        except FileNotFoundError:
            return self.size(sha256) is not None
        if found == sha256:
            self.path(sha256).parent.mkdir(parents=True, exist_ok=True)
            parts.replace(self.path(sha256))
            return True
        parts.unlink(missing_ok=True)
        return False

    def forget(self, sha256: str) -> None:
        """Lose content."""
        with suppress(FileNotFoundError):
            self.path(sha256).unlink()

    def flip_byte(self, sha256: str) -> None:
        """Damage content: change the byte in its middle.

        Raises:
            FileNotFoundError: it is not there.
        """
        path = self.path(sha256)
        flip_byte(path, path.stat().st_size // 2)
