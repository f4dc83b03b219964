"""Pairs of adjacent sessions, from the journal: what they took, what disturbed them, and which to measure once more."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from converter.measurement.benchmark.conditions import Conditions, disturbances, session_conditions
from converter.measurement.benchmark.journal import TAKEN_OVER, Cell, Journal, is_image_key
from converter.measurement.benchmark.options import BenchOptions
from converter.measurement.evidence.names import MODELS, STANDARD
from converter.measurement.evidence.pairs import TimedPair
from converter.measurement.evidence.units import DIGITS
from converter.measurement.prompts.suite import PromptSuite, SuitePrompt


def timing_count(suite: PromptSuite, options: BenchOptions) -> int:
    """The number of prompts that all pairs generate."""
    return min(options.timing_prompts or len(suite.prompts), len(suite.prompts))


def timing_prompts(suite: PromptSuite, options: BenchOptions) -> tuple[SuitePrompt, ...]:
    """The prompts that all pairs generate."""
    return suite.prompts[: timing_count(suite, options)]


def models_of(pair: int) -> tuple[str, ...]:
    """The models in the order in which a pair measures them, which alternates."""
    return MODELS if pair % 2 == 0 else MODELS[::-1]


@dataclass(frozen=True)
class ModePairs:
    """All attempts at the pairs of one mode, and the prompts over which they are compared."""

    prompts: tuple[str, ...]
    """Ids of the timed prompts that both models generated in every pair that counts."""
    pairs: tuple[TimedPair, ...]
    """In their order."""
    to_repeat: tuple[int, ...]
    """Numbers of the pairs that were disturbed or interrupted when they were first measured, or taken over in part."""

    def to_dict(self) -> dict[str, Any]:
        """Return it as in files of measurements."""
        return {"timed_prompts": list(self.prompts), "timed_pairs": [pair.to_dict() for pair in self.pairs]}

    def is_disturbed(self, cell: Cell) -> bool:
        """Whether a session of this mode was disturbed."""
        found = (pair for pair in self.pairs if (pair.pair, pair.attempt) == (cell.pair, cell.attempt))
        return any(bool(pair.disturbed[cell.model]) for pair in found)


@dataclass(frozen=True)
class _Attempt:
    """The timed rows of both models in one attempt at a pair."""

    pair: int
    attempt: int
    rows: Mapping[str, Mapping[str, Mapping[str, Any]]]
    """By model and prompt, without those that were taken over from another benchmark."""
    taken_over: bool
    """Whether there are such rows. Their processes were not next to those of this benchmark."""
    interrupted: bool
    conditions: Mapping[str, Conditions]
    """By model, if it has rows."""

    @property
    def prompts(self) -> list[str]:
        """Ids of the prompts that both models generated."""
        original, quantized = (self.rows[model] for model in MODELS)
        return [key for key in original if key in quantized]

    def seconds(self, model: str, prompts: Sequence[str]) -> float | None:
        """Sum of a model's times of these prompts; None if there are none, or if both models do not have all."""
        if not prompts or not set(prompts) <= set(self.prompts):
            return None
        return round(math.fsum(self.rows[model][key]["time_s"] for key in prompts), DIGITS)


def find_pairs(journal: Journal, suite: PromptSuite, options: BenchOptions, mode: str) -> ModePairs:
    """Return what the journal has of the pairs of a mode.

    Args:
        journal: the measurements.
        suite: the prompts.
        options: say which prompts are timed.
        mode: one of ``MODES``.
    """
    keys = [prompt.id for prompt in timing_prompts(suite, options)]
    if mode != STANDARD:
        # The first one is cold.
        del keys[0]
    cells = {cell for cell, key in (*journal.measured, *journal.failures) if cell.mode == mode and is_image_key(key)}
    numbers = sorted({(cell.pair, cell.attempt) for cell in cells})
    attempts = [_attempt(journal, mode, pair, attempt, keys) for pair, attempt in numbers]
    first = {model: _first_sessions(attempts, model) for model in MODELS}
    disturbed = [
        {model: disturbances(found.conditions.get(model), first[model]) for model in MODELS} for found in attempts
    ]
    used = _choose(attempts, disturbed)
    prompts = [key for key in keys if used and all(key in found.prompts for found in used)]
    pairs = [
        _timed_pair(found, reasons, prompts, used=bool(prompts) and any(found is other for other in used))
        for found, reasons in zip(attempts, disturbed, strict=True)
    ]
    to_repeat = [
        pair.pair
        for pair, found in zip(pairs, attempts, strict=True)
        if pair.attempt == 0 and (found.taken_over or (found.prompts and (pair.interrupted or pair.disturbed_sessions)))
    ]
    return ModePairs(tuple(prompts), tuple(pairs), tuple(to_repeat))


def _first_sessions(attempts: Sequence[_Attempt], model: str) -> list[Conditions]:
    """A model's sessions; those that were measured once more do not change what is usual."""
    return [found.conditions[model] for found in attempts if found.attempt == 0 and model in found.conditions]


def _timed_pair(
    found: _Attempt, disturbed: Mapping[str, Sequence[str]], prompts: Sequence[str], *, used: bool
) -> TimedPair:
    original, quantized = (found.seconds(model, prompts) for model in MODELS)
    return TimedPair(
        pair=found.pair,
        attempt=found.attempt,
        first=models_of(found.pair)[0],
        original_s=original,
        quantized_s=quantized,
        disturbed=disturbed,
        interrupted=found.interrupted,
        conditions={model: conditions.to_dict() for model, conditions in found.conditions.items()},
        used=used,
    )


def _choose(attempts: Sequence[_Attempt], disturbed: Sequence[Mapping[str, Sequence[str]]]) -> list[_Attempt]:
    """The attempt at each pair that counts: the most complete, not interrupted, least disturbed, last one."""
    best: dict[int, tuple[tuple[int, ...], _Attempt]] = {}
    for found, reasons in zip(attempts, disturbed, strict=True):
        rank = (len(found.prompts), not found.interrupted, -sum(map(bool, reasons.values())), found.attempt)
        if found.prompts and (found.pair not in best or rank > best[found.pair][0]):
            best[found.pair] = rank, found
    return [found for _, found in best.values()]


def _attempt(journal: Journal, mode: str, pair: int, attempt: int, keys: Sequence[str]) -> _Attempt:
    cells = [Cell(mode, pair, attempt, model) for model in models_of(pair)]
    known = {
        cell.model: {key: row for key in keys if "time_s" in (row := journal.measured.get((cell, key), {}))}
        for cell in cells
    }
    rows = {
        model: {key: row for key, row in found.items() if row["worker"] != TAKEN_OVER} for model, found in known.items()
    }
    return _Attempt(
        pair=pair,
        attempt=attempt,
        rows=rows,
        taken_over=rows != known,
        interrupted=_is_interrupted(journal, cells, rows),
        conditions={
            model: found for model in MODELS if (found := session_conditions(list(rows[model].values()))) is not None
        },
    )


def _is_interrupted(
    journal: Journal, cells: Sequence[Cell], rows: Mapping[str, Mapping[str, Mapping[str, Any]]]
) -> bool:
    """Whether a session's timed images are of several workers, or a worker of another cell came between the two."""
    workers = [{row["worker"] for row in rows[cell.model].values()} for cell in cells]
    if any(len(found) > 1 for found in workers):
        return True
    numbers = sorted(set.union(*workers))
    return (
        any(journal.cell_of.get(number) not in cells for number in range(numbers[0], numbers[-1])) if numbers else False
    )
