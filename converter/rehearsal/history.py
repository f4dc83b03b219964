"""Repos, their commits, and what points to those. A commit here lists all files that it has."""

from __future__ import annotations

import hashlib
import secrets
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from converter.rehearsal.database import Database
from converter.rehearsal.names import COMMIT, PREFIXES, check_revision
from converter.rehearsal.replies import Refusal, revision_not_found

HEADS, TAGS, PULLS = "refs/heads/", "refs/tags/", "refs/pr/"
MAIN = f"{HEADS}main"


@dataclass(frozen=True)
class Repo:
    """A repo as the state has it."""

    number: int
    kind: str
    owner: str
    name: str
    private: bool
    gated: str
    """``auto`` or ``manual``; empty when it is not gated."""
    created: str

    @property
    def identity(self) -> str:
        """What clients call it."""
        return f"{self.owner}/{self.name}"

    @property
    def page(self) -> str:
        """The path of its page, without the first slash."""
        return PREFIXES[self.kind] + self.identity


@dataclass(frozen=True)
class Entry:
    """A file of a commit."""

    path: str
    oid: str
    """SHA-1 of the git blob: of the file, or of its LFS pointer."""
    size: int
    sha256: str
    is_lfs: bool
    changed_in: str = ""
    """The commit that made it what it is; empty before there is one."""


def blob_oid(content: bytes) -> str:
    """The id that git gives to content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def pointer(sha256: str, size: int) -> bytes:
    """The file that git keeps in place of an LFS object."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def lfs_entry(path: str, sha256: str, size: int) -> Entry:
    """A file that is an LFS object."""
    return Entry(path, blob_oid(pointer(sha256, size)), size, sha256, is_lfs=True)


def regular_entry(path: str, content: bytes) -> Entry:
    """A file that git keeps itself."""
    digest = hashlib.sha256(content).hexdigest()
    return Entry(path, blob_oid(content), len(content), digest, is_lfs=False)


def now() -> str:
    """The time as the Hub writes it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class History:
    """Reads and changes repos, commits and refs. Changes belong into a transaction of the database.

    Args:
        database: the state.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, kind: str, owner: str, name: str, private: bool) -> Repo:
        """A new repo, without any commit.

        Raises:
            sqlite3.IntegrityError: there is one of this name.
        """
        self._database.connection.execute(
            "INSERT INTO repos (kind, owner, name, private, gated, created) VALUES (?, ?, ?, ?, '', ?)",
            (kind, owner, name, private, now()),
        )
        repo = self.find(kind, owner, name)
        if repo is None:
            raise sqlite3.IntegrityError("a repo that was just made is gone")
        return repo

    def find(self, kind: str, owner: str, name: str) -> Repo | None:
        """The repo of this name."""
        row = self._database.row(
            "SELECT * FROM repos WHERE kind = ? AND owner = ? AND name = ? COLLATE NOCASE", kind, owner, name
        )
        return None if row is None else _repo(row)

    def repos(self) -> list[Repo]:
        """All repos."""
        return [_repo(row) for row in self._database.rows("SELECT * FROM repos ORDER BY owner, name")]

    def delete(self, repo: Repo) -> None:
        """Remove a repo with all its commits."""
        self._database.connection.execute("DELETE FROM repos WHERE id = ?", (repo.number,))

    def configure(self, repo: Repo, private: bool, gated: str) -> None:
        """Change who sees a repo."""
        self._database.connection.execute(
            "UPDATE repos SET private = ?, gated = ? WHERE id = ?", (private, gated, repo.number)
        )

    def refs(self, repo: Repo) -> dict[str, str]:
        """Commits by what points to them."""
        rows = self._database.rows("SELECT ref, target FROM refs WHERE repo = ? ORDER BY ref", repo.number)
        return {row["ref"]: row["target"] for row in rows}

    def point(self, repo: Repo, ref: str, commit: str) -> None:
        """Make a ref point to a commit."""
        self._database.connection.execute("INSERT OR REPLACE INTO refs VALUES (?, ?, ?)", (repo.number, ref, commit))

    def remove_ref(self, repo: Repo, ref: str) -> None:
        """Remove a ref."""
        self._database.connection.execute("DELETE FROM refs WHERE repo = ? AND ref = ?", (repo.number, ref))

    def resolve(self, repo: Repo, revision: str) -> str:
        """The commit that a revision names.

        Raises:
            Refusal: there is none.
        """
        refs = self.refs(repo)
        for ref in (revision, HEADS + revision, TAGS + revision):
            if ref in refs:
                return refs[ref]
        if COMMIT.fullmatch(revision) and self.commit(repo, revision) is not None:
            return revision
        raise revision_not_found(revision)

    def branch(self, repo: Repo, revision: str) -> tuple[str, str]:
        """The ref that a commit to a revision moves, and where it points to now.

        Raises:
            Refusal: it is no branch.
        """
        refs = self.refs(repo)
        for ref in (revision, HEADS + revision):
            if ref in refs and not ref.startswith(TAGS):
                return ref, refs[ref]
        if TAGS + check_revision(revision) in refs or COMMIT.fullmatch(revision):
            raise Refusal(400, "Commits go to a branch, not to a tag or a commit")
        raise revision_not_found(revision)

    def commit(self, repo: Repo, oid: str) -> sqlite3.Row | None:
        """Title, message, author, date and parent of a commit."""
        return self._database.row("SELECT * FROM commits WHERE repo = ? AND oid = ?", repo.number, oid)

    def ancestry(self, repo: Repo, oid: str) -> Iterator[sqlite3.Row]:
        """A commit and those before it, newest first."""
        while oid and (row := self.commit(repo, oid)) is not None:
            yield row
            oid = row["parent"]

    def tree(self, repo: Repo, commit: str) -> dict[str, Entry]:
        """Files of a commit by their paths, sorted."""
        rows = self._database.rows(
            "SELECT path, oid, size, sha256, is_lfs, changed_in FROM entries WHERE repo = ? AND commit_oid = ? "
            "ORDER BY path",
            repo.number,
            commit,
        )
        return {row["path"]: Entry(**{**dict(row), "is_lfs": bool(row["is_lfs"])}) for row in rows}

    def entry(self, repo: Repo, commit: str, path: str) -> Entry | None:
        """A file of a commit."""
        row = self._database.row(
            "SELECT path, oid, size, sha256, is_lfs, changed_in FROM entries "
            "WHERE repo = ? AND commit_oid = ? AND path = ?",
            repo.number,
            commit,
            path,
        )
        return None if row is None else Entry(**{**dict(row), "is_lfs": bool(row["is_lfs"])})

    def add_commit(
        self, repo: Repo, parent: str, tree: Mapping[str, Entry], title: str, message: str, author: str
    ) -> str:
        """A new commit; what points to it is the caller's affair.

        Args:
            parent: the commit before; empty for the first.
            tree: all files that it has, by their paths.

        Returns:
            Its id.
        """
        date = now()
        text = "\0".join([repo.identity, parent, title, message, author, date, secrets.token_hex(8)])
        oid = hashlib.sha1(text.encode("utf-8", "surrogatepass"), usedforsecurity=False).hexdigest()
        connection = self._database.connection
        connection.execute(
            "INSERT INTO commits VALUES (?, ?, ?, ?, ?, ?, ?)",
            (repo.number, oid, parent, title, message, author, date),
        )
        connection.executemany(
            "INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (repo.number, oid, path, file.oid, file.size, file.sha256, file.is_lfs, file.changed_in or oid)
                for path, file in tree.items()
            ],
        )
        return oid

    def used_bytes(self, repo: Repo) -> int:
        """Bytes of all LFS objects that any commit of a repo has."""
        row = self._database.row(
            "SELECT COALESCE(SUM(size), 0) AS total FROM "
            "(SELECT DISTINCT sha256, size FROM entries WHERE repo = ? AND is_lfs)",
            repo.number,
        )
        return 0 if row is None else int(row["total"])

    def private_bytes(self, owner: str) -> int:
        """Bytes of all LFS objects in the private repos of a namespace."""
        return sum(self.used_bytes(repo) for repo in self.repos() if repo.private and repo.owner == owner)


def _repo(row: sqlite3.Row) -> Repo:
    return Repo(row["id"], row["kind"], row["owner"], row["name"], bool(row["private"]), row["gated"], row["created"])
