"""Statistics of measurements, and of pairs of them: how much slower is one model than the other?

The interval is a paired percentile bootstrap: prompts are drawn with replacement, each with the figures of both models,
since a long prompt is slow for both. Ten thousand draws from a fixed seed, so that a file gives the same figures every
time.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from converter.measurement.evidence.names import MODELS

#: Draws of the bootstrap; the interval's ends then move by less than a twentieth of its width between seeds.
RESAMPLES = 10_000
_DRAWS_AT_ONCE = 500
CONFIDENCE = 0.95
SEED = 0
#: Digits behind the point of seconds and GB, as published tables have them.
DIGITS = 3
#: What rounding to them may shift a figure by: half a unit, and a little for binary fractions.
ROUNDING = 0.00051
GB = 10**9
#: Bytes of a weight in bfloat16, in which models are usually loaded.
LOADED_BYTES = 2


@dataclass(frozen=True)
class Spread:
    """Where several measurements of one thing lie."""

    mean: float
    median: float
    stdev: float | None
    """Of a sample; None for a single measurement."""
    min: float
    max: float
    count: int

    def to_dict(self) -> dict[str, Any]:
        """As evidence files hold it, without what is not there."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def spread(values: Sequence[float]) -> Spread:
    """Describe measurements, rounded to ``DIGITS``.

    Raises:
        ValueError: there are none.
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
    """How much more ``after`` is, in percent with one digit; negative where it is less."""
    return round(float(100 * (after / before - 1)), 1)


@dataclass(frozen=True)
class Slowdown:
    """How much more time the quantized model takes than the original, over prompts that both were measured on."""

    pairs: int
    ratio_of_means_percent: float
    """Sum of its times against the sum of the original's."""
    mean_difference_s: float
    """Mean over prompts of its time less the original's."""
    ratio_of_means_percent_interval: tuple[float, float] | None
    """95 % of the bootstrap's draws lie in it; None for a single pair."""
    mean_difference_s_interval: tuple[float, float] | None

    def to_dict(self) -> dict[str, Any]:
        """As evidence files hold it, with the method that made the intervals."""
        return {
            "pairs": self.pairs,
            "ratio_of_means_percent": self.ratio_of_means_percent,
            "ratio_of_means_percent_interval": _pair(self.ratio_of_means_percent_interval),
            "mean_difference_s": self.mean_difference_s,
            "mean_difference_s_interval": _pair(self.mean_difference_s_interval),
            "method": "paired percentile bootstrap over prompts",
            "confidence": CONFIDENCE,
            "resamples": RESAMPLES,
            "seed": SEED,
        }


def slowdown(original: Sequence[float], quantized: Sequence[float]) -> Slowdown:
    """Compare times of the same prompts, in seconds and in the same order.

    Raises:
        ValueError: there are none, or not as many of one as of the other.
    """
    first, second = np.asarray(original, np.float64), np.asarray(quantized, np.float64)
    if first.shape != second.shape or not first.size:
        raise ValueError(f"{first.size} and {second.size} times cannot be paired")
    ratio, difference = None, None
    if first.size > 1:
        generator = np.random.default_rng(SEED)
        # A part of the draws at a time, so that memory hardly grows with the number of prompts.
        draws = (
            generator.integers(0, first.size, (_DRAWS_AT_ONCE, first.size)) for _ in range(RESAMPLES // _DRAWS_AT_ONCE)
        )
        means = np.concatenate([(first[draw].mean(axis=1), second[draw].mean(axis=1)) for draw in draws], axis=1)
        ratio = _interval(100 * (means[1] / means[0] - 1), 1)
        difference = _interval(means[1] - means[0], DIGITS)
    return Slowdown(
        pairs=first.size,
        ratio_of_means_percent=percent_change(first.mean(), second.mean()),
        mean_difference_s=round(float((second - first).mean()), DIGITS),
        ratio_of_means_percent_interval=ratio,
        mean_difference_s_interval=difference,
    )


def summarise_times(original: Mapping[str, float], quantized: Mapping[str, float]) -> dict[str, Any]:
    """Statistics of times in seconds, by prompt.

    Returns:
        The spread of each model (``original``, ``quantized``) and the ``slowdown`` over prompts that both have; each
        only where there is something to compute it from.
    """
    times = dict(zip(MODELS, (original, quantized), strict=True))
    found: dict[str, Any] = {
        model: spread(list(values.values())).to_dict() for model, values in times.items() if values
    }
    pairs = [(seconds, quantized[key]) for key, seconds in original.items() if key in quantized]
    if pairs:
        found["slowdown"] = slowdown(*zip(*pairs, strict=True)).to_dict()
    return found


def combine(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Several measurements of one thing: the median of ``time_s``, the largest of each ``peak_…``.

    Args:
        rows: at least one.
    """
    found = {"time_s": round(statistics.median(row["time_s"] for row in rows), DIGITS)}
    for key in shared_figures(rows):
        if key != "time_s":
            found[key] = max(row[key] for row in rows)
    return found


def combine_stages(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """The same for the stages of each; all have the same ones.

    Args:
        rows: at least one.
    """
    return {stage: combine([row["stages"][stage] for row in rows]) for stage in rows[0]["stages"]}


def shared_figures(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the figures that all rows have: ``time_s`` and peaks."""
    names = [{key for key in row if key == "time_s" or key.startswith("peak_")} for row in rows]
    return sorted(set.intersection(*names), reverse=True) if names else []


def _interval(draws: np.ndarray, digits: int) -> tuple[float, float]:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(draws, (tail, 1 - tail))
    return round(float(low), digits), round(float(high), digits)


def _pair(interval: tuple[float, float] | None) -> list[float] | None:
    return None if interval is None else list(interval)
