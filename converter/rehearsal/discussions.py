"""Discussions and pull requests in the state: opened, given commits, closed, merged."""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Mapping
from typing import Any

from converter.rehearsal.call import Call
from converter.rehearsal.history import HEADS, PULLS, Entry, Repo, now
from converter.rehearsal.hub import Hub
from converter.rehearsal.replies import Refusal


class Discussions:
    """Reads and changes discussions. Changes belong into a transaction of the database.

    Args:
        hub: whose they are.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._database = hub.database
        self._history = hub.history

    def all(self, repo: Repo) -> list[sqlite3.Row]:
        """Those of a repo, newest first."""
        return self._database.rows("SELECT * FROM discussions WHERE repo = ? ORDER BY number DESC", repo.number)

    def find(self, repo: Repo, number: int) -> sqlite3.Row:
        """One of them.

        Raises:
            Refusal: there is none of this number.
        """
        row = self._database.row("SELECT * FROM discussions WHERE repo = ? AND number = ?", repo.number, number)
        if row is None:
            raise Refusal(404, "Discussion not found")
        return row

    def is_own_pull_request(self, repo: Repo, revision: str, author: str) -> bool:
        """Whether a revision is the ref of a pull request that this author opened."""
        number = revision.removeprefix(PULLS)
        if not revision.startswith(PULLS) or not number.isdecimal():
            return False
        return bool(self.find(repo, int(number))["author"] == author)

    def open(
        self, repo: Repo, title: str, description: str, author: str, *, status: str = "open", base: str = ""
    ) -> int:
        """A new discussion, or a pull request where it has a base; gives its number."""
        row = self._database.row(
            "SELECT COALESCE(MAX(number), 0) + 1 AS number FROM discussions WHERE repo = ?", repo.number
        )
        number = 1 if row is None else int(row["number"])
        events = [_comment(description, author)]
        self._database.connection.execute(
            "INSERT INTO discussions VALUES (?, ?, ?, ?, ?, ?, ?, ?, '', ?)",
            (repo.number, number, title, author, status, bool(base), now(), base, json.dumps(events)),
        )
        return number

    def open_pull_request(
        self, repo: Repo, title: str, description: str, author: str, *, base: str, status: str = "open"
    ) -> int:
        """A new pull request whose ref points to where its base points; gives its number."""
        number = self.open(repo, title, description, author, status=status, base=base)
        self._history.point(repo, f"{PULLS}{number}", self._history.refs(repo)[base])
        return number

    def note_commit(self, repo: Repo, ref: str, title: str, commit: str, author: str) -> None:
        """Add a commit to the events of the pull request that it went to, if it went to one."""
        if ref.startswith(PULLS):
            self.add_event(repo, int(ref.removeprefix(PULLS)), "commit", author, {"subject": title, "oid": commit})

    def add_event(self, repo: Repo, number: int, kind: str, author: str, data: Mapping[str, Any]) -> dict[str, Any]:
        """Add an event."""
        event = _event(kind, author, data)
        events = [*json.loads(self.find(repo, number)["events"]), event]
        self._database.connection.execute(
            "UPDATE discussions SET events = ? WHERE repo = ? AND number = ?",
            (json.dumps(events), repo.number, number),
        )
        return event

    def comment(self, repo: Repo, number: int, text: str, author: str) -> dict[str, Any]:
        """Add a comment."""
        return self.add_event(repo, number, "comment", author, _comment(text, author)["data"])

    def set_status(self, repo: Repo, number: int, status: str, author: str) -> dict[str, Any]:
        """Open or close one, or mark it as merged."""
        self._database.connection.execute(
            "UPDATE discussions SET status = ? WHERE repo = ? AND number = ?", (status, repo.number, number)
        )
        return self.add_event(repo, number, "status-change", author, {"status": status})

    def set_title(self, repo: Repo, number: int, title: str, author: str) -> dict[str, Any]:
        """Give one another title."""
        before = self.find(repo, number)["title"]
        self._database.connection.execute(
            "UPDATE discussions SET title = ? WHERE repo = ? AND number = ?", (title, repo.number, number)
        )
        return self.add_event(repo, number, "title-change", author, {"from": before, "to": title})

    def conflicts(self, repo: Repo, row: sqlite3.Row) -> list[str]:
        """Files that a pull request and its base have changed, each in its own way."""
        return self._merge(repo, row)[1] if row["is_pull_request"] and not row["merge_commit"] else []

    def before_and_after(self, repo: Repo, row: sqlite3.Row) -> tuple[dict[str, Entry], dict[str, Entry]]:
        """Files of the base of a pull request, and what merging makes of them, but for those in conflict."""
        return self._history.tree(repo, self._history.refs(repo)[row["base"]]), self._merge(repo, row)[0]

    def merge(self, repo: Repo, number: int, author: str) -> str:
        """Merge a pull request: one commit on its base; gives its id.

        Raises:
            Refusal: it is not open, or there are conflicts.
        """
        row = self.find(repo, number)
        if not row["is_pull_request"] or row["status"] != "open":
            raise Refusal(400, "Only open pull requests can be merged")
        tree, conflicts = self._merge(repo, row)
        if conflicts:
            raise Refusal(409, "This pull request has conflicts", fields={"filesWithConflicts": conflicts})
        head = self._history.refs(repo)[row["base"]]
        commit = self._history.add_commit(repo, head, tree, f"{row['title']} (#{number})", "", author)
        self._history.point(repo, row["base"], commit)
        self._database.connection.execute(
            "UPDATE discussions SET merge_commit = ? WHERE repo = ? AND number = ?", (commit, repo.number, number)
        )
        self.set_status(repo, number, "merged", author)
        return commit

    def _merge(self, repo: Repo, row: sqlite3.Row) -> tuple[dict[str, Entry], list[str]]:
        """Files after a merge, and those in conflict."""
        refs = self._history.refs(repo)
        head, changed = refs[row["base"]], refs[f"{PULLS}{row['number']}"]
        known = {commit["oid"] for commit in self._history.ancestry(repo, head)}
        common = next((commit["oid"] for commit in self._history.ancestry(repo, changed) if commit["oid"] in known), "")
        before, ours, theirs = (self._history.tree(repo, oid) if oid else {} for oid in (common, head, changed))
        result, conflicts = dict(ours), []
        for path in sorted(before.keys() | theirs.keys()):
            old, new, own = (_oid(tree, path) for tree in (before, theirs, ours))
            if new in (old, own):
                continue
            if own != old:
                conflicts.append(path)
            elif path in theirs:
                result[path] = theirs[path]
            else:
                del result[path]
        return result, conflicts

    def describe(self, repo: Repo, row: sqlite3.Row) -> dict[str, Any]:
        """One of a list, as the Hub gives it."""
        return {
            "num": row["number"],
            "title": row["title"],
            "author": {"name": row["author"], "type": "user"},
            "createdAt": row["created"],
            "status": row["status"],
            "isPullRequest": bool(row["is_pull_request"]),
            "repo": {"name": repo.identity, "type": repo.kind},
        }

    def describe_fully(self, repo: Repo, row: sqlite3.Row) -> dict[str, Any]:
        """One with its events, as the Hub gives it."""
        answer = {**self.describe(repo, row), "events": json.loads(row["events"])}
        if row["is_pull_request"]:
            answer["changes"] = {"base": row["base"]}
            if row["merge_commit"]:
                answer["changes"]["mergeCommitId"] = row["merge_commit"]
            answer["filesWithConflicts"] = self.conflicts(repo, row)
            answer["diff"] = ""
        return answer


def commit_target(call: Call) -> Repo:
    """The repo that the one who asks may commit to, at the revision that the path names.

    Whoever may read a repo and write at all may open a pull request, and add to those that they have opened.

    Raises:
        Refusal: there is none, or they may not.
    """
    repo, viewer = call.repo(), call.user()
    is_offer = bool(call.query.get("create_pr"))
    if not is_offer and not Discussions(call.hub).is_own_pull_request(repo, call.revision, viewer.name):
        call.writer(repo.owner, "write to a repo")
    if viewer.role != "write":
        raise Refusal(403, "Forbidden: you must use a write token to write to a repo")
    return repo


def base_ref(history_refs: Mapping[str, str]) -> str:
    """The branch that pull requests go to.

    Raises:
        Refusal: there is none.
    """
    if f"{HEADS}main" not in history_refs:
        raise Refusal(400, "The repo has no main branch")
    return f"{HEADS}main"


def _oid(tree: Mapping[str, Entry], path: str) -> str:
    return tree[path].oid if path in tree else ""


def _event(kind: str, author: str, data: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": secrets.token_hex(12),
        "type": kind,
        "createdAt": now(),
        "author": {"name": author, "type": "user"},
        "data": dict(data),
    }


def _comment(text: str, author: str) -> dict[str, Any]:
    latest = {"raw": text, "html": "", "updatedAt": now(), "author": {"name": author}}
    return _event("comment", author, {"edited": False, "hidden": False, "latest": latest, "history": [latest]})
