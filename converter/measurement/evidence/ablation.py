"""What can be computed from the rows of ``ablation.json``: means over prompts, and differences paired over prompts.

`ablate` writes these figures, readers of the file compute them again, and tables compare other pairs of variants.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from converter.measurement.evidence.statistics import MeanInterval, mean_interval

#: Figures of an image, of which files have means and differences.
IMAGE_FIGURES = ("psnr_db", "ssim", "lpips", "periodic_grid_added", "cer")

Rows = Iterable[Mapping[str, Any]]


def by_prompt(rows: Rows, figure: str) -> dict[str, float]:
    """Return a figure by the id of the prompt, where it was measured.

    Args:
        rows: of a variant, of the original, or of the original with a second seed.
        figure: ``error`` of a velocity, or one of ``IMAGE_FIGURES``.
    """
    return {row["id"]: row[figure] for row in rows if row.get(figure) is not None}


def paired(values: Mapping[str, float], others: Mapping[str, float]) -> MeanInterval | None:
    """Return how much larger values are than others, a mean over the prompts that have both; None without any."""
    differences = [value - others[name] for name, value in values.items() if name in others]
    return mean_interval(differences) if differences else None


def velocity_figures(rows: Sequence[Mapping[str, Any]], recipe: Rows) -> dict[str, Any]:
    """Return what ``velocity`` of a variant says of its ``prompts``.

    Args:
        rows: of the variant, at least one; each has ``id`` and ``calls``, relative errors.
        recipe: of the recipe that is examined; empty where it was not measured.

    Returns:
        ``error``, and where they can be computed ``interval`` and ``against_recipe``.
    """
    errors = _errors(rows)
    mean = mean_interval(list(errors.values()))
    found: dict[str, Any] = {"error": mean.mean, **_interval(mean)}
    difference = paired(errors, _errors(recipe))
    return found if difference is None else {**found, "against_recipe": _difference(difference)}


def image_figures(rows: Rows, recipe: Rows) -> dict[str, Any]:
    """Return what ``images`` of a variant says of its ``prompts``.

    Args:
        rows: of the variant, or of the original with a second seed.
        recipe: of the recipe that is examined; empty where it was not measured, and for the original.

    Returns:
        ``summary`` and ``against_recipe``; both have only the figures that were measured.
    """
    rows, recipe = list(rows), list(recipe)
    measured = {figure: by_prompt(rows, figure) for figure in IMAGE_FIGURES}
    pairs = {figure: paired(values, by_prompt(recipe, figure)) for figure, values in measured.items()}
    return {
        "summary": {figure: fmean(values.values()) for figure, values in measured.items() if values},
        "against_recipe": {figure: _difference(found) for figure, found in pairs.items() if found is not None},
    }


def _errors(rows: Rows) -> dict[str, float]:
    return {row["id"]: fmean(row["calls"]) for row in rows}


def _difference(found: MeanInterval) -> dict[str, Any]:
    return {"prompts": found.count, "difference": found.mean, **_interval(found)}


def _interval(found: MeanInterval) -> dict[str, list[float]]:
    return {} if found.interval is None else {"interval": list(found.interval)}
