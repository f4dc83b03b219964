"""Repos with their commits and refs. Each commit lists all of its files."""

from __future__ import annotations

import hashlib
import secrets
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from huggingface_hub.utils.sha import git_hash

from converter.rehearsal.database import Database
from converter.rehearsal.names import SHORT_COMMIT
from converter.rehearsal.replies import revision_not_found

HEADS, TAGS, PULLS = "refs/heads/", "refs/tags/", "refs/pr/"
MAIN = f"{HEADS}main"


@dataclass(frozen=True)
class Entry:
    """A file of a commit."""

    path: str
    oid: str
    """SHA-1 of the git blob: of the file, or of its LFS pointer."""
    size: int
    sha256: str
    pointer_size: int = 0
    """Bytes of the LFS pointer; 0 for a file that git keeps itself."""
    changed_in: str = ""
    """The commit that last changed it; empty before that commit exists."""

    @property
    def is_lfs(self) -> bool:
        """Whether it is an LFS object."""
        return self.pointer_size > 0


def lfs_entry(path: str, sha256: str, size: int) -> Entry:
    """Describe a file that is an LFS object."""
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
    return Entry(path, git_hash(pointer), size, sha256, pointer_size=len(pointer))


def regular_entry(path: str, content: bytes) -> Entry:
    """Describe a file that git keeps itself."""
    return Entry(path, git_hash(content), len(content), hashlib.sha256(content).hexdigest())


def now() -> str:
    """Return the time as huggingface.co writes it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(frozen=True)
class Repo:
    """A repo. Changes to it belong into a transaction of the database."""

    database: Database
    number: int
    owner: str
    name: str
    private: bool
    gated: str
    """``auto`` or ``manual``; empty when it is not gated."""
    created: str

    @classmethod
    def create(cls, database: Database, owner: str, name: str, private: bool) -> Repo:
        """Make a repo without any commit, of a name that is free."""
        created = now()
        database.execute("DELETE FROM former_names WHERE owner = ? AND name = ?", owner, name)
        number = database.execute(
            "INSERT INTO repos (owner, name, private, gated, created) VALUES (?, ?, ?, '', ?)",
            *(owner, name, private, created),
        )
        return cls(database, number, owner, name, private, "", created)

    @classmethod
    def select(cls, database: Database, condition: str = "TRUE", *values: object) -> list[Repo]:
        """Return the repos that fulfil a condition in SQL; by default all."""
        query = f"SELECT * FROM repos WHERE {condition} ORDER BY owner, name"  # noqa: S608 - our own words
        rows = database.rows(query, *values)
        return [cls(database, **{**dict(row), "private": bool(row["private"])}) for row in rows]

    @classmethod
    def find(cls, database: Database, owner: str, name: str) -> Repo | None:
        """Return the repo of this name, in whose letters case does not matter."""
        condition = "owner = ? COLLATE NOCASE AND name = ? COLLATE NOCASE"
        return next(iter(cls.select(database, condition, owner, name)), None)

    @classmethod
    def find_moved(cls, database: Database, owner: str, name: str) -> Repo | None:
        """Return the repo that had this name before it was moved."""
        condition = "number = (SELECT repo FROM former_names WHERE owner = ? AND name = ?)"
        return next(iter(cls.select(database, condition, owner, name)), None)

    @property
    def identity(self) -> str:
        """``OWNER/NAME``."""
        return f"{self.owner}/{self.name}"

    def delete(self) -> None:
        """Delete it with all of its commits."""
        self.database.execute("DELETE FROM repos WHERE number = ?", self.number)

    def move(self, owner: str, name: str) -> None:
        """Give it another name, which is free; its present one leads to it from now on."""
        self.database.execute("DELETE FROM former_names WHERE owner = ? AND name = ?", owner, name)
        self.database.execute(
            "INSERT OR REPLACE INTO former_names VALUES (?, ?, ?)", self.owner, self.name, self.number
        )
        self.database.execute("UPDATE repos SET owner = ?, name = ? WHERE number = ?", owner, name, self.number)

    def configure(self, private: bool, gated: str) -> None:
        """Change who may read it."""
        self.database.execute("UPDATE repos SET private = ?, gated = ? WHERE number = ?", private, gated, self.number)

    def refs(self) -> dict[str, str]:
        """Return the commits of all refs."""
        rows = self.database.rows("SELECT ref, target FROM refs WHERE repo = ? ORDER BY ref", self.number)
        return {row["ref"]: row["target"] for row in rows}

    def point(self, ref: str, commit: str) -> None:
        """Make a ref point to a commit."""
        self.database.execute("INSERT OR REPLACE INTO refs VALUES (?, ?, ?)", self.number, ref, commit)

    def remove_ref(self, ref: str) -> None:
        """Remove a ref."""
        self.database.execute("DELETE FROM refs WHERE repo = ? AND ref = ?", self.number, ref)

    def resolve(self, revision: str) -> str:
        """Return the commit that a revision names; raise Refusal if the repo does not have this revision."""
        refs = self.refs()
        for ref in (revision, HEADS + revision, TAGS + revision):
            if ref in refs:
                return refs[ref]
        if SHORT_COMMIT.fullmatch(revision):
            query = "SELECT oid FROM commits WHERE repo = ? AND oid GLOB ? LIMIT 2"
            found = self.database.rows(query, self.number, f"{revision}*")
            if len(found) == 1:
                return str(found[0]["oid"])
        raise revision_not_found(revision)

    def branch(self, revision: str) -> tuple[str, str]:
        """Return the ref that a commit to a revision moves, and the commit that it points to now.

        Raises:
            Refusal: the revision is not a branch or a pull request.
        """
        refs = self.refs()
        for ref in (revision, HEADS + revision):
            if ref in refs and not ref.startswith(TAGS):
                return ref, refs[ref]
        raise revision_not_found(revision)

    def commit(self, oid: str) -> sqlite3.Row | None:
        """Return title, message, author, date and parent of a commit."""
        return self.database.row("SELECT * FROM commits WHERE repo = ? AND oid = ?", self.number, oid)

    def ancestry(self, oid: str) -> Iterator[sqlite3.Row]:
        """Return a commit and those before it, newest first."""
        while oid and (row := self.commit(oid)) is not None:
            yield row
            oid = row["parent"]

    def tree(self, commit: str) -> dict[str, Entry]:
        """Return the files of a commit by their paths, sorted."""
        rows = self.database.rows(
            "SELECT path, oid, size, sha256, pointer_size, changed_in FROM entries WHERE repo = ? AND commit_oid = ? "
            "ORDER BY path",
            *(self.number, commit),
        )
        return {row["path"]: Entry(*row) for row in rows}

    def add_commit(self, parent: str, tree: Mapping[str, Entry], title: str, author: str, message: str = "") -> str:
        """Make a commit, to which no ref points yet.

        Args:
            parent: the commit before; empty for the first.
            tree: all of its files by their paths.
            title: the first line of its message.
            author: the user who made it.
            message: the rest.

        Returns:
            Its id.
        """
        oid = secrets.token_hex(20)
        self.database.execute(
            "INSERT INTO commits VALUES (?, ?, ?, ?, ?, ?, ?)",
            *(self.number, oid, parent, title, message, author, now()),
        )
        for path, file in tree.items():
            self.database.execute(
                "INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                *(self.number, oid, path, file.oid, file.size, file.sha256, file.pointer_size, file.changed_in or oid),
            )
        return oid

    def has_object(self, sha256: str) -> bool:
        """Whether commits to it may name an LFS object: what other repos have does not count."""
        return self.database.row("SELECT 1 FROM objects WHERE repo = ? AND sha256 = ?", self.number, sha256) is not None

    def add_objects(self, sha256s: Iterable[str]) -> None:
        """Let commits to it name LFS objects, which are stored."""
        for sha256 in sha256s:
            self.database.execute("INSERT OR IGNORE INTO objects VALUES (?, ?)", self.number, sha256)

    def used_storage(self) -> int:
        """Return the bytes of all of its LFS objects."""
        objects = "SELECT DISTINCT sha256, size FROM entries WHERE repo = ? AND pointer_size > 0"
        row = self.database.row(f"SELECT SUM(size) AS bytes FROM ({objects})", self.number)  # noqa: S608 - our own words
        return 0 if row is None else row["bytes"] or 0

    def large_files(self) -> dict[str, tuple[Entry, str]]:
        """Return the LFS objects of all commits by their sha256: the first file of each, and the ref it was pushed to.

        The ref is empty if the commit belongs to none any more.
        """
        refs = self.refs()
        pushed = {
            row["oid"]: ref
            for ref in sorted(refs, key=lambda ref: (ref == MAIN, ref.startswith(HEADS)))
            for row in self.ancestry(refs[ref])
        }
        rows = self.database.rows(
            "SELECT path, entries.oid, size, sha256, pointer_size, changed_in FROM entries JOIN commits "
            "ON commits.repo = entries.repo AND commits.oid = changed_in "
            "WHERE entries.repo = ? AND pointer_size > 0 ORDER BY commits.rowid, path",
            self.number,
        )
        found: dict[str, tuple[Entry, str]] = {}
        for row in rows:
            found.setdefault(row["sha256"], (Entry(*row), pushed.get(row["changed_in"], "")))
        return found

    def remove_large_files(self, sha256s: set[str]) -> None:
        """Remove LFS objects from all commits. These, and those that follow them, get new ids."""
        changed: set[str] = set()
        for sha256 in sha256s:
            condition = "repo = ? AND sha256 = ? AND pointer_size > 0"
            rows = self.database.rows(f"SELECT commit_oid FROM entries WHERE {condition}", self.number, sha256)  # noqa: S608
            changed.update(row["commit_oid"] for row in rows)
            self.database.execute(f"DELETE FROM entries WHERE {condition}", self.number, sha256)  # noqa: S608 - our words
            self.database.execute("DELETE FROM objects WHERE repo = ? AND sha256 = ?", self.number, sha256)
        for row in self.database.rows("SELECT oid, parent FROM commits WHERE repo = ? ORDER BY rowid", self.number):
            if row["oid"] in changed or row["parent"] in changed:
                changed.add(row["oid"])
                self._rename_commit(row["oid"], secrets.token_hex(20))

    def _rename_commit(self, old: str, new: str) -> None:
        for table, column in (
            ("commits", "oid"),
            ("commits", "parent"),
            ("refs", "target"),
            ("entries", "changed_in"),
        ):
            statement = f"UPDATE {table} SET {column} = ? WHERE repo = ? AND {column} = ?"  # noqa: S608 - our own words
            self.database.execute(statement, new, self.number, old)
