"""A local Hub behind a link that carries so many bits a second, over all connections together, and counts bytes.

It runs in a process of its own (``python -m scripts.slow_hub``), which scripts control over HTTP.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Message, Receive, Scope, Send

from converter.rehearsal.application import make_application
from converter.rehearsal.hub import Hub
from converter.rehearsal.process import RunningHub, running_hub
from converter.rehearsal.server import main
from converter.rehearsal.settings import HubSettings
from tests.hubs import ask

_CONTROL = "/_link"
#: Bytes that one connection sends before another one may: 21 ms of 100 Mbit/s, 2 ms of 1000 Mbit/s.
_PIECE_BYTES = 256 * 1024
#: Seconds by which the link may be late and still catch up. The clock of an event loop is that inexact; a client that
#: reads too slowly for longer has lost the time, as on a real link.
_LATENESS = 0.02
#: The data begins after so many bytes: before it come lists of files and headers.
_FIRST_BYTES = 1_000_000


class Link:
    """What all connections share."""

    def __init__(self) -> None:
        self.restart(None)

    def restart(self, mbit: float | None) -> None:
        """Set the speed, in 10^6 bits a second, None for as fast as possible; and begin to count."""
        self._bytes_per_s = mbit * 1e6 / 8 if mbit else None
        self._free = 0.0
        self.sent_bytes = 0
        self.bytes_before = 0
        """Those before the data."""
        self.began: float | None = None
        """When the data began, by the monotonic clock of the machine; None if none was sent."""
        self.ended = 0.0
        """When the last byte was sent."""

    async def wait(self, count: int) -> None:
        """Wait until the link has carried so many bytes more."""
        now = time.monotonic()
        if self._bytes_per_s is not None:
            self._free = max(self._free, now - _LATENESS) + count / self._bytes_per_s
            if self._free > now:
                await asyncio.sleep(self._free - now)

    def count(self, count: int) -> None:
        """Note that so many bytes were sent."""
        self.sent_bytes += count
        self.ended = time.monotonic()
        if self.began is None and self.sent_bytes >= _FIRST_BYTES:
            self.began, self.bytes_before = self.ended, self.sent_bytes


class SlowApplication:
    def __init__(self, hub: Hub) -> None:
        self._application = make_application(hub)
        self._link = Link()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == _CONTROL:
            await (await self._control(Request(scope, receive)))(scope, receive, send)
            return
        link = self._link

        async def send_slowly(message: Message) -> None:
            body = memoryview(message.get("body", b""))
            if scope["method"] == "HEAD" or not body:
                await send(message)
                return
            has_more = message.get("more_body", False)
            for start in range(0, len(body), _PIECE_BYTES):
                piece = bytes(body[start : start + _PIECE_BYTES])
                await link.wait(len(piece))
                is_last = start + len(piece) == len(body)
                await send({**message, "body": piece, "more_body": has_more or not is_last})
                link.count(len(piece))

        await self._application(scope, receive, send_slowly)

    async def _control(self, request: Request) -> JSONResponse:
        link = self._link
        if request.method == "POST":
            link.restart(json.loads(await request.body())["mbit"])
        names = ("sent_bytes", "bytes_before", "began", "ended")
        return JSONResponse({name: getattr(link, name) for name in names})


class SlowHub(RunningHub):
    def restart(self, mbit: float | None) -> None:
        """Set the speed of the link, None for as fast as possible, and begin to count."""
        self._ask("POST", {"mbit": mbit})

    def counted(self) -> dict[str, Any]:
        """Return what was sent since then: bytes of bodies, and when the data began and ended; see ``Link``."""
        return self._ask("GET")

    def _ask(self, method: str, content: object = None) -> dict[str, Any]:
        answer = ask(self, method, _CONTROL, content, token="")
        if answer.status != 200:
            raise SystemExit(f"the local Hub answers with {answer.status}: {answer.body!r}")
        found: dict[str, Any] = answer.content
        return found


@contextmanager
def slow_hub(settings: HubSettings) -> Iterator[SlowHub]:
    """Start a Hub whose link is as fast as possible at first, and stop it at the end of the block."""
    with running_hub(settings, "scripts.slow_hub") as running:
        yield SlowHub(running.endpoint, running.settings, running.process)


if __name__ == "__main__":
    sys.exit(main(SlowApplication))
