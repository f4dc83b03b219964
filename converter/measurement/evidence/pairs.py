"""Pairs of adjacent processes, one for each model, as files of measurements list them.

Times of two models are only compared within a pair, since a machine is not the same from one hour to the next. All
pairs of a file are compared over the same prompts, which the file lists once, as ``timed_prompts``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from converter.measurement.evidence.names import MODELS

#: Digits after the point of a ratio, which is for reading: what is computed comes from the sums.
_RATIO_DIGITS = 4


@dataclass(frozen=True)
class TimedPair:
    """The times of one attempt at a pair, and what disturbed it."""

    pair: int
    """From 0."""
    attempt: int
    """1 if the pair was measured once more, else 0."""
    first: str
    """The model that was measured first; it alternates."""
    original_s: float | None
    """Sum of the original's times of the timed prompts in seconds; None if not both models generated all of them."""
    quantized_s: float | None
    disturbed: Mapping[str, Sequence[str]]
    """By model, what disturbed it; these reasons never come from its times."""
    interrupted: bool
    """Whether the times are not those of two adjacent processes, since the run stopped, or an image failed, between."""
    conditions: Mapping[str, Mapping[str, Any]]
    """By model, what else happened on the machine, as ``Conditions.to_dict`` returns it; not of one without times."""
    used: bool
    """Whether its ratio counts; at most one attempt at a pair does."""

    @property
    def log_ratio(self) -> float | None:
        """Logarithm of the quantized model's time divided by the original's; None without times."""
        if self.original_s is None or self.quantized_s is None:
            return None
        return math.log(self.quantized_s / self.original_s)

    @property
    def disturbed_sessions(self) -> int:
        """Number of its processes that were disturbed."""
        return sum(bool(self.disturbed[model]) for model in MODELS)

    def to_dict(self) -> dict[str, Any]:
        """Return it as in files of measurements, without times that are missing."""
        found: dict[str, Any] = {"pair": self.pair, "attempt": self.attempt, "first": self.first}
        if self.log_ratio is not None:
            ratio = round(math.exp(self.log_ratio), _RATIO_DIGITS)
            found |= {"original_s": self.original_s, "quantized_s": self.quantized_s, "ratio": ratio}
        return {
            **found,
            "disturbed": {model: list(self.disturbed[model]) for model in MODELS},
            "interrupted": self.interrupted,
            "conditions": {model: dict(figures) for model, figures in self.conditions.items()},
            "used": self.used,
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> TimedPair:
        """Read what ``to_dict`` returned, and the schema accepts."""
        return cls(
            # In JSON, 1.0 is an integer, too.
            pair=int(content["pair"]),
            attempt=int(content["attempt"]),
            first=content["first"],
            original_s=content.get("original_s"),
            quantized_s=content.get("quantized_s"),
            disturbed=content["disturbed"],
            interrupted=content["interrupted"],
            conditions=content["conditions"],
            used=content["used"],
        )


def read_pairs(content: Mapping[str, Any]) -> list[TimedPair]:
    """Return the pairs in a file of measurements, in their order; files of earlier versions have none.

    Args:
        content: of ``comparison_matrix.json`` or of an offload benchmark.
    """
    return [TimedPair.from_dict(pair) for pair in content.get("timed_pairs", ())]


def used_log_ratios(pairs: Sequence[TimedPair]) -> list[float]:
    """Return the logarithms of the ratios that count, in the order of the pairs."""
    return [pair.log_ratio for pair in pairs if pair.used and pair.log_ratio is not None]
