"""How well scores rank the modules of a model, by the errors of images."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from scripts.harms.measuring import Measured

#: Name of the errors of images among the scores.
IMAGES = "images"
#: Modules that are named for each score.
_WORST = 4


def compare_ranks(measured: Measured, planted: Collection[str] = ()) -> dict[str, Any]:
    """What the file says of one candidate.

    Modules that do not change an image at all are left out of the ranks: that a score gives them none either says
    little of the others.

    Args:
        measured: of at least two prompts.
        planted: modules with outliers, whose places are of interest.
    """
    errors, unrounded = measured.errors.mean(1).T
    changes = unrounded > 0
    scores = {name: [harms[path] for path in measured.modules] for name, harms in measured.scores.items()}
    figures = {**{name: np.array(harms) for name, harms in scores.items()}, IMAGES: errors}
    halves = [measured.errors[changes, first::2, 0].mean(1) for first in range(2)]
    return {
        "candidate": measured.candidate,
        "modules": len(measured.modules),
        "without_effect": [path for path, does in zip(measured.modules, changes, strict=True) if not does],
        "spearman": {name: _spearman(figures[name][changes], errors[changes]) for name in scores},
        "spearman_before_rounding": {name: _spearman(figures[name][changes], unrounded[changes]) for name in scores},
        "spearman_of_halves_of_images": _spearman(*halves),
        "image_errors": {
            "smallest": _rounded(errors[changes].min()),
            "median": _rounded(np.median(errors[changes])),
            "largest": _rounded(errors.max()),
        },
        "worst": {name: _worst(dict(zip(measured.modules, found, strict=True))) for name, found in figures.items()},
        **({"planted": _places(measured.modules, figures, planted)} if planted else {}),
    }


def _spearman(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    return round(float(spearmanr(first, second)[0]), 3)


def _worst(figures: Mapping[str, float]) -> dict[str, float]:
    worst = sorted(figures, key=lambda path: -figures[path])[:_WORST]
    return {path: _rounded(figures[path]) for path in worst}


def _places(
    modules: tuple[str, ...], figures: Mapping[str, NDArray[np.float64]], planted: Collection[str]
) -> dict[str, dict[str, int]]:
    """The places of modules by each score, from 1 for the worst."""
    numbers = {path: modules.index(path) for path in planted}
    return {
        name: {path: 1 + int((found > found[number]).sum()) for path, number in numbers.items()}
        for name, found in figures.items()
    }


def _rounded(figure: Any) -> float:
    return float(f"{figure:.3g}")
