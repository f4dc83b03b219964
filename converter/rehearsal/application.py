"""The local Hub as an ASGI application: who asks, what is to go wrong, and what answers."""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from converter.rehearsal.call import Call, Viewer
from converter.rehearsal.control_api import apply
from converter.rehearsal.faults import STATE_ACTIONS, Fault
from converter.rehearsal.hub import Hub
from converter.rehearsal.pages import refusal_page
from converter.rehearsal.replies import Refusal
from converter.rehearsal.routes import find_route
from converter.rehearsal.traffic import Exchange, Traffic

#: Hosts that requests may name; a page of another site that reaches this machine under its own name is refused.
_HOST = re.compile(r"(?:127\.0\.0\.1|localhost|\[::1\])(?::\d{1,5})?")
_BEARER = re.compile(r"Bearer (?P<token>[!-~]{1,512})", re.IGNORECASE)
_BASIC = re.compile(r"Basic (?P<pair>[A-Za-z0-9+/=]{1,1024})", re.IGNORECASE)
_CONTROL = "/_control/"


class Application:
    """Answers requests.

    Args:
        hub: what it answers for.
        drop: drops the connection of a request at once, given its scope.
    """

    def __init__(self, hub: Hub, drop: Callable[[Scope], None]) -> None:
        self._hub = hub
        self._drop = drop

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        method, path = scope["method"], scope["raw_path"].decode("latin-1")
        query = scope["query_string"].decode("latin-1")
        is_authorized = any(name == b"authorization" for name, _ in scope["headers"])
        # Those who watch do not watch themselves.
        log = Traffic() if path.startswith(_CONTROL) else self._hub.traffic
        channel = _Channel(log.start(method, path, query, is_authorized), receive, send)
        faults = [] if path.startswith(_CONTROL) else self._hub.faults.due(method, f"{path}?{query}" if query else path)
        request = Request(scope, channel.receive)
        try:
            response = await self._prepare(faults)
            if any(fault.action == "drop_before" for fault in faults):
                await self._cut(scope, receive)
                return
            if response is None:
                response = await self._answer(request, method, path)
            if any(fault.action == "drop_after" for fault in faults):
                await self._cut(scope, receive)
                return
            channel.exchange.status = response.status_code
            await self._send(response, scope, channel, receive)
        except ClientDisconnect:
            return

    async def _send(self, response: Response, scope: Scope, channel: _Channel, receive: Receive) -> None:
        try:
            await response(scope, channel.receive, channel.send)
        except (OSError, ValueError):
            # What is stored is damaged, and the headers are out already: the client must not take this for the end.
            await self._cut(scope, receive)

    async def _prepare(self, faults: list[Fault]) -> Response | None:
        """Let happen what is to happen before a request is looked at; gives the answer if that is not needed."""
        response = None
        for fault in faults:
            if fault.action in STATE_ACTIONS:
                try:
                    apply(self._hub, fault)
                except Refusal as refusal:
                    response = refusal.response()
            elif fault.action == "delay":
                await asyncio.sleep(fault.seconds)
            elif fault.action == "status":
                response = Response(fault.body, fault.status, fault.headers)
        return response

    async def _answer(self, request: Request, method: str, path: str) -> Response:
        call = Call(self._hub, request, {}, None)
        is_for_browsers = False
        try:
            if not _HOST.fullmatch(request.headers.get("host", "")):
                raise Refusal(421, "This Hub is on this machine only")
            route = find_route(method, path)
            is_for_browsers = route.is_for_browsers
            call = replace(call, parts=route.parts, viewer=self._viewer(request, is_for_browsers))
            return await route.handler(call)
        except Refusal as refusal:
            # Clients of the Hub never ask for HTML.
            is_page = "text/html" in request.headers.get("accept", "")
            response = refusal_page(call, refusal) if is_page else refusal.response()
            if refusal.status == 401 and is_for_browsers:
                # For images of a page, too: a browser sends what it knows once it is asked.
                response.headers["WWW-Authenticate"] = 'Basic realm="A Hub on this machine: account and token"'
            return response
        except OSError as error:
            return Refusal(507, f"The Hub cannot store or read this: {error.strerror}").response()

    def _viewer(self, request: Request, is_for_browsers: bool) -> Viewer | None:
        """The one whose token a request carries.

        Args:
            request: the request.
            is_for_browsers: whether the token may also come as the password of an account.

        Raises:
            Refusal: it is the token of nobody.
        """
        header = request.headers.get("authorization")
        if header is None:
            return None
        name, token = "", ""
        if (match := _BEARER.fullmatch(header)) is not None:
            token = match["token"]
        elif is_for_browsers and (match := _BASIC.fullmatch(header)) is not None:
            with suppress(ValueError):
                name, _, token = base64.b64decode(match["pair"], validate=True).decode().partition(":")
        # Found by its hash, so that the time that this takes tells nothing.
        row = self._hub.database.account(token)
        if row is None or name not in ("", row["name"]):
            raise Refusal(401, "Invalid credentials in Authorization header")
        return Viewer(row["name"], row["role"], tuple(row["organizations"].split()))

    async def _cut(self, scope: Scope, receive: Receive) -> None:
        """Drop the connection, and wait until it is known to be gone, so that nothing is sent any more."""
        self._drop(scope)
        while (await receive())["type"] != "http.disconnect":
            pass


class _Channel:
    """Counts what goes through a connection.

    Args:
        exchange: where it is noted.
        receive: gives the request.
        send: takes the answer.
    """

    def __init__(self, exchange: Exchange, receive: Receive, send: Send) -> None:
        self.exchange = exchange
        self._receive = receive
        self._send = send

    async def receive(self) -> Message:
        """A piece of the request."""
        message = await self._receive()
        self.exchange.received += len(message.get("body", b""))
        return message

    async def send(self, message: Message) -> None:
        """A piece of the answer."""
        if self.exchange.method != "HEAD":
            self.exchange.sent += len(message.get("body", b""))
        await self._send(message)
