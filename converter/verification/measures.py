"""Figures for how far weights are from their source."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from converter.verification.report import Check

#: How many of the worst modules are listed.
WORST = 10


@dataclass(frozen=True)
class ModuleFidelity:
    """How far one weight is from its source."""

    name: str
    family: str
    sqnr_db: float
    """Signal-to-quantization-noise ratio: 10·log10 of the source's energy over the error's; infinite if equal."""
    max_abs_error: float
    max_error_steps: float | None
    """The largest error in steps of its own scale, of which rounding explains half a step; None where a scale
    is not a step of the weight (with a rotation, a codebook or floats), or all scales are zero."""
    cosine: float
    """Cosine of the angle between the weight and its source, both taken as one vector."""
    energy: float
    noise: float
    excess: float
    """The error as a multiple of what quantization explains; more than one is too far."""

    @property
    def is_finite(self) -> bool:
        """Whether the restored weight has finite numbers only."""
        return math.isfinite(self.noise)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values; values that are not finite become null."""
        figures = ("sqnr_db", "max_abs_error", "max_error_steps", "cosine")
        return {"name": self.name, "family": self.family, **{key: finite(getattr(self, key)) for key in figures}}


@dataclass(frozen=True)
class Fidelity:
    """The result of a comparison with the source."""

    checks: tuple[Check, ...]
    modules: tuple[ModuleFidelity, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return ``fidelity`` of the JSON of ``verify``; a figure is null if a weight is not finite."""
        modules = self.modules
        ratios = [module.sqnr_db for module in modules]
        families = sorted({module.family for module in modules})
        steps = [module.max_error_steps for module in modules if module.max_error_steps is not None]
        return {
            "sqnr_db": {"min": _of_all(min, ratios, math.inf), "median": _of_all(median, ratios, math.inf)},
            "max_abs_error": _of_all(max, [module.max_abs_error for module in modules], 0.0),
            "max_error_steps": _of_all(max, steps, math.inf),
            "cosine_min": _of_all(min, [module.cosine for module in modules], 1.0),
            "families": [_family_totals(name, modules) for name in families],
            "worst": [module.to_dict() for module in sorted(modules, key=by_ratio)[:WORST]],
        }


def join_fidelities(parts: Mapping[str, Fidelity]) -> Fidelity:
    """The comparisons of several components as one, in which names begin with the component's.

    Args:
        parts: by component.
    """
    if len(parts) == 1:
        return next(iter(parts.values()))
    modules = (
        replace(module, name=f"{name}/{module.name}", family=f"{name}/{module.family}")
        for name, part in parts.items()
        for module in part.modules
    )
    return Fidelity((), tuple(modules))


def by_ratio(module: ModuleFidelity) -> tuple[float, str]:
    """Sort key that puts the worst modules first, and NaN before them."""
    return (-math.inf if math.isnan(module.sqnr_db) else module.sqnr_db), module.name


def ratio_db(energy: float, noise: float) -> float:
    """Signal-to-noise ratio in dB: infinite without noise, NaN if the noise is."""
    if math.isnan(noise) or noise == 0:
        return math.nan if noise else math.inf
    # A quotient could leave the range of a float; the difference of logarithms cannot.
    return 10 * (math.log10(energy) - math.log10(noise)) if energy > 0 and math.isfinite(noise) else -math.inf


def cosine_of(energy: float, length: float, dot: float, noise: float) -> float:
    """Cosine of the angle between a weight and what is restored of it; of zeros it is 1 if both are zero.

    Args:
        energy: the sum of the squares of the weight.
        length: the sum of the squares of what is restored.
        dot: the sum of their products.
        noise: the sum of the squares of their differences.
    """
    norm = math.sqrt(energy) * math.sqrt(length)
    return dot / norm if norm else (1.0 if noise == 0 else 0.0)


def finite(value: float | None) -> float | None:
    """The value, or None if JSON cannot express it."""
    return value if value is not None and math.isfinite(value) else None


def _of_all(choose: Callable[[Sequence[float]], float], values: Sequence[float], default: float) -> float | None:
    """A figure of all modules; None if one is NaN, which ``min`` and ``max`` notice or not by its position."""
    if any(map(math.isnan, values)):
        return None
    return finite(choose(values) if values else default)


def _family_totals(name: str, modules: Iterable[ModuleFidelity]) -> dict[str, Any]:
    members = [module for module in modules if module.family == name]
    energy, noise = sum(module.energy for module in members), sum(module.noise for module in members)
    return {
        "name": name,
        "modules": len(members),
        "sqnr_db": finite(ratio_db(energy, noise)),
        "sqnr_db_min": finite(min(members, key=by_ratio).sqnr_db),
        "cosine_min": _of_all(min, [module.cosine for module in members], 1.0),
    }
