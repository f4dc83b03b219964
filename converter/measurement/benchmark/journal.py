"""The journal of measurements, one JSON object per line, from which a benchmark that was killed continues.

The first line identifies the benchmark: weights, prompts, settings, machine and versions. Every other line is a load,
an image or a failure, with its model, mode, pair and attempt, and with the number of the worker that it comes from.
Failures stay when a later run succeeds.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

import jsonschema

from converter.checkpoint.writer import write_error
from converter.errors import EvidenceError, OutputError
from converter.schemas import load_schema

JOURNAL_NAME = "measurements.jsonl"
_FORMAT = "lensconv.measurements/2"
#: Key of the line of a load.
LOAD_KEY = "(load)"


def is_image_key(key: str) -> bool:
    """Whether a line is about an image, of a prompt or of its baseline; ids of prompts begin with a letter or digit."""
    return not key.startswith("(")


@dataclass(frozen=True, order=True)
class Cell:
    """One model in one mode, in one attempt at one pair: a session, usually of one process."""

    mode: str
    pair: int
    """From 0; a pair is two adjacent sessions, one of each model."""
    attempt: int
    """1 if the pair was measured once more, else 0."""
    model: str


class Journal:
    """The journal of one folder; at most one process writes it.

    Args:
        folder: the folder of measurements.
        identity: everything that figures depend on, as JSON values by name.
        restart: whether to delete an existing journal.

    Raises:
        OutputError: it is the journal of another benchmark, or another process is writing it.
        EvidenceError: it is damaged.
        DiskError: the disk is full.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], *, restart: bool) -> None:
        self.file = folder / JOURNAL_NAME
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise write_error(self.file, error) from error
        #: Figures by cell and key, with the number of the ``worker``.
        self.measured: dict[tuple[Cell, str], dict[str, Any]] = {}
        #: Reasons of failures by cell and key, in their order.
        self.failures: dict[tuple[Cell, str], list[str]] = {}
        #: The cell of each worker that is named, by its number.
        self.cell_of: dict[int, Cell] = {}
        try:
            self._lock()
            entries = [] if restart else self._read()
            #: Whether it has no measurements of earlier runs.
            self.is_new = len(entries) < 2
            #: Number of the last worker; one that measures nothing has described the machine for this run.
            self.worker = 1 + max((entry["worker"] for entry in entries[1:]), default=0)
            if entries:
                self._compare(entries[0], identity)
            else:
                self._append({"format": _FORMAT, **identity}, truncates=True)
            for entry in entries[1:]:
                self._take(entry)
        except BaseException:
            os.close(self._descriptor)
            raise

    def note(self, cell: Cell, key: str, figures: Mapping[str, Any]) -> None:
        """Write a measurement, or a failure (``failed``), durably.

        Raises:
            OutputError: it cannot be written.
            DiskError: the disk is full.
        """
        entry = {**asdict(cell), "key": key, "worker": self.worker, **figures}
        self._append(entry)
        self._take(entry)

    def _take(self, entry: Mapping[str, Any]) -> None:
        figures = dict(entry)
        cell = Cell(*(figures.pop(field.name) for field in fields(Cell)))
        key = figures.pop("key")
        self.cell_of[figures["worker"]] = cell
        if "failed" in figures:
            self.failures.setdefault((cell, key), []).append(figures["failed"])
        else:
            self.measured[cell, key] = figures

    def _lock(self) -> None:
        if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
            raise OutputError(f"{self.file}: is not a file", "Remove it, or choose another folder with --out.")
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(
                f"{self.file}: another process is measuring into this folder", "Wait until it ends."
            ) from error

    def _read(self) -> list[dict[str, Any]]:
        content = self.file.read_bytes()
        # A last line that was cut off is dropped, so that the next one is not appended to it.
        complete = content.rpartition(b"\n")[0] + b"\n" if b"\n" in content else b""
        if len(complete) < len(content):
            os.ftruncate(self._descriptor, len(complete))
        validator = jsonschema.Draft202012Validator(load_schema("measurement"))
        entries = []
        for number, line in enumerate(complete.splitlines(), 1):
            try:
                entry = json.loads(line, parse_constant=_refuse_constant)
            except (ValueError, RecursionError) as error:
                raise EvidenceError(self.file, f"is damaged: line {number}: {error}", _RESTART) from error
            if number == 1 and isinstance(entry, dict) and entry.get("format", _FORMAT) != _FORMAT:
                reason = f"has the format {entry['format']!s:.60}; this version of lensconv continues {_FORMAT}"
                raise EvidenceError(self.file, reason, _RESTART)
            if not validator.is_valid(entry) or ("format" in entry) != (number == 1):
                raise EvidenceError(self.file, f"is damaged: line {number} is not a measurement of lensconv", _RESTART)
            # In JSON, 1.0 is an integer, too.
            entries.append(entry | {name: int(entry[name]) for name in ("pair", "attempt", "worker") if name in entry})
        return entries

    def _compare(self, first: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
        for key, value in json.loads(json.dumps(identity)).items():
            if first.get(key) != value:
                raise OutputError(
                    f"{self.file}: contains another benchmark: {_difference(key, first.get(key), value)}",
                    "Choose another folder with --out, or delete its measurements with --restart.",
                )

    def _append(self, entry: Mapping[str, Any], *, truncates: bool = False) -> None:
        line = (json.dumps(entry, ensure_ascii=False, allow_nan=False) + "\n").encode()
        try:
            if truncates:
                os.ftruncate(self._descriptor, 0)
            written = os.write(self._descriptor, line)
            if written < len(line):
                written += os.write(self._descriptor, line[written:])
            os.fsync(self._descriptor)
        except OSError as error:
            raise write_error(self.file, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.close(self._descriptor)


_RESTART = "Delete it with --restart."


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a measurement")


def _difference(key: str, before: Any, now: Any) -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        for name in sorted(before.keys() | now.keys()):
            if before.get(name) != now.get(name):
                return _difference(f"{key}.{name}", before.get(name), now.get(name))
    return f"{key:.200} was {json.dumps(before):.80}, and is now {json.dumps(now):.80}"
