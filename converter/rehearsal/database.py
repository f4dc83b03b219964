"""The state of the local Hub but for the content of files: one SQLite file, one transaction a change."""

from __future__ import annotations

import hashlib
import secrets
import sqlite3
from pathlib import Path

from converter.errors import OutputError, printable
from converter.rehearsal.settings import Account

_SCHEMA = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS accounts (
    token_sha256 TEXT PRIMARY KEY, name TEXT NOT NULL, role TEXT NOT NULL, organizations TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS repos (
    id INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, owner TEXT NOT NULL, name TEXT NOT NULL,
    private INTEGER NOT NULL, gated TEXT NOT NULL, created TEXT NOT NULL, UNIQUE (kind, owner, name)
);
CREATE TABLE IF NOT EXISTS commits (
    repo INTEGER NOT NULL REFERENCES repos ON DELETE CASCADE, oid TEXT NOT NULL, parent TEXT NOT NULL,
    title TEXT NOT NULL, message TEXT NOT NULL, author TEXT NOT NULL, date TEXT NOT NULL, PRIMARY KEY (repo, oid)
);
CREATE TABLE IF NOT EXISTS entries (
    repo INTEGER NOT NULL, commit_oid TEXT NOT NULL, path TEXT NOT NULL, oid TEXT NOT NULL, size INTEGER NOT NULL,
    sha256 TEXT NOT NULL, is_lfs INTEGER NOT NULL, changed_in TEXT NOT NULL, PRIMARY KEY (repo, commit_oid, path),
    FOREIGN KEY (repo, commit_oid) REFERENCES commits (repo, oid) ON DELETE CASCADE
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS refs (
    repo INTEGER NOT NULL REFERENCES repos ON DELETE CASCADE, ref TEXT NOT NULL, target TEXT NOT NULL,
    PRIMARY KEY (repo, ref)
);
CREATE TABLE IF NOT EXISTS discussions (
    repo INTEGER NOT NULL REFERENCES repos ON DELETE CASCADE, number INTEGER NOT NULL, title TEXT NOT NULL,
    author TEXT NOT NULL, status TEXT NOT NULL, is_pull_request INTEGER NOT NULL, created TEXT NOT NULL,
    base TEXT NOT NULL, merge_commit TEXT NOT NULL, events TEXT NOT NULL, PRIMARY KEY (repo, number)
);
CREATE TABLE IF NOT EXISTS forgotten (sha256 TEXT PRIMARY KEY, at_ns INTEGER NOT NULL);
"""


class Database:
    """The SQLite file. Only the thread that made it uses it.

    Args:
        folder: where it lies; is made if it is not there.
        accounts: who may use the Hub, besides those of earlier runs.

    Raises:
        OutputError: the folder cannot be written to, holds another file of this name, or is in use.
    """

    def __init__(self, folder: Path, accounts: tuple[Account, ...] = ()) -> None:
        where = printable(str(folder))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.connection = sqlite3.connect(folder / "hub.sqlite", isolation_level=None, timeout=0.5)
            self.connection.row_factory = sqlite3.Row
            # The lock is held while the Hub runs: two of them in one folder would not know of each other.
            for setting in ("locking_mode=EXCLUSIVE", "journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
                self.connection.execute(f"PRAGMA {setting}")
            self.connection.executescript(_SCHEMA)
            with self.change():
                self._keep_accounts(accounts)
        except sqlite3.OperationalError as error:
            hint = "Stop the Hub that uses it, or choose another folder."
            raise OutputError(f"{where}: the state of the Hub cannot be opened: {error}", hint) from error
        except sqlite3.DatabaseError as error:
            raise OutputError(f"{where}: hub.sqlite is no state of a Hub", "Choose another folder.") from error

    def change(self) -> _Transaction:
        """A transaction: all of what the block changes, or nothing."""
        return _Transaction(self.connection)

    def rows(self, query: str, *values: object) -> list[sqlite3.Row]:
        """What a query gives."""
        return self.connection.execute(query, values).fetchall()

    def row(self, query: str, *values: object) -> sqlite3.Row | None:
        """The first row that a query gives."""
        found: sqlite3.Row | None = self.connection.execute(query, values).fetchone()
        return found

    def fact(self, name: str) -> str:
        """A remembered value; empty if there is none."""
        row = self.row("SELECT value FROM facts WHERE name = ?", name)
        return "" if row is None else str(row["value"])

    def remember(self, name: str, value: str) -> None:
        """Keep a value."""
        self.connection.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))

    def signing_key(self) -> bytes:
        """The key for addresses that carry their own permission; made when it is first needed."""
        if not self.fact("signing_key"):
            self.remember("signing_key", secrets.token_hex(32))
        return bytes.fromhex(self.fact("signing_key"))

    def account(self, token: str) -> sqlite3.Row | None:
        """Name, role and organizations of the one whose token it is."""
        return self.row("SELECT * FROM accounts WHERE token_sha256 = ?", hash_token(token))

    def close(self) -> None:
        """Let go of the file."""
        self.connection.close()

    def _keep_accounts(self, accounts: tuple[Account, ...]) -> None:
        self.connection.executemany(
            "INSERT OR REPLACE INTO accounts VALUES (?, ?, ?, ?)",
            [
                (hash_token(account.token), account.name, account.role, " ".join(account.organizations))
                for account in accounts
            ],
        )


class _Transaction:
    """Commits what its block did, or takes it back."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __enter__(self) -> sqlite3.Connection:
        self._connection.execute("BEGIN IMMEDIATE")
        return self._connection

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._connection.execute("COMMIT" if kind is None else "ROLLBACK")


def hash_token(token: str) -> str:
    """What the state keeps of a token."""
    return hashlib.sha256(token.encode()).hexdigest()
