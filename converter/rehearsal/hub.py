"""The parts of a local Hub in one place, and what is asked of several of them at once."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path

import anyio.to_thread

from converter.rehearsal.blobs import PIECE_BYTES, Blobs
from converter.rehearsal.database import Database
from converter.rehearsal.faults import Faults
from converter.rehearsal.history import History, Repo
from converter.rehearsal.replies import Refusal
from converter.rehearsal.settings import HubSettings
from converter.rehearsal.traffic import Traffic
from converter.rehearsal.xet import XetFile, XetStore


class Hub:
    """A local Hub.

    Args:
        settings: how it works.
        port: where it is reached.

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
        self.faults = Faults()
        self.traffic = Traffic()
        self.endpoint = f"http://127.0.0.1:{port}"
        # Clients follow a redirect to the same origin where they should only read it, so files have another one.
        self.files_endpoint = f"http://localhost:{port}"
        self._key = self.database.signing_key()

    def close(self) -> None:
        """Let go of the folder."""
        self.database.close()

    def sign(self, *words: object) -> str:
        """A proof that this Hub made an address, which then needs no token."""
        return hmac.new(self._key, "\0".join(map(str, words)).encode(), hashlib.sha256).hexdigest()

    def check_signature(self, signature: str, *words: object) -> None:
        """Check such a proof.

        Raises:
            Refusal: it is wrong.
        """
        if not hmac.compare_digest(signature.encode(), self.sign(*words).encode()):
            raise Refusal(403, "The address is not signed, or it was changed")

    def xet_file(self, sha256: str) -> XetFile | None:
        """The file with this content, if it came over Xet and was not forgotten since."""
        file = self.xet.find(sha256)
        if file is None:
            return None
        row = self.database.row("SELECT at_ns FROM forgotten WHERE sha256 = ?", sha256)
        return file if row is None or file.described_at > row["at_ns"] else None

    def stored_size(self, sha256: str) -> int | None:
        """Bytes of an object; None if it is not stored."""
        size = self.blobs.size(sha256)
        if size is None and (file := self.xet_file(sha256)) is not None:
            return file.size
        return size

    def readme(self, repo: Repo, commit: str) -> str:
        """The card of a commit; empty if there is none."""
        return self.text(repo, commit, "README.md")

    def text(self, repo: Repo, commit: str, path: str) -> str:
        """A small file that git keeps, as text; empty if there is none."""
        entry = self.history.entry(repo, commit, path)
        if entry is None or entry.is_lfs:
            return ""
        with suppress(FileNotFoundError):
            return self.blobs.read(entry.sha256).decode("utf-8", "replace")
        return ""

    def content(self, sha256: str, start: int, stop: int) -> AsyncIterator[bytes]:
        """Bytes of an object, in pieces.

        Raises:
            Refusal: it is not stored.
        """
        if self.blobs.size(sha256) is not None:
            return _in_threads(lambda: _pieces(self.blobs.path(sha256), start, stop))
        file = self.xet_file(sha256)
        if file is None:
            raise Refusal(404, "The object is not stored")
        return _in_threads(lambda: self.xet.read(file, start, stop))

    def flip_byte(self, sha256: str) -> None:
        """Damage an object.

        Raises:
            Refusal: it is not stored.
        """
        file = self.xet_file(sha256)
        if self.blobs.size(sha256) is None and file is None:
            raise Refusal(404, "The object is not stored")
        if self.blobs.size(sha256) is not None:
            self.blobs.flip_byte(sha256)
        if file is not None:
            self.xet.flip_byte(file)

    def forget(self, sha256: str, moment: int) -> None:
        """Lose an object.

        Args:
            moment: now, in nanoseconds; over Xet it is stored again when it is described again.
        """
        self.blobs.forget(sha256)
        with self.database.change() as connection:
            connection.execute("INSERT OR REPLACE INTO forgotten VALUES (?, ?)", (sha256, moment))

    def check_quota(self, repo: Repo, more: int) -> None:
        """Check that a namespace may keep so many bytes more in private repos.

        Raises:
            Refusal: it may not.
        """
        quota = self.database.fact("private_quota")
        if repo.private and quota and self.history.private_bytes(repo.owner) + more > int(quota):
            raise Refusal(
                403,
                "Private repository storage limit reached, please upgrade your plan to increase your private storage "
                "limit.",
            )


def _pieces(path: Path, start: int, stop: int) -> Iterator[bytes]:
    with path.open("rb") as stream:
        stream.seek(start)
        while start < stop and (piece := stream.read(min(PIECE_BYTES, stop - start))):
            start += len(piece)
            yield piece


async def _in_threads(make: Callable[[], Iterator[bytes]]) -> AsyncIterator[bytes]:
    """What an iterator gives, each piece made in a thread."""
    pieces = make()
    while piece := await anyio.to_thread.run_sync(next, pieces, b""):
        yield piece
