"""Statistics of measurements, and of pairs of them: how much slower is one model than the other?

Intervals come from a paired percentile bootstrap: prompts are drawn with replacement, each with the figures of both
models, since a long prompt is slow for both. The ten thousand draws have a fixed seed, so that a file gives the same
figures every time.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from converter.measurement.evidence.names import MODELS
from converter.measurement.evidence.units import DIGITS

#: Draws of the bootstrap; the interval's ends then move by less than a twentieth of its width between seeds.
RESAMPLES = 10_000
_DRAWS_AT_ONCE = 500
CONFIDENCE = 0.95
SEED = 0


@dataclass(frozen=True)
class Spread:
    """Statistics of several measurements of one thing."""

    mean: float
    median: float
    stdev: float | None
    """Standard deviation of the sample; None for a single measurement."""
    min: float
    max: float
    count: int

    def to_dict(self) -> dict[str, Any]:
        """Return it as in files of measurements, without missing figures."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def spread(values: Sequence[float]) -> Spread:
    """Return the statistics of measurements, rounded to ``DIGITS``.

    Raises:
        ValueError: no measurements were given.
    """
    return Spread(
        mean=round(statistics.fmean(values), DIGITS),
        median=round(statistics.median(values), DIGITS),
        stdev=round(statistics.stdev(values), DIGITS) if len(values) > 1 else None,
        min=round(min(values), DIGITS),
        max=round(max(values), DIGITS),
        count=len(values),
    )


def percent_change(before: float, after: float) -> float:
    """Return how much more ``after`` is, in percent with one digit; negative if it is less."""
    return round(float(100 * (after / before - 1)), 1)


@dataclass(frozen=True)
class Slowdown:
    """How much more time the quantized model takes than the original, over prompts that were measured with both."""

    pairs: int
    ratio_of_means_percent: float
    """Sum of its times compared with the sum of the original's."""
    ratio_of_means_percent_interval: list[float] | None
    """Ends of the interval with 95 % of the bootstrap's draws; None for a single pair."""
    mean_difference_s: float
    """Mean over prompts of its time minus the original's."""
    mean_difference_s_interval: list[float] | None

    def to_dict(self) -> dict[str, Any]:
        """Return it as in files of measurements, with the method that gave the intervals."""
        return {
            **asdict(self),
            "method": "paired percentile bootstrap over prompts",
            "confidence": CONFIDENCE,
            "resamples": RESAMPLES,
            "seed": SEED,
        }


def slowdown(original: Sequence[float], quantized: Sequence[float]) -> Slowdown:
    """Compare times of the same prompts, in seconds and in the same order.

    Raises:
        ValueError: no times were given, or the numbers of times differ.
    """
    first, second = np.asarray(original, np.float64), np.asarray(quantized, np.float64)
    if first.shape != second.shape or not first.size:
        raise ValueError(f"{first.size} and {second.size} times cannot be paired")
    ratio, difference = None, None
    if first.size > 1:
        generator = np.random.default_rng(SEED)
        # A part of the draws at a time limits the memory for many prompts.
        draws = (
            generator.integers(0, first.size, (_DRAWS_AT_ONCE, first.size)) for _ in range(RESAMPLES // _DRAWS_AT_ONCE)
        )
        means = np.concatenate([(first[draw].mean(axis=1), second[draw].mean(axis=1)) for draw in draws], axis=1)
        ratio = _interval(100 * (means[1] / means[0] - 1), 1)
        difference = _interval(means[1] - means[0], DIGITS)
    return Slowdown(
        pairs=first.size,
        ratio_of_means_percent=percent_change(first.mean(), second.mean()),
        ratio_of_means_percent_interval=ratio,
        mean_difference_s=round(float((second - first).mean()), DIGITS),
        mean_difference_s_interval=difference,
    )


def summarise_times(original: Mapping[str, float], quantized: Mapping[str, float]) -> dict[str, Any]:
    """Return statistics of times in seconds.

    Args:
        original: times of the original model by prompt.
        quantized: times of the quantized model by prompt.

    Returns:
        The spread of each model (``original``, ``quantized``) and the ``slowdown`` over prompts that both have. What
        cannot be computed is left out.
    """
    found: dict[str, Any] = {
        model: spread(list(times.values())).to_dict()
        for model, times in zip(MODELS, (original, quantized), strict=True)
        if times
    }
    pairs = [(seconds, quantized[key]) for key, seconds in original.items() if key in quantized]
    if pairs:
        found["slowdown"] = slowdown(*zip(*pairs, strict=True)).to_dict()
    return found


def combine(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Combine several measurements of one thing: the median of ``time_s``, the largest of each ``peak_…``.

    Args:
        rows: at least one.
    """
    peaks = {key: max(row[key] for row in rows) for key in shared_figures(rows)}
    return {**peaks, "time_s": round(statistics.median(row["time_s"] for row in rows), DIGITS)}


def combine_stages(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Combine the stages of several measurements, which all have the same ones.

    Args:
        rows: at least one.
    """
    return {stage: combine([row["stages"][stage] for row in rows]) for stage in rows[0]["stages"]}


def shared_figures(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of the figures that all rows have: ``time_s`` and peaks."""
    names = [{key for key in row if key == "time_s" or key.startswith("peak_")} for row in rows]
    return sorted(set.intersection(*names), reverse=True) if names else []


def _interval(draws: np.ndarray, digits: int) -> list[float]:
    tail = (1 - CONFIDENCE) / 2
    return [round(float(end), digits) for end in np.quantile(draws, (tail, 1 - tail))]
