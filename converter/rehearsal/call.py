"""A request as its handler sees it: its user, its repo and its content."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from converter.rehearsal.hub import Hub
from converter.rehearsal.names import check_repo_part, check_revision, decode
from converter.rehearsal.replies import Refusal, is_for_browsers, repo_not_found
from converter.rehearsal.repos import Repo
from converter.rehearsal.settings import RESERVED_NAMES, Account

#: Bytes of a body in JSON; the client's largest one describes 256 files with a sample of each.
_BODY_LIMIT = 8 * 2**20
_BEARER = re.compile(r"Bearer (?P<token>[!-~]{1,512})", re.IGNORECASE)
_BASIC = re.compile(r"Basic (?P<pair>[A-Za-z0-9+/=]{1,1024})", re.IGNORECASE)


@dataclass(frozen=True)
class Call:
    """A request to the Hub.

    Args:
        hub: the Hub.
        request: the request.
        viewer: its user; None without a token.
    """

    hub: Hub
    request: Request
    viewer: Account | None

    def part(self, name: str) -> str:
        """Return a part of the path, decoded; empty if the path does not have it."""
        return decode(self.request.path_params.get(name, ""))

    @property
    def query(self) -> Mapping[str, str]:
        """The query; the last of several values of one name."""
        return self.request.query_params

    @property
    def revision(self) -> str:
        """The revision that the path names, ``main`` by default; raise Refusal if it is not a valid one."""
        return check_revision(self.part("revision") or "main")

    def user(self) -> Account:
        """Return the user; raise Refusal if the request has no token."""
        if self.viewer is None:
            raise Refusal(401, "Invalid username or password.")
        return self.viewer

    def token_writer(self, what: str) -> Account:
        """Return the user, whose token may write; raise Refusal if it may not."""
        viewer = self.user()
        if viewer.role != "write":
            raise Refusal(403, f"Forbidden: you must use a write token to {what}")
        return viewer

    def writer(self, namespace: str, what: str) -> Account:
        """Return the user, who may change repos of a namespace; raise Refusal if the user may not."""
        viewer = self.token_writer(what)
        if not viewer.belongs_to(namespace):
            raise Refusal(403, f'You don\'t have the rights to {what} under the namespace "{namespace}"')
        return viewer

    def repo(self) -> Repo:
        """Return the repo that the path names; raise Refusal if it does not exist, or the user may not know of it."""
        owner, name = check_repo_part(self.part("owner")), check_repo_part(self.part("name"))
        if owner in RESERVED_NAMES:
            raise HTTPException(404)
        repo = Repo.find(self.hub.database, owner, name)
        if repo is not None and self.may_see(repo):
            return repo
        moved = Repo.find_moved(self.hub.database, owner, name)
        if repo is None and moved is not None and self.may_see(moved):
            raise self._redirect(moved)
        raise repo_not_found(self.viewer is not None)

    def _redirect(self, moved: Repo) -> Refusal:
        """Return the answer that leads to the present name of a repo."""
        path = self.request.scope["raw_path"].decode("latin-1")
        former = "/".join(self.request.path_params[part] for part in ("owner", "name"))
        place = path.replace(f"/{former}", f"/{quote(moved.identity)}", 1)
        query = f"?{self.request.url.query}" if self.request.url.query else ""
        return Refusal(307, f"Temporary Redirect. Redirecting to {place}", headers={"Location": place + query})

    def writable_repo(self) -> Repo:
        """Return the repo that the path names, which the user may change.

        Raises:
            Refusal: it does not exist, or the user may not.
        """
        repo = self.repo()
        self.writer(repo.owner, "write to a repo")
        return repo

    def readable_repo(self) -> Repo:
        """Return the repo that the path names, whose files the user may read.

        Raises:
            Refusal: it does not exist, or is gated.
        """
        repo = self.repo()
        if repo.gated and not self._is_member(repo):
            restricted = f"Access to model {repo.identity} is restricted"
            if self.viewer is None:
                ask = "You must have access to it and be authenticated to access it. Please log in."
                raise Refusal(401, f"{restricted}. {ask}", code="GatedRepo")
            page = f"{self.hub.endpoint}/{repo.identity}"
            ask = f"and you are not in the authorized list. Visit {page} to ask for access."
            raise Refusal(403, f"{restricted} {ask}", code="GatedRepo")
        return repo

    def may_see(self, repo: Repo) -> bool:
        """Whether the user may know of a repo."""
        return not repo.private or self._is_member(repo)

    def _is_member(self, repo: Repo) -> bool:
        return self.viewer is not None and self.viewer.belongs_to(repo.owner)

    async def body(self) -> bytes:
        """Return the body; raise Refusal if it is too long."""
        content = bytearray()
        async for piece in self.request.stream():
            content += piece
            if len(content) > _BODY_LIMIT:
                raise Refusal(413, "Payload too large")
        return bytes(content)

    async def json(self) -> dict[str, Any]:
        """Return the body, a JSON object; an empty body is an empty object; raise Refusal if it is something else."""
        return parse_object(await self.body())


#: Answers a request.
Handler = Callable[[Call], Awaitable[Response]]


def identify(hub: Hub, request: Request) -> Account | None:
    """Return the user whose token a request carries; raise Refusal if the token does not belong to an account."""
    header = request.headers.get("authorization")
    if header is None:
        return None
    name, token = "", ""
    if (match := _BEARER.fullmatch(header)) is not None:
        token = match["token"]
    elif is_for_browsers(request) and (match := _BASIC.fullmatch(header)) is not None:
        with suppress(ValueError):
            name, _, token = base64.b64decode(match["pair"], validate=True).decode().partition(":")
    account = hub.account(token)
    if account is None or name not in ("", account.name):
        raise Refusal(401, "Invalid credentials in Authorization header")
    return account


def parse_object(data: bytes) -> dict[str, Any]:
    """Read a JSON object; raise Refusal if it is something else."""
    try:
        content = json.loads(data or b"{}")
    except (ValueError, RecursionError) as error:
        raise Refusal(400, "The body is not JSON") from error
    if not isinstance(content, dict):
        raise Refusal(400, "The body is not a JSON object")
    return content


def text_of(values: Mapping[str, Any], name: str, default: str = "") -> str:
    """Return a text of a JSON object; raise Refusal if it is not a text."""
    value = values.get(name)
    if value is None:
        return default
    if not isinstance(value, str):
        raise Refusal(400, f'"{name}" must be a string')
    return value


def objects_of(values: Mapping[str, Any], name: str, limit: int) -> list[dict[str, Any]]:
    """Return an array of objects of a JSON object; raise Refusal if it is something else, or too long."""
    objects = values.get(name)
    if not isinstance(objects, list) or len(objects) > limit or not all(isinstance(item, dict) for item in objects):
        raise Refusal(400, f'"{name}" must be an array of at most {limit} objects')
    return objects
