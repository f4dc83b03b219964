"""What files of measurements say of the times of two models: an interval over pairs, ratios, or figures of one run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from converter.measurement.evidence.agreement import measured_times
from converter.measurement.evidence.names import MODELS
from converter.measurement.evidence.pairs import TimedPair, read_pairs, used_log_ratios
from converter.measurement.evidence.statistics import compare_prompts
from converter.measurement.evidence.units import DIGITS


@dataclass(frozen=True)
class PromptRatio:
    """The times of one run of each model, or of several that were combined, as earlier versions compared them."""

    ratio: float
    """Quantized over original, of the sums over the prompts."""
    interval: Sequence[float] | None
    """From draws of the prompts, so differences between runs are not in it; None if the file has no interval."""
    prompts: int
    runs: int


@dataclass(frozen=True)
class TimeComparison:
    """The times of the quantized model against those of the original."""

    slowdown: Mapping[str, Any] | None
    """Over at least three pairs of adjacent processes; None if fewer were measured."""
    pairs: Sequence[TimedPair]
    """All pairs of processes, with those that were measured once more; empty in files of earlier versions."""
    prompts: Sequence[str]
    """Ids of the prompts over whose times the pairs are compared."""
    over_prompts: PromptRatio | None
    """What a file of an earlier version has in place of pairs; None if there are pairs, or nothing to compare."""

    @property
    def used(self) -> list[TimedPair]:
        """The pairs whose ratios count."""
        return [pair for pair in self.pairs if pair.used and pair.log_ratio is not None]

    @property
    def ratios(self) -> list[float]:
        """Quantized over original, of the pairs that count."""
        return [math.exp(ratio) for ratio in used_log_ratios(self.pairs)]

    @property
    def measured_again(self) -> int:
        """Number of pairs that were measured once more."""
        return sum(pair.attempt > 0 for pair in self.pairs)

    @property
    def disturbed(self) -> int:
        """Number of pairs that count although they were disturbed or interrupted."""
        return sum(pair.interrupted or pair.disturbed_sessions > 0 for pair in self.used)

    def to_dict(self) -> dict[str, Any]:
        """Return it as ``lensconv evidence --json`` shows it, without what is missing."""
        found: dict[str, Any] = {"slowdown": dict(self.slowdown)} if self.slowdown else {}
        if self.pairs:
            ratios = [round(ratio, DIGITS) for ratio in self.ratios]
            found |= {"ratios": ratios, "measured_again": self.measured_again, "disturbed": self.disturbed}
        return {**found, "over_prompts": asdict(self.over_prompts)} if self.over_prompts else found


def compare_matrix(matrix: Mapping[str, Any]) -> TimeComparison:
    """Return what a ``comparison_matrix.json`` says of times."""
    slowdown = matrix.get("summary", {}).get("slowdown")
    times = (measured_times(matrix, model) for model in MODELS)
    return _compare(matrix, slowdown, slowdown or compare_prompts(*times))


def compare_offload(offload: Mapping[str, Any]) -> TimeComparison:
    """Return what a file of an offload benchmark says of the times of warm images."""
    slowdown = offload.get("warm_slowdown")
    return _compare(offload, slowdown, slowdown)


def _compare(
    content: Mapping[str, Any], slowdown: Mapping[str, Any] | None, over_prompts: Mapping[str, Any] | None
) -> TimeComparison:
    if "timed_pairs" in content:
        return TimeComparison(slowdown, read_pairs(content), content.get("timed_prompts", ()), None)
    return TimeComparison(None, (), (), _over_prompts(over_prompts, content) if over_prompts else None)


def _over_prompts(found: Mapping[str, Any], content: Mapping[str, Any]) -> PromptRatio:
    interval = found.get("ratio_of_means_percent_interval")
    return PromptRatio(
        ratio=_ratio(found["ratio_of_means_percent"]),
        interval=None if interval is None else [_ratio(end) for end in interval],
        prompts=found["pairs"],
        runs=content.get("settings", {}).get("repeats", 1),
    )


def _ratio(percent: float) -> float:
    return round(1 + percent / 100, DIGITS)
