"""A repo on the Hub that is read in pieces, at one commit, and never downloaded.

Whatever a server sends is held to what was asked for: answers have a limit, ranges must be the ones requested, names
and sizes must be possible. The token goes to the Hub alone; the client drops it where an answer leads elsewhere.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from urllib.parse import quote, urlsplit

from converter.errors import HubError, printable
from converter.hub.failures import STRANGER_HINT
from converter.hub.places import HubPlace
from converter.hub.records import MAXIMUM_FILES, RemoteFile, parse_records
from converter.hub.retry import Retry

#: Bytes of an answer that lists files; a page of the Hub has 1000 of them, and takes 0.3 MB.
MAXIMUM_PAGE_BYTES = 16_000_000
#: Bytes of an answer that refuses, of which one line is shown.
_REFUSAL_BYTES = 65_536
#: Seconds and tries for one request: somebody is waiting.
_PATIENCE = 30.0
_ATTEMPTS = 5


class RemoteRepo:
    """The files of a repo at one commit. Open one with ``RemoteRepo.open``; any thread may read.

    Args:
        place: the repo at a commit.
        files: its files by path.
        requests: asks for them.
    """

    def __init__(self, place: HubPlace, files: Mapping[str, RemoteFile], requests: Requests) -> None:
        self.place = place
        self.files = files
        self.stopping = requests.stopping
        """While this is set, nothing that fails is tried again."""
        self._requests = requests

    @classmethod
    def open(
        cls, place: HubPlace, endpoint: str | None = None, token: str | bool | None = None, retry: Retry | None = None
    ) -> RemoteRepo:
        """Find out which commit a revision is, and which files it has.

        Args:
            place: the repo, at its main branch if it names no revision.
            endpoint: address of the Hub; that of huggingface_hub when None.
            token: what to prove who asks with; that of huggingface_hub when None, and when True even where it is not to
                be shown without being asked for.
            retry: how patient to be.

        Raises:
            HubError: there is no such repo or revision, it may not be read, the Hub cannot be reached, or what it
                lists no repo can hold.
            UsageError: no repo can have that name.
        """
        requests = Requests(endpoint, token, retry or Retry(_PATIENCE, attempts=_ATTEMPTS))
        base = f"/api/models/{place.repo_id}"
        revision = f"/revision/{quote(place.revision, safe='')}" if place.revision else ""
        # Everything else that the Hub knows about a model can be long.
        answer, _ = requests.json(str(place), f"{base}{revision}?expand=sha")
        commit = answer.get("sha") if isinstance(answer, dict) else None
        if not isinstance(commit, str) or not re.fullmatch(r"[0-9a-f]{40}", commit):
            raise HubError(f"{place}: the Hub names no commit", STRANGER_HINT)
        pinned = replace(place, revision=commit)
        tree = f"{base}/tree/{commit}"
        return cls(pinned, parse_records(pinned, _list_tree(pinned, tree, requests)), requests)

    @property
    def received_bytes(self) -> int:
        """How much has come from the network so far, without headers of HTTP."""
        return self._requests.received_bytes

    def where(self, path: str) -> str:
        """A file's address for messages."""
        return f"{self.place}/{printable(path)}"

    def read(self, path: str, start: int = 0, end: int | None = None) -> bytes:
        """Read a piece of a file.

        Args:
            path: one of ``files``.
            start: its first byte.
            end: the byte after its last one; the end of the file when None.

        Raises:
            HubError: the Hub refuses, cannot be reached, or sends something else than was asked for.
        """
        file = self.files[path]
        end = file.bytes if end is None else min(end, file.bytes)
        if start >= end:
            return b""
        address = f"/{self.place.repo_id}/resolve/{self.place.revision}/{quote(path)}"
        return self._requests.piece(self.where(path), address, start, end, file.bytes)


class Requests:
    """Bounded requests to a Hub.

    Args:
        endpoint: its address; that of huggingface_hub when None.
        token: what to prove who asks with; that of huggingface_hub when None.
        retry: how patient to be.
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
        """Ask for JSON.

        Returns: what it holds, and the query of the next page; empty when there is none.
        """

        def ask() -> tuple[Any, str]:
            with self._answer(what, path, {}) as response:
                content = self._take(response, MAXIMUM_PAGE_BYTES + 1)
                if len(content) > MAXIMUM_PAGE_BYTES:
                    raise HubError(f"{what}: the Hub answers with more than {MAXIMUM_PAGE_BYTES} bytes", STRANGER_HINT)
                # Only the query is taken over, so that no page can send the token elsewhere.
                following = urlsplit(response.links.get("next", {}).get("url", "")).query
                return _parse(what, content), following

        return self._retry.call(what, ask, is_fatal=lambda _: self.stopping.is_set())

    def piece(self, what: str, path: str, start: int, end: int, size: int) -> bytes:
        """Ask for the bytes from ``start`` to ``end`` of a file of ``size`` bytes."""

        def ask() -> bytes:
            with self._answer(what, path, {"Range": f"bytes={start}-{end - 1}"}) as response:
                skipped = _skipped_bytes(what, response, start, end, size)
                content = self._take(response, end - start + skipped)[skipped:]
            if len(content) != end - start:
                raise HubError(f"{what}: {len(content)} of {end - start} bytes have come", "Try again later.")
            return content

        return self._retry.call(what, ask, is_fatal=lambda _: self.stopping.is_set())

    @contextmanager
    def _answer(self, what: str, path: str, headers: Mapping[str, str]) -> Iterator[Any]:
        from huggingface_hub.utils import build_hf_headers, get_session  # type: ignore[attr-defined]

        # Compressed bytes could become any number of others.
        headers = {**build_hf_headers(token=self._token), "Accept-Encoding": "identity", **headers}
        url = self._endpoint + path
        # What the block leaves unread is not downloaded: leaving closes the connection.
        with get_session().stream("GET", url, headers=headers, timeout=self._timeout) as response:
            if response.status_code not in (200, 206):
                self._refuse(what, response)
            if _is_compressed(response):
                raise HubError(f"{what}: the answer is compressed, which was not asked for", STRANGER_HINT)
            yield response

    def _refuse(self, what: str, response: Any) -> None:
        """Raise what the client makes of a refusal, of which no more is read than can be of use."""
        from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]

        content = b"" if _is_compressed(response) else self._take(response, _REFUSAL_BYTES)
        headers = [(name, value) for name, value in response.headers.multi_items() if "content-" not in name.lower()]
        kind = response.headers.get("content-type", "")
        short = type(response)(
            response.status_code, headers=[*headers, ("Content-Type", kind)], content=content, request=response.request
        )
        hf_raise_for_status(short)
        raise HubError(f"{what}: the Hub answers with status {short.status_code}", STRANGER_HINT)

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
    """How many bytes come before those that were asked for, once what comes has been found to be the right file."""
    if response.status_code == 200:
        # A server that knows no ranges sends everything from the start, of which the beginning is taken.
        length = response.headers.get("content-length")
        if length is not None and length != str(size):
            raise HubError(f"{what}: has {size} bytes by the Hub's record, but {length} are sent")
        return start
    found = response.headers.get("content-range", "")
    if found.replace(" ", "").lower() != f"bytes{start}-{end - 1}/{size}":
        raise HubError(
            f"{what}: bytes {start}-{end - 1}/{size} were asked for, {printable(found) or 'others'} are sent",
            "The Hub's record and its storage disagree, or a proxy is in between: try again later.",
        )
    return 0


def _list_tree(place: HubPlace, path: str, requests: Requests) -> Iterator[Any]:
    """The Hub's records of a commit's files, page by page."""
    query, count = "recursive=true&expand=false", 0
    while query:
        page, query = requests.json(str(place), f"{path}?{query}")
        if not isinstance(page, list) or (query and not page):
            raise HubError(f"{place}: the Hub's list of files makes no sense", STRANGER_HINT)
        count += len(page)
        if count > MAXIMUM_FILES:
            raise HubError(f"{place}: holds more than {MAXIMUM_FILES} files and folders, which is no model")
        yield from page


def _parse(what: str, content: bytes) -> Any:
    try:
        return json.loads(content)
    except (json.JSONDecodeError, UnicodeDecodeError):
        # A page of a proxy, which may go away.
        raise
    except (ValueError, RecursionError) as error:
        raise HubError(f"{what}: the answer makes no sense", STRANGER_HINT) from error
