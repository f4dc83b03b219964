"""The parts of a local Hub, and questions to several of them at once."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterator

from converter.rehearsal.blobs import Blobs
from converter.rehearsal.database import Database
from converter.rehearsal.replies import Refusal
from converter.rehearsal.repos import Entry
from converter.rehearsal.settings import Account, HubSettings
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
        self.database = Database(folder)
        self.blobs = Blobs(folder)
        self.xet = XetStore(folder / "xet")
        self.endpoint = f"http://127.0.0.1:{port}"
        # Clients follow redirects to the same origin where they should only read them: files need another origin.
        self.files_endpoint = f"http://localhost:{port}"
        # A look-up by the hash takes the same time for any token.
        self._accounts = {_hash(account.token): account for account in settings.accounts}
        self._key = secrets.token_bytes(32)

    def account(self, token: str) -> Account | None:
        """Return the user who has a token."""
        return self._accounts.get(_hash(token))

    def signed(self, path: str) -> str:
        """Return an address of this Hub for files, whose signature serves in place of a token.

        Args:
            path: its path and query, percent-encoded.
        """
        return f"{self.files_endpoint}{path}{'&' if '?' in path else '?'}signature={self._sign(path)}"

    def check_signature(self, path: str) -> None:
        """Check the signature of an address that ``signed`` made.

        Args:
            path: its path and query, with the signature.

        Raises:
            Refusal: it is wrong.
        """
        signed, _, signature = path.rpartition("signature=")
        if not hmac.compare_digest(signature.encode(), self._sign(signed[:-1]).encode()):
            raise Refusal(403, "The address is not signed, or it was changed")

    def stored_size(self, sha256: str) -> int | None:
        """Return the bytes of an object; None if it is not stored."""
        size = self.blobs.size(sha256)
        if size is None and (file := self.xet.find(sha256)) is not None:
            return file.size
        return size

    def content(self, sha256: str, start: int, stop: int) -> Iterator[bytes]:
        """Return bytes of an object, in pieces; raise Refusal if it is not stored."""
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

    def _sign(self, text: str) -> str:
        return hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
