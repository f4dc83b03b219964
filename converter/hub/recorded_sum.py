"""The checksum that the Hub has of a file, computed while its bytes arrive."""

from __future__ import annotations

import hashlib
from typing import Protocol

from converter.checkpoint.running_hash import RunningSha256
from converter.errors import CorruptDownload
from converter.hub.records import RemoteFile

CORRUPT_HINT = "No output was made of it. Run the command again."


class _Sum(Protocol):
    def update(self, data: memoryview, /) -> None: ...

    def hexdigest(self) -> str: ...


class RecordedSum:
    """Computes what the Hub has recorded: a sha256 of files in LFS or Xet, git's id of the others.

    Args:
        record: of the file.
        state: where an earlier one stopped; None to begin. Only a sha256 has one.

    Raises:
        ValueError: the state cannot be used.
    """

    def __init__(self, record: RemoteFile, state: str | None = None) -> None:
        self._record = record
        self._sum: _Sum
        if record.sha256 is not None:
            self._sum = RunningSha256(state)
            return
        if state is not None:
            raise ValueError("only a sha256 has a state")
        # git gives a file the sha1 of its kind, its length and its content.
        self._sum = hashlib.sha1(f"blob {record.bytes}\0".encode(), usedforsecurity=False)

    def update(self, data: memoryview) -> None:
        """Take the next bytes, which must be writable memory."""
        self._sum.update(data)

    def save(self) -> str | None:
        """The state, for another one; None where that cannot be had."""
        return self._sum.save() if isinstance(self._sum, RunningSha256) else None

    def check(self, where: str) -> None:
        """Compare the sum of all bytes with the record.

        Args:
            where: the file, for the message.

        Raises:
            CorruptDownload: they differ.
        """
        kind, wanted = ("sha256", self._record.sha256) if self._record.sha256 else ("id in git", self._record.git_sha1)
        found = self._sum.hexdigest()
        if found != wanted:
            reason = f"{kind} is {found} after the download, and {wanted} in the Hub's record"
            raise CorruptDownload(f"{where}: {reason}", CORRUPT_HINT)
