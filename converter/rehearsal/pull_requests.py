"""Pull requests: opened, given commits, closed, merged. Other discussions are not provided."""

from __future__ import annotations

import json
import secrets
import sqlite3
from typing import Any

from starlette.responses import JSONResponse, Response

from converter.rehearsal.call import Call, text_of
from converter.rehearsal.names import check_number
from converter.rehearsal.replies import Refusal
from converter.rehearsal.repos import MAIN, PULLS, Entry, Repo, now

#: Pull requests of one page, as on huggingface.co.
_PAGE = 10
#: Statuses by what the client asks for; drafts count as open.
_STATUSES = {"all": ("open", "draft", "closed", "merged"), "open": ("open", "draft"), "closed": ("closed", "merged")}


class PullRequests:
    """Reads and changes the pull requests of a repo. Changes belong into a transaction of the database.

    Args:
        repo: the repo.
    """

    def __init__(self, repo: Repo) -> None:
        self._database = repo.database
        self._repo = repo

    def all(self) -> list[sqlite3.Row]:
        """Return all of them, newest first."""
        query = "SELECT * FROM pull_requests WHERE repo = ? ORDER BY number DESC"
        return self._database.rows(query, self._repo.number)

    def find(self, number: int) -> sqlite3.Row:
        """Return one of them; raise Refusal if none has this number."""
        query = "SELECT * FROM pull_requests WHERE repo = ? AND number = ?"
        row = self._database.row(query, self._repo.number, number)
        if row is None:
            raise Refusal(404, "Discussion not found")
        return row

    def open(self, title: str, description: str, author: str, *, base: str, status: str) -> int:
        """Open one whose ref points to the head of its base, a branch; return its number."""
        number = max((row["number"] for row in self.all()), default=0) + 1
        self._database.execute(
            "INSERT INTO pull_requests VALUES (?, ?, ?, ?, ?, ?, ?, '', '[]')",
            *(self._repo.number, number, title, author, status, now(), base),
        )
        self._repo.point(f"{PULLS}{number}", self._repo.refs()[base])
        self.comment(number, description, author)
        return number

    def add_event(self, number: int, kind: str, author: str, **data: Any) -> dict[str, Any]:
        """Add an event, and return it."""
        event = {
            "id": secrets.token_hex(12),
            "type": kind,
            "createdAt": now(),
            "author": {"name": author, "type": "user"},
            "data": data,
        }
        self._set(number, "events", json.dumps([*json.loads(self.find(number)["events"]), event]))
        return event

    def comment(self, number: int, text: str, author: str) -> None:
        """Add what the author says when opening, closing or merging it."""
        latest = {"raw": text, "html": "", "updatedAt": now(), "author": {"name": author}}
        self.add_event(number, "comment", author, edited=False, hidden=False, latest=latest, history=[latest])

    def set_status(self, number: int, status: str, author: str) -> dict[str, Any]:
        """Open or close one, or mark it as merged; return the event."""
        self._set(number, "status", status)
        return self.add_event(number, "status-change", author, status=status)

    def merge(self, number: int, author: str) -> str:
        """Merge one into its base by one commit, and return the commit's id.

        Raises:
            Refusal: it is not open, or there are conflicts.
        """
        row = self.find(number)
        if row["status"] != "open":
            raise Refusal(400, "Only open pull requests can be merged")
        tree, conflicts = self._merged(row)
        if conflicts:
            raise Refusal(409, "This pull request has conflicts", filesWithConflicts=conflicts)
        head = self._repo.refs()[row["base"]]
        commit = self._repo.add_commit(head, tree, f"{row['title']} (#{number})", author)
        self._repo.point(row["base"], commit)
        self._set(number, "merge_commit", commit)
        self.set_status(number, "merged", author)
        return commit

    def describe(self, row: sqlite3.Row) -> dict[str, Any]:
        """Describe one of a list."""
        return {
            "num": row["number"],
            "title": row["title"],
            "author": {"name": row["author"], "type": "user"},
            "createdAt": row["created"],
            "status": row["status"],
            "isPullRequest": True,
            "repo": {"name": self._repo.identity, "type": "model"},
        }

    def describe_fully(self, row: sqlite3.Row) -> dict[str, Any]:
        """Describe one with its events and conflicts."""
        merged = row["merge_commit"]
        return {
            **self.describe(row),
            "events": json.loads(row["events"]),
            "changes": {"base": row["base"], **({"mergeCommitId": merged} if merged else {})},
            "filesWithConflicts": [] if merged else self._merged(row)[1],
            "diff": "",
        }

    def _set(self, number: int, column: str, value: str) -> None:
        statement = f"UPDATE pull_requests SET {column} = ? WHERE repo = ? AND number = ?"  # noqa: S608 - our names
        self._database.execute(statement, value, self._repo.number, number)

    def _merged(self, row: sqlite3.Row) -> tuple[dict[str, Entry], list[str]]:
        """Return the files after a merge, and those that both sides have changed, each in its own way."""
        refs = self._repo.refs()
        head, changed = refs[row["base"]], refs[f"{PULLS}{row['number']}"]
        known = {row["oid"] for row in self._repo.ancestry(head)}
        ancestors = (row["oid"] for row in self._repo.ancestry(changed))
        common = next((oid for oid in ancestors if oid in known), "")
        before, ours, theirs = (self._repo.tree(oid) for oid in (common, head, changed))
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
    """Return the repo that the user may commit to, at the revision that the path names.

    Whoever may read a repo, with a token that may write, may open a pull request and add to their own.

    Raises:
        Refusal: the repo does not exist, or the user may not.
    """
    repo, viewer = call.repo(), call.user()
    number = call.revision.removeprefix(PULLS) if call.revision.startswith(PULLS) else ""
    if not (
        call.query.get("create_pr")
        or (number.isdecimal() and PullRequests(repo).find(check_number(number))["author"] == viewer.name)
    ):
        call.writer(repo.owner, "write to a repo")
    call.token_writer("write to a repo")
    return repo


async def list_pull_requests(call: Call) -> Response:
    """GET .../discussions."""
    repo, query = call.repo(), call.query
    kind, status = query.get("type", "all"), query.get("status", "all")
    if kind not in ("all", "discussion", "pull_request") or status not in _STATUSES:
        raise Refusal(400, "Invalid filter")
    pull_requests = PullRequests(repo)
    found = [
        pull_requests.describe(row)
        for row in pull_requests.all()
        if kind != "discussion"
        and row["status"] in _STATUSES[status]
        and query.get("author", row["author"]) == row["author"]
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
        number = PullRequests(repo).open(title, description, viewer.name, base=MAIN, status="draft")
    url = f"{call.hub.endpoint}/{repo.identity}/discussions/{number}"
    return JSONResponse({"num": number, "url": url, "pullRequest": True})


async def show_pull_request(call: Call) -> Response:
    """GET .../discussions/N."""
    pull_requests, row = _named(call)
    return JSONResponse(pull_requests.describe_fully(row))


async def change_status(call: Call) -> Response:
    """POST .../discussions/N/status."""
    values, viewer = await call.json(), call.user()
    pull_requests, row = _named(call)
    status = text_of(values, "status")
    if row["author"] != viewer.name:
        call.writer(call.repo().owner, "change a discussion")
    if status not in ("open", "closed") or row["status"] == "merged":
        raise Refusal(400, "Invalid status")
    with call.hub.database.connection:
        if comment := text_of(values, "comment"):
            pull_requests.comment(row["number"], comment, viewer.name)
        event = pull_requests.set_status(row["number"], status, viewer.name)
    return JSONResponse({"newStatus": event})


async def merge(call: Call) -> Response:
    """POST .../discussions/N/merge."""
    call.writable_repo()
    values, viewer = await call.json(), call.user()
    pull_requests, row = _named(call)
    with call.hub.database.connection:
        if comment := text_of(values, "comment"):
            pull_requests.comment(row["number"], comment, viewer.name)
        commit = pull_requests.merge(row["number"], viewer.name)
    return JSONResponse({"mergeCommitId": commit})


def _named(call: Call) -> tuple[PullRequests, sqlite3.Row]:
    """Return the pull request that the path names; raise Refusal if it does not exist."""
    pull_requests = PullRequests(call.repo())
    return pull_requests, pull_requests.find(check_number(call.part("number")))
