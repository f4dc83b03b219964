"""The journal of what is measured of the weights and calls of an original; a run that was killed continues from it.

The first line identifies the original's weights. Each figure is noted by what it was measured of, so later runs may
want others besides. What depends on images has a line of its own, since the weights can be measured without any.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Self

from converter.measurement.benchmark.journal_file import JournalFile
from converter.measurement.sensitivity.figures import StorageFigures


@dataclass(frozen=True)
class RecordedCalls:
    """Calls of the denoiser in a file."""

    prompts: list[str]
    """Ids of their prompts."""
    sha256: str
    """Of the file."""


class SensitivityJournal:
    """What `ablate` and `search` both note.

    Args:
        lines: the file; it is closed with the journal.
        identity: everything that figures of weights depend on, as JSON values by name.
        restart: whether to delete what the file has.

    Raises:
        OutputError: it is the journal of something else.
        EvidenceError: it is damaged.
        DiskError: the disk is full.
    """

    def __init__(self, lines: JournalFile, identity: Mapping[str, Any], *, restart: bool) -> None:
        #: Figures of the weights, by tensor of the source and key of its storage.
        self.storages: dict[tuple[str, str], StorageFigures] = {}
        #: The calls that were recorded last; None before that.
        self.calls: RecordedCalls | None = None
        self._setup: dict[str, Any] | None = None
        self._lines = lines
        try:
            entries = self._lines.begin(identity, restart=restart)
        except BaseException:
            self._lines.close()
            raise
        #: Whether it has no figures of earlier runs.
        self.is_new = not entries
        for entry in entries:
            self._take(entry)

    def set_up(self, setup: Mapping[str, Any]) -> None:
        """Note what all but the figures of weights depends on, besides the identity.

        Raises:
            OutputError: earlier figures depend on something else.
        """
        if self._setup is None:
            self._note({"kind": "setup", "setup": dict(setup)})
        else:
            self._lines.refuse_other(self._setup, setup)

    def note_storage(self, figures: StorageFigures) -> None:
        """Note the figures of one tensor in one storage. Any thread may call this."""
        # There are thousands, which are soon measured again after a power failure.
        self._note({"kind": "storage", **asdict(figures)}, durable=False)

    def note_calls(self, calls: RecordedCalls) -> None:
        """Note that the original's calls are recorded."""
        self._note({"kind": "calls", **asdict(calls)})

    def _note(self, entry: Mapping[str, Any], *, durable: bool = True) -> None:
        self._lines.append(entry, durable=durable)
        self._take(entry)

    def _take(self, entry: Mapping[str, Any]) -> None:
        """Keep what a line says; lines of other kinds are for classes that know them."""
        found = {name: value for name, value in entry.items() if name != "kind"}
        match entry["kind"]:
            case "storage":
                figures = StorageFigures(**found)
                self.storages[figures.source, figures.key] = figures
            case "calls":
                self.calls = RecordedCalls(**found)
            case "setup":
                self._setup = found["setup"]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._lines.close()
