"""The parts of a local Hub, and questions to several of them at once."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterator

from converter.rehearsal.blobs import Blobs
from converter.rehearsal.database import Database
from converter.rehearsal.history import Entry, History
from converter.rehearsal.replies import Refusal
from converter.rehearsal.settings import HubSettings
from converter.rehearsal.xet import XetStore


class Hub:
    """A local Hub.

    Args:
        settings: how it works.
        port: the port that it serves on.

    Raises:
        OutputError: its folder cannot be used.
    """

    def __init__(self, settings: HubSettings, port: int) -> None:
        self.settings = settings
        folder = settings.folder.resolve()
        self.database = Database(folder, settings.accounts)
        self.history = History(self.database)
        self.blobs = Blobs(folder)
        self.xet = XetStore(folder / "xet")
        self.endpoint = f"http://127.0.0.1:{port}"
        # Clients follow redirects to the same origin where they should only read them: files need another origin.
        self.files_endpoint = f"http://localhost:{port}"
        self._key = secrets.token_bytes(32)

    def sign(self, *words: object) -> str:
        """Sign an address of this Hub, which then needs no token."""
        return hmac.new(self._key, "\0".join(map(str, words)).encode(), hashlib.sha256).hexdigest()

    def check_signature(self, signature: str, *words: object) -> None:
        """Check the signature of an address.

        Raises:
            Refusal: it is wrong.
        """
        if not hmac.compare_digest(signature.encode(), self.sign(*words).encode()):
            raise Refusal(403, "The address is not signed, or it was changed")

    def stored_size(self, sha256: str) -> int | None:
        """Return the bytes of an object; None if it is not stored."""
        size = self.blobs.size(sha256)
        if size is None and (file := self.xet.find(sha256)) is not None:
            return file.size
        return size

    def content(self, sha256: str, start: int, stop: int) -> Iterator[bytes]:
        """Return bytes of an object, in pieces.

        Raises:
            Refusal: it is not stored.
        """
        if self.blobs.size(sha256) is not None:
            return self.blobs.read(sha256, start, stop)
        file = self.xet.find(sha256)
        if file is None:
            raise Refusal(404, "The object is not stored")
        return self.xet.read(file, start, stop)

    def text(self, entry: Entry | None) -> str:
        """Return a file that git keeps as text; empty if there is none."""
        if entry is None or entry.is_lfs or self.blobs.size(entry.sha256) is None:
            return ""
        return b"".join(self.blobs.read(entry.sha256, 0, entry.size)).decode("utf-8", "replace")
