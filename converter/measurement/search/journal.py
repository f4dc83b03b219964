"""The journal of a search: what is known of harms, so that a run that was killed measures only what is missing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from converter.measurement.benchmark.journal_file import JournalFile
from converter.measurement.sensitivity.gradients import Harms
from converter.measurement.sensitivity.journal import SensitivityJournal

JOURNAL_NAME = "search.jsonl"
_FORMAT = "lensconv.search-journal/1"


class SearchJournal(SensitivityJournal):
    """The journal in one folder; at most one process writes it.

    Args:
        folder: of the measurements.
        identity: everything that figures of weights depend on, as JSON values by name.
        restart: whether to delete an existing journal.

    Raises:
        OutputError: it is the journal of another search, or another process is writing it.
        EvidenceError: it is damaged.
        DiskError: the disk is full.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], *, restart: bool) -> None:
        #: Finished harms, by kind of score.
        self.harms: dict[str, dict[tuple[str, str], float]] = {}
        self._estimates: dict[str, dict[int, dict[tuple[str, str], float]]] = {}
        lines = JournalFile(folder / JOURNAL_NAME, form=_FORMAT, schema="search_measurement", noun="search")
        super().__init__(lines, identity, restart=restart)

    @property
    def estimates(self) -> dict[int, dict[tuple[str, str], float]]:
        """Harms by gradients in single calls, by number, of those that were recorded last."""
        return self._estimates.get(self.calls.sha256, {}) if self.calls else {}

    def note_harms(self, score: str, harms: Harms) -> None:
        """Note finished harms."""
        self._note({"kind": "harms", "score": score, "harms": _nested(harms)})

    def note_estimate(self, call: int, harms: Harms) -> None:
        """Note harms by gradients in a single one of the recorded calls."""
        if self.calls is None:
            raise ValueError("no calls are recorded")
        self._note({"kind": "estimate", "calls": self.calls.sha256, "call": call, "harms": _nested(harms)})

    def _take(self, entry: Mapping[str, Any]) -> None:
        match entry["kind"]:
            case "harms":
                self.harms.setdefault(entry["score"], {}).update(_flat(entry["harms"]))
            case "estimate":
                of_calls = self._estimates.setdefault(entry["calls"], {})
                of_calls.setdefault(entry["call"], {}).update(_flat(entry["harms"]))
            case _:
                super()._take(entry)


def _nested(harms: Harms) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for (source, key), harm in harms.items():
        found.setdefault(source, {})[key] = harm
    return found


def _flat(harms: Mapping[str, Mapping[str, float]]) -> dict[tuple[str, str], float]:
    return {(source, key): harm for source, several in harms.items() for key, harm in several.items()}
