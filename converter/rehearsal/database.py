"""Everything that the local Hub stores except the content of files: one SQLite file."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from converter.errors import OutputError

_FILE_NAME = "hub.sqlite"
#: Number of the schema. A file with another number comes from another version of lensconv.
_VERSION = 4
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS repos (
    number INTEGER PRIMARY KEY AUTOINCREMENT, owner TEXT NOT NULL, name TEXT NOT NULL,
    private INTEGER NOT NULL, gated TEXT NOT NULL, created TEXT NOT NULL, UNIQUE (owner, name)
);
CREATE TABLE IF NOT EXISTS former_names (
    owner TEXT NOT NULL COLLATE NOCASE, name TEXT NOT NULL COLLATE NOCASE,
    repo INTEGER NOT NULL REFERENCES repos ON DELETE CASCADE, PRIMARY KEY (owner, name)
);
CREATE TABLE IF NOT EXISTS commits (
    repo INTEGER NOT NULL REFERENCES repos ON DELETE CASCADE, oid TEXT NOT NULL, parent TEXT NOT NULL,
    title TEXT NOT NULL, message TEXT NOT NULL, author TEXT NOT NULL, date TEXT NOT NULL, PRIMARY KEY (repo, oid)
);
CREATE TABLE IF NOT EXISTS entries (
    repo INTEGER NOT NULL, commit_oid TEXT NOT NULL, path TEXT NOT NULL, oid TEXT NOT NULL, size INTEGER NOT NULL,
    sha256 TEXT NOT NULL, pointer_size INTEGER NOT NULL, changed_in TEXT NOT NULL, PRIMARY KEY (repo, commit_oid, path),
    FOREIGN KEY (repo, commit_oid) REFERENCES commits (repo, oid) ON DELETE CASCADE ON UPDATE CASCADE
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS refs (
    repo INTEGER NOT NULL REFERENCES repos ON DELETE CASCADE, ref TEXT NOT NULL, target TEXT NOT NULL,
    PRIMARY KEY (repo, ref)
);
CREATE TABLE IF NOT EXISTS objects (
    repo INTEGER NOT NULL REFERENCES repos ON DELETE CASCADE, sha256 TEXT NOT NULL, PRIMARY KEY (repo, sha256)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pull_requests (
    repo INTEGER NOT NULL REFERENCES repos ON DELETE CASCADE, number INTEGER NOT NULL, content TEXT NOT NULL,
    PRIMARY KEY (repo, number)
);
PRAGMA user_version = {_VERSION};
"""


class Database:
    """The SQLite file. Only the thread that made it uses it.

    A block ``with database.connection:`` is one transaction: all of its changes are stored, or none.

    Args:
        folder: the folder of the file; it is made if it does not exist.

    Raises:
        OutputError: the folder cannot be written to, contains another file of this name, or is in use.
    """

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.connection = sqlite3.connect(folder / _FILE_NAME, isolation_level="IMMEDIATE", timeout=0.5)
            self.connection.row_factory = sqlite3.Row
            # The Hub keeps the lock while it runs: two Hubs in one folder would not know of each other.
            for setting in ("locking_mode=EXCLUSIVE", "journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
                self.connection.execute(f"PRAGMA {setting}")
            (version,) = self.connection.execute("PRAGMA user_version").fetchone()
            if version != _VERSION and self.rows("SELECT name FROM sqlite_master"):
                raise sqlite3.DatabaseError("another version")
            self.connection.executescript(_SCHEMA)
        except sqlite3.OperationalError as error:
            hint = "Stop the Hub that uses it, or choose another folder."
            raise OutputError(f"{folder}: the state of the Hub cannot be opened: {error}", hint) from error
        except sqlite3.DatabaseError as error:
            message = f"{folder}: {_FILE_NAME} was not written by this version of lensconv"
            raise OutputError(message, "Choose another folder.") from error

    def rows(self, query: str, *values: object) -> list[sqlite3.Row]:
        """Return all rows of a query."""
        return self.connection.execute(query, values).fetchall()

    def row(self, query: str, *values: object) -> sqlite3.Row | None:
        """Return the first row of a query."""
        found: sqlite3.Row | None = self.connection.execute(query, values).fetchone()
        return found

    def execute(self, statement: str, *values: object) -> int:
        """Run a statement that changes something; return the number of the row that it inserted."""
        return self.connection.execute(statement, values).lastrowid or 0
