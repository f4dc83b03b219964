"""Refusals of the local Hub, which name their reason in the headers that huggingface.co uses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from converter.errors import printable

#: Paths at which the client takes a 404 to mean that something does not exist or was deleted.
_MISREAD = ("/api/jobs", "/api/scheduled-jobs", "/api/collections", "/api/buckets")


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


def is_for_browsers(request: Request) -> bool:
    """Whether a browser may sign in for this request with a name, and a token as its password.

    A browser sends these by itself, even if a page of another site makes it ask. So they open what changes nothing.
    """
    return request.method in ("GET", "HEAD") and not request.url.path.startswith("/api/")


async def refuse(request: Request, error: Exception) -> Response:
    """Answer a request that was refused, has no route, or met a disk that fails."""
    if isinstance(error, OSError):
        refusal = Refusal(507, f"The Hub cannot store or read this: {error.strerror}")
    elif isinstance(error, Refusal):
        refusal = error
    else:
        address = f"{request.method} {request.url.path}"
        status = 501 if request.url.path.startswith(_MISREAD) else 404
        refusal = Refusal(status, f"this local Hub does not provide {address}; it serves model repos only")
    headers = dict(refusal.headers or {})
    if refusal.status_code == 401 and is_for_browsers(request):
        headers["WWW-Authenticate"] = 'Basic realm="Local Hub: account and token"'
    return JSONResponse({"error": refusal.detail, **refusal.fields}, refusal.status_code, headers)


def repo_not_found(known_user: bool) -> Refusal:
    """Say that this user has no such repo. Users without a token are asked for one."""
    if known_user:
        return Refusal(404, "Repository not found", code="RepoNotFound")
    return Refusal(401, "Invalid username or password.", code="RepoNotFound")


def revision_not_found(revision: str) -> Refusal:
    """Say that the repo does not have this revision."""
    return Refusal(404, f"Invalid rev id: {printable(revision)}", code="RevisionNotFound")


def entry_not_found(commit: str, message: str = "Entry not found") -> Refusal:
    """Say that the commit does not have this file."""
    return Refusal(404, message, code="EntryNotFound", headers={"X-Repo-Commit": commit})
