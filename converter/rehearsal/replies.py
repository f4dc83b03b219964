"""Answers of the local Hub, and refusals, which name their reason in the Hub's own headers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse, Response

from converter.errors import printable


class Refusal(Exception):
    """A request is refused. It ends in an answer, never in a message of lensconv.

    Args:
        status: the HTTP status.
        message: what the client shows.
        code: the Hub's ``X-Error-Code``, which the client turns into an exception of its own.
        headers: further headers.
        fields: further members of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str = "",
        headers: Mapping[str, str] | None = None,
        fields: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.headers = dict(headers or {})
        self.fields = dict(fields or {})

    def response(self) -> Response:
        """The answer."""
        headers = {**self.headers, "X-Error-Message": header_text(self.message)}
        if self.code:
            headers["X-Error-Code"] = self.code
        return JSONResponse({"error": self.message, **self.fields}, self.status, headers)


def header_text(text: str) -> str:
    """A text that may stand in a header: one line of Latin-1."""
    return printable(text, 1000).encode("latin-1", "replace").decode("latin-1")


def repo_not_found(known_user: bool) -> Refusal:
    """There is no such repo, or nobody may know of it. Those who are not logged in are asked to."""
    if known_user:
        return Refusal(404, "Repository not found", code="RepoNotFound")
    return Refusal(401, "Invalid username or password.", code="RepoNotFound")


def revision_not_found(revision: str) -> Refusal:
    """The repo has no such revision."""
    return Refusal(404, f"Invalid rev id: {printable(revision)}", code="RevisionNotFound")


def entry_not_found(commit: str) -> Refusal:
    """The commit has no such file."""
    return Refusal(404, "Entry not found", code="EntryNotFound", headers={"X-Repo-Commit": commit})


def reply(content: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """An answer in JSON."""
    return JSONResponse(content, status, headers)
