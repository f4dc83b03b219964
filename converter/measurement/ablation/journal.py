"""The journal of an ablation: every finished figure, so that a run that was killed measures only what is missing.

The first line identifies the original's weights. It does not name the variants: each figure is noted by the digest of
what it was measured with, so variants may be added later. What velocity and images depend on besides has a line of its
own, since the weights can be measured without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from converter.measurement.benchmark.journal_file import JournalFile
from converter.measurement.sensitivity.figures import StorageFigures

JOURNAL_NAME = "ablation.jsonl"
#: Whose images are not those of a variant: the original's, and with a second seed.
ORIGINALS = ORIGINAL, BASELINE = "original", "baseline"
_FORMAT = "lensconv.ablation-journal/1"


class AblationJournal:
    """The journal in one folder; at most one process writes it.

    Args:
        folder: of the measurements.
        identity: everything that figures depend on, as JSON values by name.
        restart: whether to delete an existing journal.

    Raises:
        OutputError: it is the journal of another ablation, or another process is writing it.
        EvidenceError: it is damaged.
        DiskError: the disk is full.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], *, restart: bool) -> None:
        #: Figures of the weights, by tensor of the source and key of its storage.
        self.storages: dict[tuple[str, str], StorageFigures] = {}
        #: sha256 of the file of recorded calls; None before they are recorded.
        self.calls: str | None = None
        #: Velocity errors of each call, by digest of the variant and id of the prompt.
        self.velocities: dict[tuple[str, str], list[float]] = {}
        #: Rows of images as in ``ablation.json``, by digest of the variant, or one of ``ORIGINALS``, and prompt.
        self.images: dict[tuple[str, str], dict[str, Any]] = {}
        self._setup: dict[str, Any] | None = None
        self._lines = JournalFile(folder / JOURNAL_NAME, form=_FORMAT, schema="ablation_measurement", noun="ablation")
        try:
            entries = self._lines.begin(identity, restart=restart)
        except BaseException:
            self._lines.close()
            raise
        #: Whether it has no figures of earlier runs.
        self.is_new = not entries
        for entry in entries:
            self._take(entry)

    @property
    def count(self) -> int:
        """Number of figures that are noted."""
        return len(self.storages) + len(self.velocities) + len(self.images)

    def set_up(self, setup: Mapping[str, Any]) -> None:
        """Note what velocity and images depend on, besides the identity.

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

    def note_calls(self, sha256: str) -> None:
        """Note that the original's calls are recorded."""
        self._note({"kind": "calls", "sha256": sha256})

    def note_velocity(self, variant: str, prompt: str, errors: Sequence[float]) -> None:
        """Note the velocity errors of a variant along a prompt."""
        self._note({"kind": "velocity", "variant": variant, "prompt": prompt, "errors": list(errors)})

    def note_image(self, model: str, row: Mapping[str, Any]) -> None:
        """Note an image that was generated, and how far it is from the original's."""
        self._note({"kind": "image", "model": model, "row": dict(row)})

    def _note(self, entry: Mapping[str, Any], *, durable: bool = True) -> None:
        self._lines.append(entry, durable=durable)
        self._take(entry)

    def _take(self, entry: Mapping[str, Any]) -> None:
        found = {name: value for name, value in entry.items() if name != "kind"}
        match entry["kind"]:
            case "storage":
                figures = StorageFigures(**found)
                self.storages[figures.source, figures.key] = figures
            case "calls":
                self.calls = found["sha256"]
            case "velocity":
                self.velocities[found["variant"], found["prompt"]] = found["errors"]
            case "image":
                self.images[found["model"], found["row"]["id"]] = found["row"]
            case "setup":
                self._setup = found["setup"]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._lines.close()
