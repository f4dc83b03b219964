"""A local Hub that fails on demand, and notes what it was asked: the product's own Hub, with faults around it.

It runs in a process of its own (``python -m tests.faulty_hub``), which tests and scripts control over HTTP.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from converter.rehearsal.application import make_application
from converter.rehearsal.hub import Hub
from converter.rehearsal.process import RunningHub, running_hub
from converter.rehearsal.repos import Repo, regular_entry
from converter.rehearsal.server import main
from converter.rehearsal.settings import HubSettings
from tests.hubs import ask

_CONTROL = "/_control/"


Action = Literal["status", "delay", "drop_before", "drop_after", "corrupt", "forget", "move_head"]


@dataclass
class Fault:
    """A rule: what happens to which requests.

    Args:
        action: ``status``, an answer of another status, with these headers and this body; ``delay``, a pause of so many
            seconds; ``drop_before`` and ``drop_after``, the connection is dropped before or after the request has its
            effect; ``corrupt`` and ``forget``, an object is damaged or lost; ``move_head``, someone else commits.
        method, path: which requests, any if empty; the path is a regular expression that must be found in the raw path,
            and the query after a ``?``. Without one, an action that changes the state happens at once.
        skip, times: matching requests that it lets pass before, and those that it hits; 0 times for all.
        sha256, repo: the object that is damaged or lost, and who gets a foreign commit on main.
    """

    action: Action
    method: str = ""
    path: str = ""
    times: int = 1
    skip: int = 0
    status: int = 503
    headers: dict[str, str] = field(default_factory=dict)
    body: str = ""
    seconds: float = 0.0
    sha256: str = ""
    repo: str = ""


@dataclass
class Exchange:
    """A request: its path percent-encoded, its query without signatures, whether it had an Authorization header, how
    many bytes were read and sent; and the status, 0 if the connection was dropped without an answer."""

    method: str
    path: str
    query: str
    authorized: bool
    received: int = 0
    sent: int = 0
    status: int = 0


class FaultyApplication:
    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._application = make_application(hub)
        self._faults: list[Fault] = []
        self._log: deque[Exchange] = deque(maxlen=100_000)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        method, path = scope["method"], scope["raw_path"].decode("latin-1")
        query = scope["query_string"].decode("latin-1")
        if path.startswith(_CONTROL):
            answer = self._control(method, path.removeprefix(_CONTROL), await Request(scope, receive).body())
            await answer(scope, receive, send)
            return
        shown = "&".join(part for part in query.split("&") if not part.startswith("signature="))
        is_authorized = any(name == b"authorization" for name, _ in scope["headers"])
        exchange = Exchange(method, path, shown, is_authorized)
        self._log.append(exchange)
        faults = self._due(method, f"{path}?{query}" if query else path)
        actions = {fault.action for fault in faults}

        async def counted_receive() -> Message:
            message = await receive()
            exchange.received += len(message.get("body", b""))
            return message

        async def counted_send(message: Message) -> None:
            if "drop_after" not in actions:
                exchange.status = message.get("status", exchange.status)
                exchange.sent += 0 if method == "HEAD" else len(message.get("body", b""))
                await send(message)

        response = await self._prepare(faults)
        if "drop_before" not in actions:
            try:
                await (response or self._application)(scope, counted_receive, counted_send)
            except ClientDisconnect:
                return
        if not actions.isdisjoint({"drop_before", "drop_after"}):
            # uvicorn's send belongs to the connection.
            send.__self__.transport.abort()  # type: ignore[attr-defined]
            while (await receive())["type"] != "http.disconnect":
                pass

    def _due(self, method: str, address: str) -> list[Fault]:
        """Return the rules that hit a request. Each counts it."""
        hits = []
        for fault in list(self._faults):
            if fault.method not in ("", method) or not re.search(fault.path, address):
                continue
            if fault.skip:
                fault.skip -= 1
                continue
            hits.append(fault)
            if fault.times == 1:
                self._faults.remove(fault)
            elif fault.times:
                fault.times -= 1
        return hits

    async def _prepare(self, faults: list[Fault]) -> Response | None:
        """Let faults happen that come before the request; return the answer if one of them gives it."""
        response = None
        for fault in faults:
            if fault.action == "delay":
                await asyncio.sleep(fault.seconds)
            elif fault.action == "status":
                response = Response(fault.body, fault.status, fault.headers)
            elif not fault.action.startswith("drop"):
                self._change_state(fault)
        return response

    def _change_state(self, fault: Fault) -> None:
        change = {"corrupt": corrupt, "forget": forget, "move_head": move_head}[fault.action]
        change(self._hub, fault.sha256 or fault.repo)

    def _control(self, method: str, what: str, body: bytes) -> Response:
        remembered: list[Fault] | deque[Exchange] = self._faults if what == "faults" else self._log
        if method == "DELETE":
            remembered.clear()
        elif method == "POST":
            fault = Fault(**json.loads(body))
            if fault.path:
                self._faults.append(fault)
            else:
                self._change_state(fault)
        return JSONResponse([asdict(item) for item in remembered])


def corrupt(hub: Hub, sha256: str) -> None:
    """Damage an object, wherever it is stored: change one of its bytes."""
    path = hub.blobs.path(sha256)
    if path.exists():
        _flip_byte(path, path.stat().st_size // 2)
    if (file := hub.xet.find(sha256)) is not None:
        term = file.terms[0]
        chunk = hub.xet.chunks(term.xorb)[term.first]
        _flip_byte(hub.xet.xorb_path(term.xorb), chunk.offset + chunk.packed_size - 1)


def forget(hub: Hub, sha256: str) -> None:
    """Lose an object. Over Xet it is stored again once a new shard describes it."""
    hub.blobs.path(sha256).unlink(missing_ok=True)
    hub.xet.find(sha256)
    hub.xet.files.pop(sha256, None)


def move_head(hub: Hub, name: str) -> None:
    """Commit to main of a repo as someone else."""
    repo = Repo.find(hub.database, *name.split("/"))
    assert repo is not None, name
    ref, head = repo.branch("main")
    content = b"foreign\n"
    hub.blobs.put(content)
    tree = {**repo.tree(head), "foreign.txt": regular_entry("foreign.txt", content)}
    with hub.database.connection:
        repo.point(ref, repo.add_commit(head, tree, "A commit of someone else", "someone"))


def _flip_byte(path: Path, offset: int) -> None:
    path.chmod(0o600)
    content = bytearray(path.read_bytes())
    content[offset] ^= 0xFF
    path.write_bytes(content)


class FaultyHub(RunningHub):
    def fault(self, action: Action, **values: Any) -> None:
        self._control("POST", "faults", asdict(Fault(action, **values)))

    def clear_faults(self) -> None:
        self._control("DELETE", "faults")

    def faults(self) -> list[dict[str, Any]]:
        return self._control("GET", "faults")

    def requests(self) -> list[dict[str, Any]]:
        """Return all requests since the log was emptied, oldest first; see ``Exchange``."""
        return self._control("GET", "requests")

    def forget_requests(self) -> None:
        self._control("DELETE", "requests")

    def _control(self, method: str, what: str, content: object = None) -> list[dict[str, Any]]:
        answer = ask(self, method, _CONTROL + what, content, token="")
        assert answer.status == 200, answer.body
        found: list[dict[str, Any]] = answer.content
        return found


@contextmanager
def faulty_hub(settings: HubSettings) -> Iterator[FaultyHub]:
    """Start a Hub that fails on demand, and stop it at the end of the block."""
    with running_hub(settings, "tests.faulty_hub") as running:
        yield FaultyHub(running.endpoint, running.settings, running.process)


if __name__ == "__main__":
    sys.exit(main(FaultyApplication))
