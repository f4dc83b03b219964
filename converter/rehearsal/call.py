"""A request as its handler sees it: who asks, for which repo, and with what."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from starlette.requests import Request
from starlette.responses import Response

from converter.rehearsal.history import Repo
from converter.rehearsal.hub import Hub
from converter.rehearsal.names import KINDS, check_repo_part, check_revision, decode
from converter.rehearsal.replies import Refusal, repo_not_found

#: Bytes of a body in JSON; the client's largest one describes 256 files with a sample of each.
BODY_LIMIT = 8 * 2**20


@dataclass(frozen=True)
class Viewer:
    """Whose token a request carries."""

    name: str
    role: str
    organizations: tuple[str, ...]

    def belongs_to(self, namespace: str) -> bool:
        """Whether repos of a namespace are theirs."""
        return namespace == self.name or namespace in self.organizations


@dataclass
class Call:
    """A request on its way through the Hub.

    Args:
        hub: the Hub.
        request: the request.
        parts: what its path names, still percent-encoded.
        viewer: whose token it carries; None without a token.
    """

    hub: Hub
    request: Request
    parts: Mapping[str, str]
    viewer: Viewer | None

    def part(self, name: str) -> str:
        """A part of the path, decoded; empty if it is not there."""
        return decode(self.parts.get(name) or "")

    @property
    def query_pairs(self) -> list[tuple[str, str]]:
        """The query.

        Raises:
            Refusal: it is too long, or no text.
        """
        return parse_pairs(self.request.scope["query_string"].decode("latin-1"), limit=100)

    @property
    def query(self) -> dict[str, str]:
        """The query; the last of values with one name.

        Raises:
            Refusal: it is too long, or no text.
        """
        return dict(self.query_pairs)

    @property
    def revision(self) -> str:
        """The revision that the path names."""
        return check_revision(self.part("revision") or "main")

    def user(self) -> Viewer:
        """The one who asks.

        Raises:
            Refusal: the request has no token.
        """
        if self.viewer is None:
            raise Refusal(401, "Invalid username or password.")
        return self.viewer

    def writer(self, namespace: str, what: str) -> Viewer:
        """The one who asks, who may change things in a namespace.

        Raises:
            Refusal: they may not.
        """
        viewer = self.user()
        if viewer.role != "write":
            raise Refusal(403, f"Forbidden: you must use a write token to {what}")
        if not viewer.belongs_to(namespace):
            raise Refusal(403, f'You don\'t have the rights to {what} under the namespace "{namespace}"')
        return viewer

    def repo(self) -> Repo:
        """The repo that the path names.

        Raises:
            Refusal: there is none, or not for the one who asks.
        """
        kind = KINDS[self.parts.get("kind") or "models"]
        owner, name = check_repo_part(self.part("owner")), check_repo_part(self.part("name"))
        repo = self.hub.history.find(kind, owner, name)
        if repo is None or (repo.private and not self.is_member(repo)):
            raise repo_not_found(self.viewer is not None)
        return repo

    def writable_repo(self) -> Repo:
        """The repo that the path names, which the one who asks may change.

        Raises:
            Refusal: there is none, or they may not.
        """
        repo = self.repo()
        self.writer(repo.owner, "write to a repo")
        return repo

    def is_member(self, repo: Repo) -> bool:
        """Whether the repo belongs to the one who asks."""
        return self.viewer is not None and self.viewer.belongs_to(repo.owner)

    def check_files_access(self, repo: Repo) -> None:
        """Check that the one who asks may read the files of a repo.

        Raises:
            Refusal: the repo is gated.
        """
        if repo.gated and not self.is_member(repo):
            raise Refusal(
                403 if self.viewer is not None else 401,
                f"Access to model {repo.identity} is restricted and you are not in the authorized list. "
                "Visit its page to ask for access.",
                code="GatedRepo",
            )

    async def body(self, limit: int = BODY_LIMIT) -> bytes:
        """The body.

        Raises:
            Refusal: it is too long.
        """
        content = bytearray()
        async for piece in self.request.stream():
            content += piece
            if len(content) > limit:
                raise Refusal(413, "Payload too large")
        return bytes(content)

    async def json(self, limit: int = BODY_LIMIT) -> dict[str, Any]:
        """The body as a JSON object; an empty one is an empty object.

        Raises:
            Refusal: it is none.
        """
        return parse_object(await self.body(limit))


#: What answers a request.
Handler = Callable[[Call], Awaitable[Response]]


def parse_object(data: bytes) -> dict[str, Any]:
    """A JSON object.

    Raises:
        Refusal: it is none.
    """
    try:
        content = json.loads(data or b"{}")
    except (ValueError, RecursionError) as error:
        raise Refusal(400, "The body is no JSON") from error
    if not isinstance(content, dict):
        raise Refusal(400, "The body is no JSON object")
    return content


def parse_pairs(text: str, limit: int) -> list[tuple[str, str]]:
    """Names and values of a query or a form, of which there may be so many.

    Raises:
        Refusal: there are more, or they are no text.
    """
    try:
        return parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=limit)
    except ValueError as error:
        raise Refusal(400, "The query or the form cannot be read") from error


def text_of(values: Mapping[str, Any], name: str, default: str = "", limit: int = 65_536) -> str:
    """A text in a JSON object.

    Raises:
        Refusal: it is no text, or too long.
    """
    value = values.get(name)
    if value is None:
        return default
    if not isinstance(value, str) or len(value) > limit:
        raise Refusal(400, f'"{name}" must be a string of at most {limit} characters')
    return value
