"""Measure how well the periodic-grid score distinguishes images with a periodic pattern from images without one.

Patterns of 8, 16 and 32 pixels are added to images that were blurred, shifted, recompressed and so on; the same changes
without a pattern are the negatives. Every candidate is scored twice: made from the original itself (aligned), and from
another image of the same kind (drifted), as a quantized model might generate it. The result is the area under the ROC
curve: how often an image with a pattern scores higher than one without, where ties count half.
"""

from __future__ import annotations

import argparse
import datetime
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import mannwhitneyu

from converter._version import __version__
from converter.measurement.comparison.periodic import PERIODS, LatticeSpectrum, added_score, lattice_spectrum
from scripts.periodic_images import CHANGES, PATTERNS, Scene, pattern, scenes, to_pixels

ROOT = Path(__file__).resolve().parents[1]
#: Amplitude of the patterns, in grey levels.
AMPLITUDES = (1, 2, 4, 16)
#: Sides of the images in pixels; of the scenes, one in this many is used.
SIDES = {256: 1, 512: 2, 1024: 6}


@dataclass(frozen=True)
class Trial:
    """One candidate and its score."""

    natural: bool
    aligned: bool
    change: str
    score: float
    pattern: str = ""
    """Empty without a pattern."""
    period: int = 0
    amplitude: int = 0
    strength: float = 0.0
    """Root of the pattern's mean square over pixels and channels, in grey levels."""


def main() -> None:
    """Score everything, print the table, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=2, help="processes (default 2)")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks" / "periodic-score.json", help="file for the results"
    )
    arguments = parser.parse_args()
    results = {}
    with get_context("spawn").Pool(arguments.jobs) as pool:
        for side, share in SIDES.items():
            chosen = list(scenes(side, share))
            found = pool.imap(partial(run_scene, side=side), enumerate(chosen))
            results[str(side)] = {
                "scenes": len(chosen),
                "natural_scenes": sum(scene.natural for scene in chosen),
                **report([trial for trials in found for trial in trials]),
            }
            show(side, results[str(side)])
    packages = ("numpy", "pillow", "scikit-image", "scipy")
    content = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": {"lensconv": __version__, **{name: version(name) for name in packages}},
        "changes": list(CHANGES),
        "patterns": list(PATTERNS),
        "sides": results,
    }
    arguments.out.write_text(json.dumps(content, indent=1) + "\n")
    print(f"written to {arguments.out}")


def run_scene(numbered: tuple[int, Scene], *, side: int, amplitudes: Sequence[int] = AMPLITUDES) -> list[Trial]:
    """Score a scene with every change, and with every other pattern, each over the next of the changes."""
    number, scene = numbered
    original = _spectrum(scene.image)
    changed = [
        (aligned, name, change(image))
        for aligned, image in ((True, scene.image), (False, scene.other))
        for name, change in CHANGES.items()
    ]
    trials = [
        Trial(scene.natural, aligned, name, added_score(original, _spectrum(image))) for aligned, name, image in changed
    ]
    couples = [(shape, period) for shape in PATTERNS for period in PERIODS][number % 2 :: 2]
    for turn, ((shape, period), amplitude) in enumerate(product(couples, amplitudes), number):
        drawn = pattern(shape, period, side)
        drawn = drawn[..., None] if drawn.ndim == 2 else drawn
        strength = amplitude * float(np.sqrt(np.mean((drawn * np.ones(3)) ** 2)))
        place = turn % len(CHANGES)
        for aligned, name, image in (changed[place], changed[place + len(CHANGES)]):
            score = added_score(original, _spectrum(to_pixels(image + amplitude * drawn)))
            trials.append(Trial(scene.natural, aligned, name, score, shape, period, amplitude, strength))
    return trials


def report(trials: Sequence[Trial]) -> dict[str, Any]:
    """Areas and quantiles for natural images and regular structure, aligned and drifted."""
    groups = {
        f"{kind}, {way}": [trial for trial in trials if (trial.natural, trial.aligned) == (natural, aligned)]
        for kind, natural in (("natural", True), ("regular", False))
        for way, aligned in (("aligned", True), ("drifted", False))
    }
    return {name: _report_group(group) for name, group in groups.items() if group}


def area(positive: Iterable[float], negative: Iterable[float]) -> float:
    """Area under the ROC curve: the Mann-Whitney statistic over the number of couples."""
    with_pattern, without = list(positive), list(negative)
    return round(float(mannwhitneyu(with_pattern, without).statistic) / (len(with_pattern) * len(without)), 4)


def _report_group(trials: Sequence[Trial]) -> dict[str, Any]:
    clean = [trial for trial in trials if not trial.pattern]
    scores = [trial.score for trial in clean]
    marked = [trial for trial in trials if trial.pattern]

    def areas(key: Callable[[Trial], Any], among: Sequence[Trial] = marked) -> dict[str, float]:
        return {str(value): area(_scores(among, key, value), scores) for value in dict.fromkeys(map(key, among))}

    amplitudes = sorted({trial.amplitude for trial in marked})
    of = {amplitude: [trial for trial in marked if trial.amplitude == amplitude] for amplitude in amplitudes}
    return {
        "trials": [len(marked), len(clean)],
        "area": area((trial.score for trial in marked), scores),
        "area_by_amplitude": areas(lambda trial: trial.amplitude),
        "area_by_amplitude_and_period": {str(key): areas(lambda trial: trial.period, of[key]) for key in amplitudes},
        "area_by_amplitude_and_pattern": {str(key): areas(lambda trial: trial.pattern, of[key]) for key in amplitudes},
        "score_over_strength": {
            str(key): _round(np.median([trial.score / trial.strength for trial in of[key]])) for key in amplitudes
        },
        "clean_score": _quantiles(scores),
        "clean_score_by_change": {
            name: _quantiles(_scores(clean, lambda trial: trial.change, name)) for name in CHANGES
        },
    }


def show(side: int, found: dict[str, Any]) -> None:
    """Print the main figures of one size."""
    print(f"{side} x {side} pixels, {found['scenes']} scenes, {found['natural_scenes']} of them natural")
    for name, group in found.items():
        if isinstance(group, dict):
            by_amplitude = ", ".join(f"{key}: {value:.3f}" for key, value in group["area_by_amplitude"].items())
            print(f"  {name}: area {group['area']:.3f}; by amplitude {by_amplitude}; clean {group['clean_score']}")


def _spectrum(image: Any) -> LatticeSpectrum:
    spectrum = lattice_spectrum(image)
    if spectrum is None:
        raise ValueError("the image is too small")
    return spectrum


def _scores(trials: Iterable[Trial], key: Callable[[Trial], Any], value: Any) -> list[float]:
    return [trial.score for trial in trials if key(trial) == value]


def _quantiles(scores: Sequence[float]) -> dict[str, float]:
    return {name: _round(np.quantile(scores, at)) for name, at in (("median", 0.5), ("90%", 0.9), ("99%", 0.99))}


def _round(value: Any) -> float:
    return round(float(value), 3)


if __name__ == "__main__":
    main()
