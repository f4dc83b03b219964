"""Refusals of the local Hub, which name their reason in the headers that huggingface.co uses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from converter.errors import printable


class Refusal(HTTPException):
    """The Hub refuses a request. This ends in an answer, never in a message of lensconv.

    Args:
        status: the HTTP status.
        message: what the client shows.
        code: the ``X-Error-Code``, which the client turns into an exception of its own.
        headers: further headers.
        fields: further members of the answer.
    """

    def __init__(
        self, status: int, message: str, *, code: str = "", headers: Mapping[str, str] | None = None, **fields: Any
    ) -> None:
        # A header is one line of Latin-1.
        shown = printable(message, 1000).encode("latin-1", "replace").decode("latin-1")
        codes = {"X-Error-Code": code} if code else {}
        super().__init__(status, message, {**(headers or {}), "X-Error-Message": shown, **codes})
        self.fields = fields

    def response(self, headers: Mapping[str, str] | None = None) -> Response:
        """Make the answer, with further headers."""
        content = {"error": self.detail, **self.fields}
        return JSONResponse(content, self.status_code, {**(self.headers or {}), **(headers or {})})


async def refuse(request: Request, error: Exception) -> Response:
    """Answer a request that was refused, has no route, or met a disk that fails."""
    if isinstance(error, Refusal):
        return error.response()
    if isinstance(error, OSError):
        return Refusal(507, f"The Hub cannot store or read this: {error.strerror}").response()
    path = request.scope["raw_path"].decode("latin-1")
    message = f"this local Hub does not provide {request.method} {path}; it serves model repos only"
    return Refusal(404, message).response()


def repo_not_found(known_user: bool) -> Refusal:
    """Say that there is no such repo for this user. Users without a token are asked for one."""
    if known_user:
        return Refusal(404, "Repository not found", code="RepoNotFound")
    return Refusal(401, "Invalid username or password.", code="RepoNotFound")


def revision_not_found(revision: str) -> Refusal:
    """Say that the repo does not have this revision."""
    return Refusal(404, f"Invalid rev id: {printable(revision)}", code="RevisionNotFound")


def entry_not_found(commit: str, message: str = "Entry not found") -> Refusal:
    """Say that the commit does not have this file."""
    return Refusal(404, message, code="EntryNotFound", headers={"X-Repo-Commit": commit})
