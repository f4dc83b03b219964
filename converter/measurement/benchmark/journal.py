"""The journal of measurements, one JSON object per line, from which a benchmark that was killed continues.

The first line identifies the benchmark: weights, prompts, settings, machine and versions. Every other line is a load,
an image or a failure, with its model, mode, pair and attempt, and with the number of the worker that it comes from.
Failures stay when a later run succeeds. Lines that were taken over from another benchmark have no worker of this one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from converter.measurement.benchmark.journal_file import JournalFile

JOURNAL_NAME = "measurements.jsonl"
_FORMAT = "lensconv.measurements/2"
#: The number in place of a worker's, in lines that were taken over from the journal of another benchmark.
TAKEN_OVER = 0
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
        #: Figures by cell and key, with the number of the ``worker``.
        self.measured: dict[tuple[Cell, str], dict[str, Any]] = {}
        #: Reasons of failures by cell and key, in their order.
        self.failures: dict[tuple[Cell, str], list[str]] = {}
        #: The cell of each worker that is named, by its number.
        self.cell_of: dict[int, Cell] = {}
        self._lines = JournalFile(self.file, form=_FORMAT, schema="measurement", noun="benchmark")
        try:
            entries = [_with_integers(entry) for entry in self._lines.begin(identity, restart=restart)]
        except BaseException:
            self._lines.close()
            raise
        #: Whether it has no measurements of earlier runs.
        self.is_new = not entries
        #: Number of the last worker; one that measures nothing has described the machine for this run.
        self.worker = 1 + max((entry["worker"] for entry in entries), default=0)
        for entry in entries:
            self._take(entry)

    def new_worker(self) -> int:
        """Return the number of another worker."""
        self.worker += 1
        return self.worker

    def note(self, cell: Cell, key: str, figures: Mapping[str, Any], worker: int | None = None) -> None:
        """Write a measurement, or a failure (``failed``), durably.

        Args:
            cell: what it belongs to.
            key: of the line.
            figures: the measurement or the failure.
            worker: number of the worker; the last one when None.

        Raises:
            OutputError: it cannot be written.
            DiskError: the disk is full.
        """
        entry = {**asdict(cell), "key": key, "worker": self.worker if worker is None else worker, **figures}
        self._lines.append(entry)
        self._take(entry)

    def take_over(self, cell: Cell, key: str, figures: Mapping[str, Any]) -> None:
        """Write durably what another benchmark measured, or that it failed there.

        Raises: as ``note``.
        """
        entry = {**asdict(cell), "key": key, **figures, "worker": TAKEN_OVER}
        self._lines.append(entry)
        self._take(entry)

    def _take(self, entry: Mapping[str, Any]) -> None:
        figures = dict(entry)
        cell = Cell(*(figures.pop(field.name) for field in fields(Cell)))
        key = figures.pop("key")
        if figures["worker"] != TAKEN_OVER:
            self.cell_of[figures["worker"]] = cell
        if "failed" in figures:
            self.failures.setdefault((cell, key), []).append(figures["failed"])
        else:
            self.measured[cell, key] = figures

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._lines.close()


def _with_integers(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The entry with integers where JSON may also have 1.0, which counts as one."""
    return {**entry, **{name: int(entry[name]) for name in ("pair", "attempt", "worker") if name in entry}}
