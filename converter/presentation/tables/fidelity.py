"""Tables of fidelity: how far images and weights are from the original's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import zip_longest
from statistics import fmean, median
from typing import Any

from converter.measurement.evidence.names import MODEL_TITLES, MODELS
from converter.presentation.tables.figures import count, decimal, percent
from converter.presentation.tables.table import NOTHING, Code, Table

#: Title of the score of periodic patterns that only the quantized model's image has.
ADDED_PATTERN = "Added periodic pattern, grey levels"
#: Key, title and digits of each measure of a pair of images.
MEASURES = (
    ("psnr_db", "PSNR, dB", 2),
    ("ssim", "SSIM", 4),
    ("lpips", "LPIPS", 4),
    ("periodic_grid_added", ADDED_PATTERN, 2),
)
#: Title of the relative error of the velocity.
TRAJECTORY = "Velocity error of a step, at the original's latents"


def psnr(pair: Mapping[str, Any]) -> str:
    """Return the PSNR of a pair of images; that of identical ones is infinite."""
    return "identical" if pair["identical"] else decimal(pair["psnr_db"], 2)


def images_summary_table(images: Mapping[str, Any]) -> Table:
    """Return each measure over all prompts, next to that of the original with another seed.

    Args:
        images: content of ``image_fidelity.json``.
    """
    summary, baseline = images["summary"], images["summary"]["baseline"] or {}
    rows: list[list[object]] = [
        [
            title,
            *(decimal(summary[key][part], digits) for part in ("mean", "median", "min", "max")),
            decimal((baseline.get(key) or {}).get("mean"), digits),
        ]
        for key, title, digits in MEASURES
        if summary[key] is not None
    ]
    rows += [*_trajectory_rows(images), *_flat_field_rows(images)]
    return Table(["Quantized against original", "mean", "median", "least", "most", "original, other seed: mean"], rows)


def _trajectory_rows(images: Mapping[str, Any]) -> Iterator[list[object]]:
    """Yield the velocity error over all steps, if it was measured."""
    if "trajectory" in images:
        errors = [step["error"] for prompt in images["trajectory"]["prompts"] for step in prompt["steps"]]
        figures = (fmean(errors), median(errors), min(errors), max(errors))
        yield [TRAJECTORY, *(decimal(figure, 4) for figure in figures), NOTHING]


def _flat_field_rows(images: Mapping[str, Any]) -> Iterator[list[object]]:
    """Yield the periodic pattern of an empty prompt, if it was measured."""
    added = images.get("flat_field", {}).get("periodic_grid", {}).get("added")
    if added is not None:
        yield ["Added periodic pattern, empty prompt, grey levels", decimal(added, 2), *[NOTHING] * 4]


def images_table(images: Mapping[str, Any]) -> Table:
    """Return each measure of each prompt."""
    measures = [measure for measure in MEASURES if images["summary"][measure[0]] is not None]
    rows = []
    for pair in images["pairs"]:
        values = {**pair, "periodic_grid_added": pair["periodic_grid"]["added"]}
        shown = (psnr(pair) if key == "psnr_db" else decimal(values[key], digits) for key, _, digits in measures)
        seed = NOTHING if pair["seed"] is None else pair["seed"]
        rows.append([pair["id"], seed, f"{pair['width']}×{pair['height']}", *shown])  # noqa: RUF001 - a cross
    return Table(["ID", "Seed", "Pixels", *(title for _, title, _ in measures)], rows)


def blocks_table(images: Mapping[str, Any]) -> Table | None:
    """Return the error of the hidden states after each block, over all prompts; None where it was not measured."""
    prompts = [prompt["blocks"] for prompt in images.get("trajectory", {}).get("prompts", ()) if "blocks" in prompt]
    if not prompts:
        return None
    errors = [[row["error"] for row in column if row is not None] for column in zip_longest(*prompts)]
    rows = [[block, decimal(fmean(found), 4), decimal(max(found), 4)] for block, found in enumerate(errors)]
    return Table(["Block", "Error of the hidden states, mean", "largest"], rows)


def text_table(images: Mapping[str, Any]) -> Table | None:
    """Return how much of the text that prompts require can be read; None where it was not measured."""
    text = images["summary"]["text"]
    if text is None:
        return None
    rows = [
        ["Strings that prompts require", *(count(text["required_strings"]) for _ in MODELS)],
        ["Character error rate, mean", *(decimal(text[f"{name}_cer_mean"], 3) for name in MODELS)],
        ["Legible strings", *(percent(100 * text[f"{name}_legible"]) for name in MODELS)],
    ]
    return Table(["", *MODEL_TITLES], rows)


def weights_table(weights: Mapping[str, Any]) -> Table:
    """Return the signal-to-noise ratios of each family.

    Args:
        weights: content of ``weight_fidelity.json``.
    """
    rows = [
        [
            Code(family["name"]),
            count(family["modules"]),
            decimal(family["sqnr_db"], 2),
            decimal(family["sqnr_db_min"], 2),
            decimal(family["cosine_min"], 6),
        ]
        for family in weights["fidelity"]["families"]
    ]
    return Table(["Family", "Modules", "SQNR, dB", "Lowest module, dB", "Lowest cosine"], rows)
