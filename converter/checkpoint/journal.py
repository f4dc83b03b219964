"""The journal of an output that is being made: what it is, and which tensors are finished.

The first line says what is made; each further line is one finished tensor of one component, since two components may
have tensors of the same names, or a long one that was begun. A line that was cut off by a kill does not count.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Entries of one component in the journal, by tensor of the source.
Finished = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Journal:
    """What an earlier run noted."""

    identity: Mapping[str, Any]
    """Everything that decides its output."""
    release: tuple[int, int]
    """Device and inode of the folder that it filled."""
    content: str
    """What the slots are filled with, as ``Staging.resume`` was told."""
    finished: Mapping[str, Finished]
    """What is finished, by component."""
    begun: Mapping[str, Finished]
    """The last note about each tensor that was begun, by component."""
    complete_bytes: int
    """Length of the journal without a last line that was cut off."""


class JournalFile:
    """The file of a journal; one process writes it.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def read(self) -> Journal | None:
        """What the file says; None when the file does not exist, or is not a journal."""
        try:
            content = self._path.read_bytes()
        except OSError:
            return None
        complete = content[: content.rfind(b"\n") + 1]
        try:
            first, *lines = [json.loads(line) for line in complete.splitlines()]
            device, inode = first["release"]
            finished: dict[str, dict[str, Any]] = {}
            begun: dict[str, dict[str, Any]] = {}
            for line in lines:
                kind, key = (begun, "begun") if "begun" in line else (finished, "tensor")
                kind.setdefault(line.get("component", ""), {})[line[key]] = line
            return Journal(first["identity"], (device, inode), first["content"], finished, begun, len(complete))
        except (ValueError, TypeError, KeyError, AttributeError):
            return None

    def begin(self, first: Mapping[str, Any], finished: Iterable[Mapping[str, Any]] = ()) -> None:
        """Write a new journal in place of the old one, and open it.

        Args:
            first: what is made.
            finished: entries to keep.

        Raises:
            OSError: it cannot be written.
        """
        self.close()
        draft = self._path.with_name("journal.new")
        draft.write_text("".join(json.dumps(line) + "\n" for line in (first, *finished)))
        draft.rename(self._path)
        self._open()

    def resume(self, journal: Journal) -> None:
        """Open the file to add to what was read from it, without a last line that was cut off."""
        os.truncate(self._path, journal.complete_bytes)
        self._open()

    def note(self, entry: Mapping[str, Any]) -> None:
        """Add one entry. Any thread may call this.

        Raises:
            OSError: it cannot be written.
        """
        if self._descriptor is None:
            raise RuntimeError("the journal is not open; call resume or begin first")
        os.write(self._descriptor, (json.dumps(entry) + "\n").encode())

    def remove(self) -> None:
        """Delete the file, if it is there."""
        self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file; it stays."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _open(self) -> None:
        self._descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
