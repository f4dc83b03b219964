"""A repo on the Hub that is read by ranges or in order, at one commit, and not downloaded."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self
from urllib.parse import quote

from converter.console import SILENT, Reporter
from converter.errors import HubError, printable
from converter.hub.addresses import HubAddress
from converter.hub.failures import STRANGER_HINT
from converter.hub.file_stream import FileStream
from converter.hub.records import MAXIMUM_FILES, RemoteFile, parse_records
from converter.hub.requests import Requests
from converter.hub.retry import Retry

#: Time limit in seconds and tries of one request: a person is waiting.
_TIME_LIMIT = 30.0
_ATTEMPTS = 5


class RemoteRepo:
    """The files of a repo at one commit. Open one with ``RemoteRepo.open``; any thread may read.

    Args:
        address: the repo at a commit.
        files: its files by path.
        requests: requests them.
    """

    def __init__(self, address: HubAddress, files: Mapping[str, RemoteFile], requests: Requests) -> None:
        self.address = address
        self.files = files
        self.stopping = requests.stopping
        """While this is set, requests that fail are not tried again."""
        self._requests = requests

    @classmethod
    def open(
        cls,
        address: HubAddress,
        endpoint: str | None = None,
        token: str | bool | None = None,
        retry: Retry | None = None,
    ) -> Self:
        """Ask the Hub which commit a revision is, and which files it has.

        Args:
            address: the repo, at its main branch if it names no revision.
            endpoint: address of the Hub; that of huggingface_hub when None.
            token: the user's token; that of huggingface_hub when None, and when True even if the settings say that it
                is sent on request only.
            retry: limits of tries and time.

        Raises:
            HubError: the repo or the revision does not exist, it may not be read, the Hub cannot be reached, or it
                lists files that no repo can have.
            UsageError: a repo cannot have this name.
        """
        stopping = threading.Event()
        retry = retry or Retry(_TIME_LIMIT, attempts=_ATTEMPTS, sleep=stopping.wait)
        requests = Requests(endpoint, token, retry, stopping)
        base = f"/api/models/{address.repo_id}"
        revision = f"/revision/{quote(address.revision, safe='')}" if address.revision else ""
        # All that the Hub knows about a model can be long.
        answer, _ = requests.json(str(address), f"{base}{revision}?expand=sha")
        commit = answer.get("sha") if isinstance(answer, dict) else None
        if not isinstance(commit, str) or not re.fullmatch(r"[0-9a-f]{40}", commit):
            raise HubError(f"{address}: the Hub's answer contains no commit id", STRANGER_HINT)
        pinned = replace(address, revision=commit)
        tree = f"{base}/tree/{commit}"
        return cls(pinned, parse_records(pinned, _list_tree(pinned, tree, requests)), requests)

    @property
    def received_bytes(self) -> int:
        """Bytes that have been received so far, without headers of HTTP."""
        return self._requests.received_bytes

    def count_received(self, size: int) -> None:
        """Add bytes that another process received. Any thread may call this."""
        self._requests.count(size)

    def known(self) -> KnownRepo:
        """What another process needs to read the same repo, without a request for what is known.

        Raises:
            HubError: the user's token cannot be renewed.
        """
        return KnownRepo(self.address, self.files, *self._requests.known())

    def halt(self) -> None:
        """Stop requests that run, and try nothing again until ``stopping`` is cleared. Any thread may call this."""
        self._requests.halt()

    def be_patient(self, reporter: Reporter) -> None:
        """Ask again for minutes if the Hub does not answer, and not for seconds only.

        Args:
            reporter: is told that it does not.
        """
        self._requests.retry = Retry(sleep=self.stopping.wait, reporter=reporter)

    def where(self, path: str) -> str:
        """A file's address for messages."""
        return f"{self.address}/{printable(path)}"

    def read(self, path: str, start: int = 0, end: int | None = None) -> bytes:
        """Read a range of a file.

        Args:
            path: one of ``files``.
            start: its first byte.
            end: the byte after its last one; the end of the file when None.

        Raises:
            HubError: the Hub refuses, cannot be reached, or sends another range.
        """
        size = self.files[path].bytes
        end = size if end is None else min(end, size)
        if start >= end:
            return b""
        return self._requests.byte_range(self.where(path), self._route(path), start, end, size)

    def stream(self, path: str, start: int = 0, reporter: Reporter = SILENT) -> FileStream:
        """Open a file to read it in order, from a byte to its end.

        Args:
            path: one of ``files``.
            start: the first byte.
            reporter: is told if the server ignores ranges.
        """
        return FileStream(self._requests, self.where(path), self._route(path), start, self.files[path].bytes, reporter)

    def _route(self, path: str) -> str:
        return f"/{self.address.repo_id}/resolve/{self.address.revision}/{quote(path)}"


@dataclass(frozen=True)
class KnownRepo:
    """A repo at one commit, with all that is needed to read it; can be pickled."""

    address: HubAddress
    files: Mapping[str, RemoteFile]
    endpoint: str
    token: str | bool = field(repr=False)
    """False for none."""

    def open(self) -> RemoteRepo:
        """The repo, which is patient; nothing is requested yet."""
        stopping = threading.Event()
        requests = Requests(self.endpoint, self.token, Retry(sleep=stopping.wait), stopping)
        return RemoteRepo(self.address, self.files, requests)


def _list_tree(address: HubAddress, path: str, requests: Requests) -> Iterator[Any]:
    """The Hub's records of a commit's files, page by page."""
    query, count = "recursive=true&expand=false", 0
    while query:
        page, query = requests.json(str(address), f"{path}?{query}")
        if not isinstance(page, list) or (query and not page):
            raise HubError(f"{address}: the Hub's list of files could not be understood", STRANGER_HINT)
        count += len(page)
        if count > MAXIMUM_FILES:
            raise HubError(f"{address}: has more than {MAXIMUM_FILES} files and folders; no model has so many")
        yield from page
