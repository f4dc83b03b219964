"""Velocity errors along trajectories, in files of measurements."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

#: Significant digits of an error.
DIGITS = 6
#: How far a computed error may be from one in a file, relatively: a unit of the last digit.
_ROUNDING = 10.0 ** (1 - DIGITS)


def significant(value: float) -> float:
    """Round a figure to the digits that files have."""
    return float(f"{value:.{DIGITS}g}")


def summarise_errors(prompts: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return ``mean_error`` and ``max_error`` over all steps of all prompts."""
    errors = [step["error"] for prompt in prompts for step in prompt["steps"]]
    return {"mean_error": significant(fmean(errors)), "max_error": max(errors)}


def trajectory_disagreements(trajectory: Mapping[str, Any]) -> Iterator[str]:
    """Yield the contradictions in ``trajectory`` of ``image_fidelity.json``."""
    for prompt in trajectory["prompts"]:
        for key, entry in (("steps", "step"), ("blocks", "block")):
            numbers = [row[entry] for row in prompt.get(key, ())]
            if numbers != list(range(len(numbers))):
                yield f"trajectory: the {key} of {prompt['id']} are not numbered from 0"
    for name, computed in summarise_errors(trajectory["prompts"]).items():
        if not math.isclose(trajectory[name], computed, rel_tol=_ROUNDING):
            yield f"trajectory.{name} is {trajectory[name]}, but its steps give {computed}"
