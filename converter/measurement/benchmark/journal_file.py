"""A file of JSON objects, one per line, from which a measurement that was killed continues.

The first line identifies what is measured: weights, prompts, settings, machine and versions. At most one process writes
the file, and a line that was cut off by a kill does not count.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

import jsonschema

from converter.checkpoint.writer import write_error
from converter.errors import EvidenceError, OutputError
from converter.schemas import load_schema

_RESTART = "Delete it with --restart."


class JournalFile:
    """The file of a journal.

    Args:
        file: its path; the folder is created if it does not exist.
        form: name and version of the format of its lines.
        schema: name of the JSON Schema of its lines.
        noun: what the journal is of, for messages.

    Raises:
        OutputError: another process is writing it, or it cannot be written.
        DiskError: the disk is full.
    """

    def __init__(self, file: Path, *, form: str, schema: str, noun: str) -> None:
        self._file = file
        self._form = form
        self._schema = schema
        self._noun = noun
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise write_error(file, error) from error
        try:
            self._lock()
        except BaseException:
            os.close(self._descriptor)
            raise

    def begin(self, identity: Mapping[str, Any], *, restart: bool) -> list[dict[str, Any]]:
        """Read the lines of earlier runs; write the first line if there are none.

        Args:
            identity: everything that figures depend on, as JSON values by name.
            restart: whether to delete the lines of earlier runs.

        Returns:
            The lines after the first one.

        Raises:
            OutputError: it is the journal of something else.
            EvidenceError: it is damaged.
            DiskError: the disk is full.
        """
        entries = [] if restart else self._read()
        if entries:
            self.refuse_other(entries[0], identity)
        else:
            self._write({"format": self._form, **identity}, truncates=True)
        return entries[1:]

    def append(self, entry: Mapping[str, Any], *, durable: bool = True) -> None:
        """Write a line.

        Args:
            entry: the line.
            durable: whether to wait until it survives a power failure, too; a kill it always survives.

        Raises:
            OutputError: it cannot be written.
            DiskError: the disk is full.
        """
        self._write(entry, durable=durable)

    def refuse_other(self, noted: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
        """Refuse to continue what depends on something else.

        Args:
            noted: what an earlier run noted.
            identity: everything that figures depend on now.

        Raises:
            OutputError: a value differs.
        """
        for key, value in json.loads(json.dumps(identity)).items():
            if noted.get(key) != value:
                raise OutputError(
                    f"{self._file}: contains another {self._noun}: {_difference(key, noted.get(key), value)}",
                    "Choose another folder with --out, or delete its measurements with --restart.",
                )

    def _lock(self) -> None:
        if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
            raise OutputError(f"{self._file}: is not a file", "Remove it, or choose another folder with --out.")
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(
                f"{self._file}: another process is measuring into this folder", "Wait until it ends."
            ) from error

    def _read(self) -> list[dict[str, Any]]:
        content = self._file.read_bytes()
        # A last line that was cut off is dropped, so that the next one is not appended to it.
        complete = content.rpartition(b"\n")[0] + b"\n" if b"\n" in content else b""
        if len(complete) < len(content):
            os.ftruncate(self._descriptor, len(complete))
        validator = jsonschema.Draft202012Validator(load_schema(self._schema))
        entries = []
        for number, line in enumerate(complete.splitlines(), 1):
            try:
                entry = json.loads(line, parse_constant=_refuse_constant)
            except (ValueError, RecursionError) as error:
                raise EvidenceError(self._file, f"is damaged: line {number}: {error}", _RESTART) from error
            if number == 1 and isinstance(entry, dict) and entry.get("format", self._form) != self._form:
                reason = f"has the format {entry['format']!s:.60}; this version of lensconv continues {self._form}"
                raise EvidenceError(self._file, reason, _RESTART)
            if not validator.is_valid(entry) or ("format" in entry) != (number == 1):
                raise EvidenceError(self._file, f"is damaged: line {number} is not a measurement of lensconv", _RESTART)
            entries.append(entry)
        return entries

    def _write(self, entry: Mapping[str, Any], *, truncates: bool = False, durable: bool = True) -> None:
        line = (json.dumps(entry, ensure_ascii=False, allow_nan=False) + "\n").encode()
        try:
            if truncates:
                os.ftruncate(self._descriptor, 0)
            written = os.write(self._descriptor, line)
            if written < len(line):
                written += os.write(self._descriptor, line[written:])
            if durable:
                os.fsync(self._descriptor)
        except OSError as error:
            raise write_error(self._file, error) from error

    def close(self) -> None:
        """Close the file; it stays."""
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a measurement")


def _difference(key: str, before: Any, now: Any) -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        for name in sorted(before.keys() | now.keys()):
            if before.get(name) != now.get(name):
                return _difference(f"{key}.{name}", before.get(name), now.get(name))
    return f"{key:.200} was {json.dumps(before):.80}, and is now {json.dumps(now):.80}"
