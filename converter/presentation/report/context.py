"""What a report shows above its sections: the names of the models, and prompts with their images and figures."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from converter.measurement.evidence.names import IMAGES_NAME, MATRIX_NAME, METRICS_NAME, MODELS, OFFLOAD_FILES
from converter.presentation.prompt_texts import find_prompt_texts
from converter.presentation.report.images import Pictures
from converter.presentation.tables.measurements import labels
from converter.presentation.tables.prompt import flat_field_table, prompt_table, required_table
from converter.presentation.tables.table import Table

#: Contents of files of measurements by file name.
Evidence = Mapping[str, Mapping[str, Any]]
#: The id and the title of the row of the empty prompt, and what is shown as its text.
_FLAT_ID, _FLAT_TITLE = "flat-field", "Empty prompt"
_FLAT_TEXT = "(The prompt is empty. Little content of the image can hide a periodic pattern, or look like one.)"
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


def rows_with_images(evidence: Evidence) -> list[Mapping[str, Any]]:
    """Return the rows of the comparison matrix, in their order, and one of the empty prompt, if it was measured."""
    rows = [*evidence.get(MATRIX_NAME, {"prompts": []})["prompts"]]
    flat = _images(evidence).get("flat_field")
    if flat is not None:
        rows.append(
            {"id": _FLAT_ID, "scenario": _FLAT_TITLE, "seed": flat["seed"], **{model: flat[model] for model in MODELS}}
        )
    return rows


def shown_prompts(evidence: Evidence, pictures: Sequence[Pictures], taken: Collection[str]) -> list[ShownPrompt]:
    """Return all prompts of a report, in the order of ``rows_with_images``.

    Args:
        evidence: contents of the files of measurements.
        pictures: the images of each row.
        taken: anchors that lead elsewhere in the page.
    """
    rows, images = rows_with_images(evidence), _images(evidence)
    texts = find_prompt_texts(evidence[MATRIX_NAME], None) if MATRIX_NAME in evidence else {}
    pairs = {pair["id"]: pair for pair in images.get("pairs", ())}
    trajectories = {found["id"]: found for found in images.get("trajectory", {}).get("prompts", ())}
    count = len(evidence.get(MATRIX_NAME, {"prompts": []})["prompts"])
    anchors = _anchors([row["id"] for row in rows], taken)
    shown = []
    for number, (anchor, row, found) in enumerate(zip(anchors, rows, pictures, strict=True)):
        key = row["id"]
        if number < count:
            text, required = texts.get(key, ""), required_table(pairs.get(key))
            figures = prompt_table(row, pairs.get(key), trajectories.get(key))
        else:
            text, required, figures = _FLAT_TEXT, None, flat_field_table(images["flat_field"])
        shown.append(ShownPrompt(anchor, key, row["scenario"], text, found, figures, required))
    return shown


def _images(evidence: Evidence) -> Mapping[str, Any]:
    return evidence.get(IMAGES_NAME, {})


def _anchors(ids: Sequence[str], taken: Collection[str]) -> Iterator[str]:
    """Yield an anchor for each id: the id itself, or the number of the prompt."""
    used = set(taken)
    for number, identity in enumerate(ids, 1):
        anchor = identity if _ANCHOR.fullmatch(identity) and identity not in used else f"prompt-{number}"
        while anchor in used:
            anchor += "-"
        used.add(anchor)
        yield anchor
