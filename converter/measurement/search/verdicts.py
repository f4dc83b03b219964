"""What a check says of recipes that a search found: whether each is better than the best uniform one that fits."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from converter.conversion.recipe.recipe import Recipe
from converter.measurement.evidence.ablation import paired
from converter.measurement.evidence.statistics import MeanInterval
from converter.measurement.search.problem import Selection


@dataclass(frozen=True)
class Found:
    """A recipe that a search found."""

    file: Path
    recipe: Recipe
    selection: Selection
    budget: int
    """The most bytes that it may have; its own where none were given."""

    @property
    def modules(self) -> dict[str, int]:
        """Number of modules by what was chosen for them."""
        return dict(sorted(Counter(choice.name for choice in self.selection.choices).items()))


@dataclass(frozen=True)
class Measured:
    """A recipe and its error for the prompts of the check."""

    name: str
    bytes: int
    harm: float | None
    """The sum of the harms of its modules; None if some are not known."""
    errors: Mapping[str, float]
    """Velocity errors by id of the prompt."""
    root_mean_square: float
    """The root of the mean square of the velocity errors of all calls; harms predict this."""

    @property
    def error(self) -> float:
        """The mean over prompts."""
        return fmean(self.errors.values())

    @property
    def predicted(self) -> float | None:
        """The error that the harms predict, if they are squares of errors; compare ``root_mean_square``."""
        return None if self.harm is None else math.sqrt(self.harm)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "name": self.name,
            "bytes": self.bytes,
            "harm": self.harm,
            "error": self.error,
            "root_mean_square": self.root_mean_square,
            "prompts": dict(self.errors),
        }


@dataclass(frozen=True)
class Verdict:
    """A recipe that was found, against another one."""

    recipe: str
    rival: str
    role: str
    """What the other one is, in words."""
    errors: tuple[float, float]
    """Velocity errors of the recipe and of the other one."""
    difference: MeanInterval
    """How much larger the error of the other one is, over prompts."""

    @property
    def outcome(self) -> str:
        """``better``, ``worse``, or ``undecided`` where the interval contains zero."""
        low, high = self.difference.interval or (-math.inf, math.inf)
        return "better" if low > 0 else "worse" if high < 0 else "undecided"

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "recipe": self.recipe,
            "rival": self.rival,
            "role": self.role,
            "outcome": self.outcome,
            "difference": self.difference.mean,
            "interval": list(self.difference.interval or ()),
            "prompts": self.difference.count,
        }

    def __str__(self) -> str:
        own, other = self.errors
        text = f"{self.recipe}: velocity error {own:.4g}, that of {self.rival} ({self.role}) {other:.4g}"
        if self.difference.interval == (0.0, 0.0):
            return f"{text}: both are the same for each prompt, so the search does not win."
        low, high = self.difference.interval or (-math.inf, math.inf)
        ends = {
            "better": f"the search wins, by {low:.2g} to {high:.2g}",
            "worse": f"the search does not win; it is worse by {-high:.2g} to {-low:.2g}",
            "undecided": f"the search does not win; no difference was found, it is {low:.2g} to {high:.2g}",
        }
        return f"{text}: {ends[self.outcome]} (95% interval over {self.difference.count} prompts)."


@dataclass(frozen=True)
class Check:
    """What a check has found."""

    found: tuple[Measured, ...]
    """The recipes of the search, in their order."""
    uniform: tuple[Measured, ...]
    """The recipes that they are compared with, the smallest first."""
    verdicts: tuple[Verdict, ...]
    alone: tuple[str, ...]
    """Names of recipes with whose budget no uniform recipe fits."""

    @property
    def sentences(self) -> list[str]:
        """What may be said."""
        alone = [
            f"{name}: no uniform recipe fits its budget, so there is nothing to compare it with." for name in self.alone
        ]
        return [*map(str, self.verdicts), *alone]

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "found": [one.to_dict() for one in self.found],
            "uniform": [one.to_dict() for one in self.uniform],
            "verdicts": [verdict.to_dict() for verdict in self.verdicts],
            "alone": list(self.alone),
        }


def compare(found: Sequence[Found], measured: Sequence[Measured], uniform: Sequence[Measured]) -> Check:
    """Compare each recipe with the best uniform one that fits its budget, and with the first one if it fits.

    Args:
        found: what a search found.
        measured: the same recipes with their errors.
        uniform: the others; the first one is that which the search began with.
    """
    verdicts, alone = list[Verdict](), list[str]()
    for one, own in zip(found, measured, strict=True):
        fitting = [other for other in uniform if other.bytes <= one.budget]
        if not fitting:
            alone.append(own.name)
            continue
        best = min(fitting, key=lambda other: (other.error, other.bytes))
        verdicts.append(_verdict(own, best, "the best uniform recipe that fits"))
        if uniform[0] in fitting and uniform[0] is not best:
            verdicts.append(_verdict(own, uniform[0], "the recipe that the search began with"))
    by_size = sorted(uniform, key=lambda other: (other.bytes, other.error))
    return Check(tuple(measured), tuple(by_size), tuple(verdicts), tuple(alone))


def _verdict(own: Measured, other: Measured, role: str) -> Verdict:
    difference = paired(other.errors, own.errors)
    if difference is None:
        raise ValueError("recipes were measured with different prompts")
    return Verdict(own.name, other.name, role, (own.error, other.error), difference)
