"""Requests to the Hub whose answers are compared with what was asked for.

They have a limit, ranges must be the requested ones, and sizes those of the Hub's record. The token is sent to the Hub
alone; the client drops it when a redirect leads to another host.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, TypeVar
from urllib.parse import urlsplit

from converter.errors import HubError
from converter.hub.failures import STRANGER_HINT
from converter.hub.hosts import file_host, sender
from converter.hub.retry import Retry

#: Most bytes of an answer that lists files; a page of the Hub has 1000 files in 0.3 MB.
MAXIMUM_PAGE_BYTES = 16_000_000
#: Most bytes that are read of a refusal, of which one line is shown.
_REFUSAL_BYTES = 65_536

T = TypeVar("T")


class Requests:
    """Requests to a Hub whose answers have a limit.

    Args:
        endpoint: its address; that of huggingface_hub when None.
        token: the user's token; that of huggingface_hub when None.
        retry: limits of tries and time.
        stopping: while this is set, requests that fail are not tried again.
    """

    def __init__(self, endpoint: str | None, token: str | bool | None, retry: Retry, stopping: threading.Event) -> None:
        from huggingface_hub import constants

        self._endpoint = (endpoint or constants.ENDPOINT).rstrip("/")
        self._timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        self._token = token
        self.retry = retry
        self._lock = threading.Lock()
        self.stopping = stopping
        self._open: set[Any] = set()
        self.received_bytes = 0

    def count(self, size: int) -> None:
        """Count bytes that were received. Any thread may call this."""
        with self._lock:
            self.received_bytes += size

    def known(self) -> tuple[str, str | bool]:
        """The address of the Hub, and the token that is sent to it; False for none."""
        from huggingface_hub import constants, get_token

        if isinstance(self._token, str) or self._token is False:
            return self._endpoint, self._token
        if self._token is None and constants.HF_HUB_DISABLE_IMPLICIT_TOKEN:
            return self._endpoint, False
        # It may be renewed, which is a request.
        return self._endpoint, self.call("looking for the token", get_token) or False

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

        return self.call(what, ask)

    def byte_range(self, what: str, path: str, start: int, end: int, size: int) -> bytes:
        """Request the bytes from ``start`` to ``end`` of a file of ``size`` bytes."""

        def ask() -> bytes:
            content = bytearray()
            with self.body(what, path, start, end, size) as (chunks, _):
                for chunk in chunks:
                    content += chunk
            if len(content) != end - start:
                raise HubError(f"{what}: {len(content)} of {end - start} bytes were received", "Try again later.")
            return bytes(content)

        return self.call(what, ask)

    @contextmanager
    def body(self, what: str, path: str, start: int, end: int, size: int) -> Iterator[tuple[Iterator[bytes], int]]:
        """Request the bytes from ``start`` to ``end`` of a file of ``size`` bytes, in one try.

        Yields: the bytes as they arrive, which may end early; and how many bytes before them the server sends, because
            it ignores ranges.
        """
        with self._answer(what, path, {"Range": f"bytes={start}-{end - 1}"}) as response:
            skipped = _skipped_bytes(what, response, start, end, size)
            yield self._received(response, skipped, end - start), skipped

    def halt(self) -> None:
        """Try nothing again until ``stopping`` is cleared, and break the connections that are open.

        A thread that waits for bytes that do not come then gets an exception at once, and not after the time limit.
        """
        self.stopping.set()
        with self._lock:
            for response in self._open:
                # The connection may have been closed meanwhile.
                with suppress(AttributeError, KeyError, OSError):
                    found = response.extensions["network_stream"].get_extra_info("socket")
                    found.shutdown(socket.SHUT_RDWR)

    def call(self, what: str, ask: Callable[[], T]) -> T:
        """Call a function that requests something, within the limits of tries and time."""
        return self.retry.call(what, ask, is_fatal=lambda _: self.stopping.is_set())

    @contextmanager
    def _answer(self, what: str, path: str, headers: Mapping[str, str]) -> Iterator[Any]:
        from huggingface_hub.utils import build_hf_headers, get_session  # type: ignore[attr-defined]

        # Compressed bytes could expand to any size.
        headers = {**build_hf_headers(token=self._token), "Accept-Encoding": "identity", **headers}
        url = self._endpoint + path
        # The rest of the body is not downloaded: leaving the block closes the connection.
        with get_session().stream("GET", url, headers=headers, timeout=self._timeout) as response:
            with self._lock:
                self._open.add(response)
            try:
                if response.status_code not in (200, 206):
                    self._refuse(what, response)
                if _is_compressed(response):
                    raise HubError(f"{what}: the answer is compressed, although the request forbids it", STRANGER_HINT)
                yield response
            finally:
                with self._lock:
                    self._open.discard(response)

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
        return b"".join(self._received(response, 0, limit))

    def _received(self, response: Any, skipped: int, limit: int) -> Iterator[bytes]:
        """An answer's body as it arrives, without its first bytes, and not more than a limit of those after them."""
        for chunk in response.iter_raw():
            self.count(len(chunk))
            dropped = min(skipped, len(chunk))
            wanted = chunk[dropped : dropped + limit]
            skipped -= dropped
            limit -= len(wanted)
            if wanted:
                yield wanted
            if not limit:
                return


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


def _parse(what: str, content: bytes) -> Any:
    try:
        return json.loads(content)
    except (json.JSONDecodeError, UnicodeDecodeError):
        # A page of a proxy; another try may succeed.
        raise
    except (ValueError, RecursionError) as error:
        raise HubError(f"{what}: the answer could not be understood", STRANGER_HINT) from error
