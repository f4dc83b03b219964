"""The journal of an ablation: every finished figure, so that a run that was killed measures only what is missing.

It does not name the variants: each figure is noted by the digest of what it was measured with, so variants may be added
later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from converter.measurement.benchmark.journal_file import JournalFile
from converter.measurement.sensitivity.journal import SensitivityJournal

JOURNAL_NAME = "ablation.jsonl"
#: Whose images are not those of a variant: the original's, and with a second seed.
ORIGINALS = ORIGINAL, BASELINE = "original", "baseline"
_FORMAT = "lensconv.ablation-journal/1"


class AblationJournal(SensitivityJournal):
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
        #: Velocity errors of each call, by digest of the variant and id of the prompt.
        self.velocities: dict[tuple[str, str], list[float]] = {}
        #: Rows of images as in ``ablation.json``, by digest of the variant, or one of ``ORIGINALS``, and prompt.
        self.images: dict[tuple[str, str], dict[str, Any]] = {}
        lines = JournalFile(folder / JOURNAL_NAME, form=_FORMAT, schema="ablation_measurement", noun="ablation")
        super().__init__(lines, identity, restart=restart)

    @property
    def count(self) -> int:
        """Number of figures that are noted."""
        return len(self.storages) + len(self.velocities) + len(self.images)

    def note_velocity(self, variant: str, prompt: str, errors: Sequence[float]) -> None:
        """Note the velocity errors of a variant along a prompt."""
        self._note({"kind": "velocity", "variant": variant, "prompt": prompt, "errors": list(errors)})

    def note_image(self, model: str, row: Mapping[str, Any]) -> None:
        """Note an image that was generated, and how far it is from the original's."""
        self._note({"kind": "image", "model": model, "row": dict(row)})

    def _take(self, entry: Mapping[str, Any]) -> None:
        match entry["kind"]:
            case "velocity":
                self.velocities[entry["variant"], entry["prompt"]] = entry["errors"]
            case "image":
                self.images[entry["model"], entry["row"]["id"]] = entry["row"]
            case _:
                super()._take(entry)
