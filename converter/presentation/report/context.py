"""What a report shows above its sections: the names of the models, and prompts with their images and figures."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from converter.measurement.evidence.names import IMAGES_NAME, MATRIX_NAME, METRICS_NAME, OFFLOAD_FILES
from converter.presentation.prompt_texts import find_prompt_texts
from converter.presentation.report.images import Pictures
from converter.presentation.tables.measurements import labels
from converter.presentation.tables.prompt import prompt_table, required_table
from converter.presentation.tables.table import Table

#: Contents of files of measurements by file name.
Evidence = Mapping[str, Mapping[str, Any]]
#: Ids of prompts that can be the end of an address as they are.
_ANCHOR = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class ShownPrompt:
    """One prompt of a report."""

    anchor: str
    """The end of the address that leads to it."""
    id: str
    scenario: str
    text: str
    """The prompt itself; empty where it is not known."""
    pictures: Pictures
    figures: Table | None
    required: Table | None
    """What was read of the texts that the images must show."""


def model_labels(evidence: Evidence) -> tuple[str, ...]:
    """Return what the measurements call both models; empty where they do not say."""
    contents = (evidence[name] for name in (METRICS_NAME, *OFFLOAD_FILES.values()) if name in evidence)
    return next((tuple(labels(content)) for content in contents), ())


def shown_prompts(evidence: Evidence, pictures: Sequence[Pictures], taken: Collection[str]) -> list[ShownPrompt]:
    """Return all prompts of a comparison matrix, in their order.

    Args:
        evidence: contents of the files of measurements.
        pictures: the images of each row of the matrix.
        taken: anchors that lead elsewhere in the page.
    """
    matrix = evidence.get(MATRIX_NAME)
    if matrix is None:
        return []
    rows = matrix["prompts"]
    texts = find_prompt_texts(matrix, None)
    pairs = {pair["id"]: pair for pair in evidence.get(IMAGES_NAME, {"pairs": []})["pairs"]}
    anchors = _anchors([row["id"] for row in rows], taken)
    return [
        ShownPrompt(
            anchor,
            row["id"],
            row["scenario"],
            texts.get(row["id"], ""),
            found,
            prompt_table(row, pairs.get(row["id"])),
            required_table(pairs.get(row["id"])),
        )
        for anchor, row, found in zip(anchors, rows, pictures, strict=True)
    ]


def _anchors(ids: Sequence[str], taken: Collection[str]) -> Iterator[str]:
    """Yield an anchor for each id: the id itself, or the number of the prompt."""
    used = set(taken)
    for number, identity in enumerate(ids, 1):
        anchor = identity if _ANCHOR.fullmatch(identity) and identity not in used else f"prompt-{number}"
        while anchor in used:
            anchor += "-"
        used.add(anchor)
        yield anchor
