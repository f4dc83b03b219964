"""The variants of an ablation as tables and charts compare them: by bytes, error, and harm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from converter.measurement.evidence.units import GB

#: How far from one the cosine of equal weights may be, in float64 sums of billions of terms.
_COSINE_ROUNDING = 1e-9


@dataclass(frozen=True)
class ComparedVariant:
    """A variant beside the others."""

    content: Mapping[str, Any]
    """The variant as the file has it."""
    saved: int
    """Bytes that it takes less than the model without quantization; negative if it takes more."""
    error: float | None
    """Relative error of the velocity if it was measured for any variant, else of all weights; None if it is unknown."""
    is_recipe: bool
    """Whether it is the recipe that is examined."""
    is_release: bool
    """Whether it has the weights of the release that the card is about."""
    is_on_front: bool = False
    """Whether no other variant is better in bytes or error, and as good in the other."""

    @property
    def name(self) -> str:
        """Its name."""
        return str(self.content["name"])

    @property
    def bytes(self) -> int:
        """Footprint of the component."""
        return int(self.content["bytes"])

    @property
    def harm(self) -> float | None:
        """Its squared error, since squared errors of different modules add up; None if it is unknown."""
        return None if self.error is None else self.error**2

    @property
    def harm_per_gb(self) -> float | None:
        """Harm for each GB that it saves; None if it is unknown, or nothing is saved."""
        return None if self.harm is None or self.saved <= 0 else self.harm / (self.saved / GB)


def has_velocity(content: Mapping[str, Any]) -> bool:
    """Return whether errors are those of the velocity.

    Args:
        content: of ``ablation.json``.
    """
    return any("velocity" in variant for variant in content["variants"])


def compare_variants(content: Mapping[str, Any], release: str = "") -> list[ComparedVariant]:
    """Return all variants in the order of the file.

    Args:
        content: of ``ablation.json``.
        release: name of the variant that has the weights of a release; empty if there is none.
    """
    uses_velocity = has_velocity(content)
    errors = [_velocity_error(variant) if uses_velocity else _weight_error(variant) for variant in content["variants"]]
    front = _front([(variant["bytes"], error) for variant, error in zip(content["variants"], errors, strict=True)])
    return [
        ComparedVariant(
            variant,
            content["unquantized_bytes"] - variant["bytes"],
            error,
            is_recipe=number == 0,
            is_release=variant["name"] == release,
            is_on_front=(variant["bytes"], error) in front,
        )
        for number, (variant, error) in enumerate(zip(content["variants"], errors, strict=True))
    ]


def _velocity_error(variant: Mapping[str, Any]) -> float | None:
    return variant["velocity"]["error"] if "velocity" in variant else None


def _weight_error(variant: Mapping[str, Any]) -> float | None:
    """Root of the noise over the energy of all weights."""
    weights = variant["weights"]
    ratio, cosine = weights["sqnr_db"], weights["cosine_min"]
    if ratio is not None:
        return float(10 ** (-ratio / 20))
    is_exact = cosine is not None and cosine >= 1 - _COSINE_ROUNDING
    return 0.0 if is_exact else None


def _front(points: Sequence[tuple[int, float | None]]) -> set[tuple[int, float | None]]:
    """Return the points that have less error than all with fewer bytes, and no more than all with as many."""
    known = sorted((size, error) for size, error in points if error is not None)
    front: set[tuple[int, float | None]] = set()
    least = float("inf")
    for _, group in groupby(known, key=lambda point: point[0]):
        best = next(group)
        if best[1] < least:
            front.add(best)
            least = best[1]
    return front
