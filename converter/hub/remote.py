"""A repo on the Hub that is read by ranges, at one commit, and not downloaded.

Answers are compared with the request: they have a limit, ranges must be the requested ones, names and sizes must be
possible. The token is sent to the Hub alone; the client drops it when a redirect leads to another host.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Self, TypeVar
from urllib.parse import quote, urlsplit

from converter.errors import HubError, printable
from converter.hub.addresses import HubAddress
from converter.hub.failures import STRANGER_HINT
from converter.hub.hosts import file_host, sender
from converter.hub.records import MAXIMUM_FILES, RemoteFile, parse_records
from converter.hub.retry import Retry

#: Most bytes of an answer that lists files; a page of the Hub has 1000 files in 0.3 MB.
MAXIMUM_PAGE_BYTES = 16_000_000
#: Most bytes that are read of a refusal, of which one line is shown.
_REFUSAL_BYTES = 65_536
#: Time limit in seconds and tries of one request: a person is waiting.
_TIME_LIMIT = 30.0
_ATTEMPTS = 5

T = TypeVar("T")


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
        requests = Requests(endpoint, token, retry or Retry(_TIME_LIMIT, attempts=_ATTEMPTS))
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
        route = f"/{self.address.repo_id}/resolve/{self.address.revision}/{quote(path)}"
        return self._requests.byte_range(self.where(path), route, start, end, size)


class Requests:
    """Requests to a Hub whose answers have a limit.

    Args:
        endpoint: its address; that of huggingface_hub when None.
        token: the user's token; that of huggingface_hub when None.
        retry: limits of tries and time.
    """

    def __init__(self, endpoint: str | None, token: str | bool | None, retry: Retry) -> None:
        from huggingface_hub import constants

        self._endpoint = (endpoint or constants.ENDPOINT).rstrip("/")
        self._timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        self._token = token
        self._retry = retry
        self._lock = threading.Lock()
        self.stopping = threading.Event()
        self.received_bytes = 0

    def json(self, what: str, path: str) -> tuple[Any, str]:
        """Request JSON.

        Returns: its content, and the query of the next page; empty if there is none.
        """

        def ask() -> tuple[Any, str]:
            with self._answer(what, path, {}) as response:
                content = self._take(response, MAXIMUM_PAGE_BYTES + 1)
                if len(content) > MAXIMUM_PAGE_BYTES:
                    raise HubError(f"{what}: the Hub answers with more than {MAXIMUM_PAGE_BYTES} bytes", STRANGER_HINT)
                # Only the query is used, so that no page can send the token to another host.
                following = urlsplit(response.links.get("next", {}).get("url", "")).query
                return _parse(what, content), following

        return self._call(what, ask)

    def byte_range(self, what: str, path: str, start: int, end: int, size: int) -> bytes:
        """Request the bytes from ``start`` to ``end`` of a file of ``size`` bytes."""

        def ask() -> bytes:
            with self._answer(what, path, {"Range": f"bytes={start}-{end - 1}"}) as response:
                skipped = _skipped_bytes(what, response, start, end, size)
                content = self._take(response, end - start + skipped)[skipped:]
            if len(content) != end - start:
                raise HubError(f"{what}: {len(content)} of {end - start} bytes were received", "Try again later.")
            return content

        return self._call(what, ask)

    def _call(self, what: str, ask: Callable[[], T]) -> T:
        return self._retry.call(what, ask, is_fatal=lambda _: self.stopping.is_set())

    @contextmanager
    def _answer(self, what: str, path: str, headers: Mapping[str, str]) -> Iterator[Any]:
        from huggingface_hub.utils import build_hf_headers, get_session  # type: ignore[attr-defined]

        # Compressed bytes could expand to any size.
        headers = {**build_hf_headers(token=self._token), "Accept-Encoding": "identity", **headers}
        url = self._endpoint + path
        # The rest of the body is not downloaded: leaving the block closes the connection.
        with get_session().stream("GET", url, headers=headers, timeout=self._timeout) as response:
            if response.status_code not in (200, 206):
                self._refuse(what, response)
            if _is_compressed(response):
                raise HubError(f"{what}: the answer is compressed, although the request forbids it", STRANGER_HINT)
            yield response

    def _refuse(self, what: str, response: Any) -> None:
        """Raise the client's exception for a refusal, with the beginning of its body."""
        from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]

        content = b"" if _is_compressed(response) else self._take(response, _REFUSAL_BYTES)
        headers = [(name, value) for name, value in response.headers.multi_items() if "content-" not in name.lower()]
        kind = response.headers.get("content-type", "")
        short = type(response)(
            response.status_code, headers=[*headers, ("Content-Type", kind)], content=content, request=response.request
        )
        hf_raise_for_status(short)
        raise HubError(f"{what}: {sender(file_host(short))} answers with status {short.status_code}", STRANGER_HINT)

    def _take(self, response: Any, limit: int) -> bytes:
        """The beginning of an answer's body."""
        content = bytearray()
        for chunk in response.iter_raw():
            content += chunk
            with self._lock:
                self.received_bytes += len(chunk)
            if len(content) >= limit:
                break
        return bytes(content[:limit])


def _is_compressed(response: Any) -> bool:
    return response.headers.get("content-encoding", "").lower() not in ("", "identity")


def _skipped_bytes(what: str, response: Any, start: int, end: int, size: int) -> int:
    """Bytes before the requested ones, after a check that the answer is from the right file."""
    if response.status_code == 200:
        # A server without ranges sends the whole file, of which the beginning is taken.
        length = response.headers.get("content-length")
        if length is not None and length != str(size):
            found = f"{sender(file_host(response))} sends {length}"
            raise HubError(f"{what}: has {size} bytes according to the Hub's record, but {found}", STRANGER_HINT)
        return start
    found = response.headers.get("content-range", "")
    if found.replace(" ", "").lower() != f"bytes{start}-{end - 1}/{size}":
        raise HubError(
            f"{what}: bytes {start}-{end - 1}/{size} were requested, but {sender(file_host(response))} sends "
            f"{found or 'other bytes'}",
            "The Hub's record and its storage disagree, or a proxy interferes: try again later.",
        )
    return 0


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


def _parse(what: str, content: bytes) -> Any:
    try:
        return json.loads(content)
    except (json.JSONDecodeError, UnicodeDecodeError):
        # A page of a proxy; another try may succeed.
        raise
    except (ValueError, RecursionError) as error:
        raise HubError(f"{what}: the answer could not be understood", STRANGER_HINT) from error
