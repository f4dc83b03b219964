"""Pull requests: opened, given commits, closed, merged. Other discussions are not provided."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import JSONResponse, Response

from converter.rehearsal.call import Call, text_of
from converter.rehearsal.names import check_number
from converter.rehearsal.replies import Refusal
from converter.rehearsal.repos import MAIN, PULLS, Entry, Repo, now

#: Pull requests of one page, as on huggingface.co.
_PAGE = 10
#: Statuses by the client's filter; drafts count as open.
_STATUSES = {"all": ("open", "draft", "closed", "merged"), "open": ("open", "draft"), "closed": ("closed", "merged")}


@dataclass
class PullRequest:
    """A pull request. Changes to it belong into a transaction of the database."""

    repo: Repo
    number: int
    title: str
    author: str
    status: str
    """``draft``, ``open``, ``closed`` or ``merged``."""
    base: str
    """The ref that it is to be merged into."""
    created: str = field(default_factory=now)
    merge_commit: str = ""
    events: list[dict[str, Any]] = field(default_factory=list)
    """The events in the form of huggingface.co."""

    @classmethod
    def all(cls, repo: Repo) -> list[PullRequest]:
        """Return those of a repo, newest first."""
        query = "SELECT content FROM pull_requests WHERE repo = ? ORDER BY number DESC"
        return [cls(repo, **json.loads(row["content"])) for row in repo.database.rows(query, repo.number)]

    @classmethod
    def find(cls, repo: Repo, number: int) -> PullRequest:
        """Return one of a repo; raise Refusal if none has this number."""
        for pull_request in cls.all(repo):
            if pull_request.number == number:
                return pull_request
        raise Refusal(404, "Discussion not found")

    @classmethod
    def open(cls, repo: Repo, title: str, description: str, author: str, *, base: str, status: str) -> PullRequest:
        """Open one, whose ref points to the head of its base."""
        number = max((known.number for known in cls.all(repo)), default=0) + 1
        opened = cls(repo, number, title, author, status, base)
        repo.point(opened.ref, repo.refs()[base])
        opened.comment(description, author)
        return opened

    @property
    def ref(self) -> str:
        """The ref of its commits."""
        return f"{PULLS}{self.number}"

    def add_event(self, kind: str, author: str, **data: Any) -> dict[str, Any]:
        """Add an event, and store all that has changed; return the event."""
        event = {
            "id": secrets.token_hex(12),
            "type": kind,
            "createdAt": now(),
            "author": {"name": author, "type": "user"},
            "data": data,
        }
        self.events.append(event)
        content = json.dumps({name: value for name, value in vars(self).items() if name != "repo"})
        statement = "INSERT OR REPLACE INTO pull_requests VALUES (?, ?, ?)"
        self.repo.database.execute(statement, self.repo.number, self.number, content)
        return event

    def comment(self, text: str, author: str) -> None:
        """Add what the author says when opening, closing or merging it."""
        latest = {"raw": text, "html": "", "updatedAt": now(), "author": {"name": author}}
        self.add_event("comment", author, edited=False, hidden=False, latest=latest, history=[latest])

    def set_status(self, status: str, author: str) -> dict[str, Any]:
        """Open or close it, or mark it as merged; return the event."""
        self.status = status
        return self.add_event("status-change", author, status=status)

    def merge(self, author: str) -> None:
        """Merge it into its base by one commit; raise Refusal if it is not open, or there are conflicts."""
        if self.status != "open":
            raise Refusal(400, "Only open pull requests can be merged")
        tree, conflicts = self._merged()
        if conflicts:
            raise Refusal(409, "This pull request has conflicts", filesWithConflicts=conflicts)
        head = self.repo.refs()[self.base]
        self.merge_commit = self.repo.add_commit(head, tree, f"{self.title} (#{self.number})", author)
        self.repo.point(self.base, self.merge_commit)
        self.set_status("merged", author)

    def describe(self) -> dict[str, Any]:
        """Describe it as one of a list."""
        return {
            "num": self.number,
            "title": self.title,
            "author": {"name": self.author, "type": "user"},
            "createdAt": self.created,
            "status": self.status,
            "isPullRequest": True,
            "repo": {"name": self.repo.identity, "type": "model"},
        }

    def describe_fully(self) -> dict[str, Any]:
        """Describe it with its events and conflicts."""
        return {
            **self.describe(),
            "events": self.events,
            "changes": {"base": self.base, **({"mergeCommitId": self.merge_commit} if self.merge_commit else {})},
            "filesWithConflicts": [] if self.merge_commit else self._merged()[1],
            "diff": "",
        }

    def _merged(self) -> tuple[dict[str, Entry], list[str]]:
        """Return the files after a merge, and those that both sides have changed, each in its own way."""
        refs = self.repo.refs()
        head, changed = refs[self.base], refs[self.ref]
        known = {row["oid"] for row in self.repo.ancestry(head)}
        common = next((row["oid"] for row in self.repo.ancestry(changed) if row["oid"] in known), "")
        before, ours, theirs = (self.repo.tree(oid) for oid in (common, head, changed))
        result, conflicts = dict(ours), []
        for path in sorted(before.keys() | theirs.keys()):
            old, new, own = (tree[path].oid if path in tree else "" for tree in (before, theirs, ours))
            if new in (old, own):
                continue
            if own != old:
                conflicts.append(path)
            elif path in theirs:
                result[path] = theirs[path]
            else:
                del result[path]
        return result, conflicts


def commit_target(call: Call) -> Repo:
    """Return the repo that the user may commit to, at the revision that the path names; raise Refusal if there is none.

    A user who may read a repo, and whose token may write, may open a pull request and add commits to it.
    """
    repo, viewer = call.repo(), call.token_writer("upload to a repository")
    own = [pull_request.ref for pull_request in PullRequest.all(repo) if pull_request.author == viewer.name]
    if not (call.query.get("create_pr") or call.revision in own or viewer.belongs_to(repo.owner)):
        raise Refusal(403, "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request")
    return repo


async def list_pull_requests(call: Call) -> Response:
    """GET .../discussions."""
    repo, query = call.repo(), call.query
    kind, status = query.get("type", "all"), query.get("status", "all")
    if kind not in ("all", "discussion", "pull_request") or status not in _STATUSES:
        raise Refusal(400, "Invalid filter")
    found = [
        pull_request.describe()
        for pull_request in PullRequest.all(repo)
        if kind != "discussion"
        and pull_request.status in _STATUSES[status]
        and query.get("author", pull_request.author) == pull_request.author
    ]
    start = check_number(query.get("p", "0")) * _PAGE
    shown = found[start : start + _PAGE]
    return JSONResponse({"discussions": shown, "count": len(found), "start": start, "numClosedDiscussions": 0})


async def create_pull_request(call: Call) -> Response:
    """POST .../discussions."""
    repo, values = call.repo(), await call.json()
    viewer = call.token_writer("open a discussion")
    if values.get("pullRequest") is not True:
        raise Refusal(404, "this local Hub does not provide discussions; it serves pull requests only")
    title, description = text_of(values, "title"), text_of(values, "description")
    if len(title) < 3:
        raise Refusal(400, '"title" length must be at least 3 characters long')
    with call.hub.database.connection:
        number = PullRequest.open(repo, title, description, viewer.name, base=MAIN, status="draft").number
    url = f"{call.hub.endpoint}/{repo.identity}/discussions/{number}"
    return JSONResponse({"num": number, "url": url, "pullRequest": True})


async def show_pull_request(call: Call) -> Response:
    """GET .../discussions/N."""
    return JSONResponse(_named(call).describe_fully())


async def change_status(call: Call) -> Response:
    """POST .../discussions/N/status."""
    values, viewer, pull_request = await call.json(), call.user(), _named(call)
    status = text_of(values, "status")
    if pull_request.author != viewer.name:
        call.writer(pull_request.repo.owner, "change a discussion")
    if status not in ("open", "closed") or pull_request.status == "merged":
        raise Refusal(400, "Invalid status")
    with call.hub.database.connection:
        if comment := text_of(values, "comment"):
            pull_request.comment(comment, viewer.name)
        event = pull_request.set_status(status, viewer.name)
    return JSONResponse({"newStatus": event})


async def merge(call: Call) -> Response:
    """POST .../discussions/N/merge."""
    call.writable_repo()
    values, viewer, pull_request = await call.json(), call.user(), _named(call)
    with call.hub.database.connection:
        if comment := text_of(values, "comment"):
            pull_request.comment(comment, viewer.name)
        pull_request.merge(viewer.name)
    return JSONResponse({"mergeCommitId": pull_request.merge_commit})


def _named(call: Call) -> PullRequest:
    """Return the pull request that the path names; raise Refusal if it does not exist."""
    return PullRequest.find(call.repo(), check_number(call.part("number")))
