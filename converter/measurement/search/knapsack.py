"""One choice of each row, at least cost and within a limit of weight: exact, by dynamic programming in integers.

Rows are added one after the other. Of all that was chosen so far, what counts is the sum of weights and of costs, and
only sums that no other beats in both. A price for weight (the multiplier of Lagrange) says what the other rows cost at
least, so most sums cannot become the optimum and are left out.

HiGHS, in ``scipy.optimize.milp``, solves the same problem, and tests compare the two. But where the blocks of a model
are alike it does not end within minutes, it takes weights beyond the limit for equal to it, and it leaves open which
one of several optima it gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from converter.errors import SolverError

#: Sums that the first pass keeps after each row, which finds a good selection but perhaps not the best one.
_BEAM = 1000
#: Sums over all rows that the second pass keeps at most, 4 bytes each. Tables of real models have far fewer: with 480
#: modules and 5 candidates, a thousand to ten million.
_MOST_SUMS = 100_000_000
#: Relative rounding error of a bound in float64, which adds up a few hundred numbers; rounded up.
_ROUNDING = 1e-12

Table = Sequence[Sequence[int]]


def least_cost(costs: Table, weights: Table, limit: int) -> list[int]:
    """Choose one entry of each row so that the sum of costs is the least possible.

    Of several such selections, that with the least weight counts; of those, that with the earliest entry in the first
    row in which they differ.

    Args:
        costs: integers of at least 0, by row and choice; the largest of each row add up to less than 2**61.
        weights: the same.
        limit: the most that the weights of the choices may add up to.

    Returns:
        The position of the choice in each row.

    Raises:
        ValueError: every selection is above the limit.
        SolverError: too many selections are almost as good as the best one.
    """
    rows = [_Row(np.array(own, np.int64), np.array(other, np.int64)) for own, other in zip(costs, weights, strict=True)]
    if sum(map(min, weights)) > limit:
        raise ValueError("every selection is above the limit")
    price = _price(rows, limit)
    first = _pass(rows, limit, price, beam=_BEAM)
    cost = sum(row[pick] for row, pick in zip(costs, first, strict=True))
    return _pass(rows, limit, price, most=cost)


@dataclass(frozen=True)
class _Row:
    """Costs and weights of the choices, int64."""

    costs: NDArray[np.int64]
    weights: NDArray[np.int64]

    def least(self, price: float) -> float:
        """The least cost if weight has a price."""
        return float((self.costs + price * self.weights).min())

    def lightest(self, price: float) -> int:
        """The least weight of all choices that cost least if weight has a price."""
        priced = self.costs + price * self.weights
        return int(self.weights[priced == priced.min()].min())


def _price(rows: Sequence[_Row], limit: int) -> float:
    """The smallest price of weight at which the rows keep the limit by themselves, within rounding."""

    def is_enough(price: float) -> bool:
        return sum(row.lightest(price) for row in rows) <= limit

    if is_enough(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while not is_enough(high):
        low, high = high, 2 * high
    while low < (middle := (low + high) / 2) < high:
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high


def _pass(rows: Sequence[_Row], limit: int, price: float, *, most: int | None = None, beam: int = 0) -> list[int]:
    """Go through all rows, from the last one to the first.

    Args:
        rows: what can be chosen.
        limit: of weight.
        price: of weight, for bounds.
        most: leave out what must cost more; this keeps the optimum.
        beam: without ``most``, keep so many sums after each row, those with the least bounds.
    """
    rest = np.concatenate(([0.0], np.cumsum([row.least(price) for row in rows])))
    room = limit - np.concatenate(([0], np.cumsum([row.weights.min() for row in rows])))
    costs, weights = np.zeros(1, np.int64), np.zeros(1, np.int64)
    steps: list[tuple[NDArray[np.int32], int]] = []
    for number in reversed(range(len(rows))):
        size = len(costs)
        new_costs = (rows[number].costs[:, None] + costs).ravel()
        new_weights = (rows[number].weights[:, None] + weights).ravel()
        kept = np.flatnonzero(new_weights <= room[number])
        bounds = new_costs[kept] + price * (new_weights[kept] - float(limit)) + rest[number]
        if most is not None:
            kept = kept[bounds <= most + _ROUNDING * (most + price * limit)]
        elif len(kept) > beam:
            kept = kept[np.sort(np.argpartition(bounds, beam)[:beam])]
        # The sort is stable, so that of equal sums the one with the earliest entry in this row comes first.
        kept = kept[np.lexsort((new_costs[kept], new_weights[kept]))]
        costs = new_costs[kept]
        best = np.concatenate(([True], costs[1:] < np.minimum.accumulate(costs)[:-1]))
        kept = kept[best]
        costs, weights = new_costs[kept], new_weights[kept]
        steps.append((kept.astype(np.int32), size))
        if sum(len(step) for step, _ in steps) > _MOST_SUMS:
            raise SolverError(
                "too many selections are almost as good as the best one", "Choose another budget, or fewer candidates."
            )
    return _trace(steps)


def _trace(steps: Sequence[tuple[NDArray[np.int32], int]]) -> list[int]:
    """The choices that led to the last sum, which costs least.

    Args:
        steps: for each row, from the last to the first, where its sums come from: the choice times the number of sums
            before, plus the sum before; and that number.
    """
    at, picks = -1, []
    for step, size in reversed(steps):
        pick, at = divmod(int(step[at]), size)
        picks.append(pick)
    return picks
