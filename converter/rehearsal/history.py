"""Repos, their commits and their refs. Each commit lists all of its files."""

from __future__ import annotations

import hashlib
import secrets
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from huggingface_hub.utils.sha import git_hash

from converter.rehearsal.database import Database
from converter.rehearsal.names import COMMIT, check_revision
from converter.rehearsal.replies import Refusal, revision_not_found

HEADS, TAGS, PULLS = "refs/heads/", "refs/tags/", "refs/pr/"
MAIN = f"{HEADS}main"


@dataclass(frozen=True)
class Repo:
    """A repo as the database has it."""

    number: int
    owner: str
    name: str
    private: bool
    gated: str
    """``auto`` or ``manual``; empty when it is not gated."""
    created: str

    @property
    def identity(self) -> str:
        """``OWNER/NAME``."""
        return f"{self.owner}/{self.name}"


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
    """The commit that last changed it; empty before that commit exists."""

    @property
    def pointer(self) -> bytes:
        """The file that git keeps in place of an LFS object."""
        return _pointer(self.sha256, self.size)


def lfs_entry(path: str, sha256: str, size: int) -> Entry:
    """Describe a file that is an LFS object."""
    return Entry(path, git_hash(_pointer(sha256, size)), size, sha256, is_lfs=True)


def regular_entry(path: str, content: bytes) -> Entry:
    """Describe a file that git keeps itself."""
    return Entry(path, git_hash(content), len(content), hashlib.sha256(content).hexdigest(), is_lfs=False)


def now() -> str:
    """Return the time as huggingface.co writes it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class History:
    """Reads and changes repos, commits and refs. Changes belong into a transaction of the database.

    Args:
        database: the database.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, owner: str, name: str, private: bool) -> Repo:
        """Make a repo without any commit.

        Raises:
            sqlite3.IntegrityError: a repo of this name exists.
        """
        row = self._database.row(
            "INSERT INTO repos (owner, name, private, gated, created) VALUES (?, ?, ?, '', ?) RETURNING *",
            *(owner, name, private, now()),
        )
        if row is None:
            raise sqlite3.IntegrityError("a repo that was just made is gone")
        return _repo(row)

    def find(self, owner: str, name: str) -> Repo | None:
        """Return the repo of this name."""
        row = self._database.row("SELECT * FROM repos WHERE owner = ? AND name = ? COLLATE NOCASE", owner, name)
        return None if row is None else _repo(row)

    def repos(self) -> list[Repo]:
        """Return all repos."""
        return [_repo(row) for row in self._database.rows("SELECT * FROM repos ORDER BY owner, name")]

    def delete(self, repo: Repo) -> None:
        """Delete a repo with all of its commits."""
        self._database.execute("DELETE FROM repos WHERE id = ?", repo.number)

    def configure(self, repo: Repo, private: bool, gated: str) -> None:
        """Change who may read a repo."""
        self._database.execute("UPDATE repos SET private = ?, gated = ? WHERE id = ?", private, gated, repo.number)

    def refs(self, repo: Repo) -> dict[str, str]:
        """Return the commits of all refs."""
        rows = self._database.rows("SELECT ref, target FROM refs WHERE repo = ? ORDER BY ref", repo.number)
        return {row["ref"]: row["target"] for row in rows}

    def point(self, repo: Repo, ref: str, commit: str) -> None:
        """Make a ref point to a commit."""
        self._database.execute("INSERT OR REPLACE INTO refs VALUES (?, ?, ?)", repo.number, ref, commit)

    def remove_ref(self, repo: Repo, ref: str) -> None:
        """Remove a ref."""
        self._database.execute("DELETE FROM refs WHERE repo = ? AND ref = ?", repo.number, ref)

    def resolve(self, repo: Repo, revision: str) -> str:
        """Return the commit that a revision names.

        Raises:
            Refusal: the repo does not have this revision.
        """
        refs = self.refs(repo)
        for ref in (revision, HEADS + revision, TAGS + revision):
            if ref in refs:
                return refs[ref]
        if COMMIT.fullmatch(revision) and self.commit(repo, revision) is not None:
            return revision
        raise revision_not_found(revision)

    def branch(self, repo: Repo, revision: str) -> tuple[str, str]:
        """Return the ref that a commit to a revision moves, and the commit that it points to now.

        Raises:
            Refusal: the revision is not a branch or a pull request.
        """
        refs = self.refs(repo)
        for ref in (revision, HEADS + revision):
            if ref in refs and not ref.startswith(TAGS):
                return ref, refs[ref]
        if TAGS + check_revision(revision) in refs or COMMIT.fullmatch(revision):
            raise Refusal(400, "Commits go to a branch, not to a tag or a commit")
        raise revision_not_found(revision)

    def commit(self, repo: Repo, oid: str) -> sqlite3.Row | None:
        """Return title, message, author, date and parent of a commit."""
        return self._database.row("SELECT * FROM commits WHERE repo = ? AND oid = ?", repo.number, oid)

    def ancestry(self, repo: Repo, oid: str) -> Iterator[sqlite3.Row]:
        """Return a commit and those before it, newest first."""
        while oid and (row := self.commit(repo, oid)) is not None:
            yield row
            oid = row["parent"]

    def tree(self, repo: Repo, commit: str) -> dict[str, Entry]:
        """Return the files of a commit by their paths, sorted."""
        rows = self._database.rows(
            "SELECT path, oid, size, sha256, is_lfs, changed_in FROM entries WHERE repo = ? AND commit_oid = ? "
            "ORDER BY path",
            *(repo.number, commit),
        )
        return {row["path"]: Entry(**{**dict(row), "is_lfs": bool(row["is_lfs"])}) for row in rows}

    def add_commit(
        self, repo: Repo, parent: str, tree: Mapping[str, Entry], title: str, message: str, author: str
    ) -> str:
        """Make a commit, to which no ref points yet.

        Args:
            parent: the commit before; empty for the first.
            tree: all of its files by their paths.

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


def _pointer(sha256: str, size: int) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def _repo(row: sqlite3.Row) -> Repo:
    return Repo(row["id"], row["owner"], row["name"], bool(row["private"]), row["gated"], row["created"])
