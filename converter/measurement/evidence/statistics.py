"""Statistics of measurements, and of pairs of them: how much more time does one model take than the other?

Times differ more between two processes on one machine than between two images of one process. So the unit is a pair of
adjacent processes, one of each model, and the interval is Student's t over the logarithms of the pairs' ratios.
``scripts/interval_coverage`` shows how often it contains the true ratio.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from converter.measurement.evidence.names import MODELS
from converter.measurement.evidence.units import DIGITS

CONFIDENCE = 0.95
#: The fewest pairs for an interval: with two, Student's t reaches 12.7 standard errors to each side.
FEWEST_PAIRS = 3
METHOD = "Student's t over pairs of adjacent processes"


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
    """How much more time the quantized model takes than the original; negative where it takes less."""

    pairs: int
    percent: float
    """From the geometric mean of the pairs' ratios."""
    percent_interval: list[float]
    """Ends of the interval; both are ``percent`` if all pairs have the same ratio."""

    def to_dict(self) -> dict[str, Any]:
        """Return it as in files of measurements, with the method that gave the interval."""
        return {**asdict(self), "method": METHOD, "confidence": CONFIDENCE}


def paired_slowdown(log_ratios: Sequence[float]) -> Slowdown | None:
    """Compare the times of two models over pairs of adjacent processes.

    Args:
        log_ratios: of each pair, the logarithm of the quantized model's seconds over the original's.

    Returns:
        None for fewer than ``FEWEST_PAIRS``, whose spread says too little.
    """
    count = len(log_ratios)
    if count < FEWEST_PAIRS:
        return None
    mean, deviation = statistics.fmean(log_ratios), statistics.stdev(log_ratios)
    half = _student(count) * deviation / math.sqrt(count)
    ends = [_percent(mean - half), _percent(mean + half)]
    return Slowdown(pairs=count, percent=_percent(mean), percent_interval=ends)


@dataclass(frozen=True)
class MeanInterval:
    """A mean over prompts, and the interval that contains the mean of all such prompts."""

    mean: float
    interval: tuple[float, float] | None
    """None for fewer than ``FEWEST_PAIRS`` prompts, whose spread says too little."""
    count: int


def mean_interval(values: Sequence[float]) -> MeanInterval:
    """Return the mean of what was measured once per prompt, with Student's t.

    Args:
        values: at least one; of paired differences, one per prompt.
    """
    mean, count = statistics.fmean(values), len(values)
    if count < FEWEST_PAIRS:
        return MeanInterval(mean, None, count)
    half = _student(count) * statistics.stdev(values) / math.sqrt(count)
    return MeanInterval(mean, (mean - half, mean + half), count)


def _student(count: int) -> float:
    """How many standard errors the interval reaches to each side."""
    # Importing it takes a moment.
    from scipy.special import stdtrit

    return float(stdtrit(count - 1, (1 + CONFIDENCE) / 2))


def compare_prompts(original: Mapping[str, float], quantized: Mapping[str, float]) -> dict[str, Any] | None:
    """Compare the times of the prompts that both models have, without an interval.

    Args:
        original: seconds of the original model by prompt.
        quantized: seconds of the quantized model by prompt.

    Returns:
        As files of earlier versions have it: ``pairs`` (of times, one for each prompt), ``ratio_of_means_percent`` and
        ``mean_difference_s``; None if no prompt has two times, or the original's are all 0.
    """
    pairs = [(seconds, quantized[key]) for key, seconds in original.items() if key in quantized]
    first, second = (sum(times) for times in zip(*pairs, strict=True)) if pairs else (0, 0)
    if not first:
        return None
    return {
        "pairs": len(pairs),
        "ratio_of_means_percent": percent_change(first, second),
        "mean_difference_s": round((second - first) / len(pairs), DIGITS),
    }


def summarise_times(original: Mapping[str, float], quantized: Mapping[str, float]) -> dict[str, Any]:
    """Return the spread of each model's times, ``original`` and ``quantized``; one without times is left out.

    Args:
        original: seconds of the original model by prompt.
        quantized: seconds of the quantized model by prompt.
    """
    return {
        model: spread(list(times.values())).to_dict()
        for model, times in zip(MODELS, (original, quantized), strict=True)
        if times
    }


def combine(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Combine several measurements of one thing: the median of ``time_s``, the largest of each ``peak_…``.

    Args:
        rows: at least one; some may lack a time.
    """
    peaks = {key: max(row[key] for row in rows) for key in shared_figures(rows)}
    times = [row["time_s"] for row in rows if "time_s" in row]
    return {**peaks, **({"time_s": round(statistics.median(times), DIGITS)} if times else {})}


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


def _percent(log_ratio: float) -> float:
    return round(100 * math.expm1(log_ratio), DIGITS)
