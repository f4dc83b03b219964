"""The exact optimum: least harm for a number of bytes, or fewest bytes for an error.

Of selections with equal harm, the one with fewest bytes is chosen; of those, the one whose candidates come first by
their names, module by module. Harms are floats; they become integers of 60 bits, so that sums are exact.
"""

from __future__ import annotations

import math

from converter.errors import UsageError
from converter.measurement.search.knapsack import least_cost
from converter.measurement.search.problem import Problem, Selection, exact_size, select

#: The largest harms of all modules add up to less than two to this power, as integers.
_BITS = 60
#: By how much a predicted error may exceed the wanted one, relative to it: harms, squares and roots are rounded.
_ROUNDING = 1e-9
_HINT = "Choose {} between them, or other candidates or rules."


def choose(problem: Problem, budget: int) -> Selection:
    """Choose least harm within a budget.

    Args:
        problem: what can be chosen.
        budget: the largest footprint of the component, in bytes.

    Raises:
        UsageError: no selection fits the budget, or all do.
        SolverError: too many selections are almost as good as the best one.
    """
    refuse_budget(problem, budget)
    worst = math.fsum(max(choice.harm for choice in row.choices) for row in problem.rows)
    harms = [[_integer(choice.harm, worst) for choice in row.choices] for row in problem.rows]
    return select(problem, least_cost(harms, _bytes(problem), budget - problem.fixed_bytes))


def refuse_budget(problem: Problem, budget: int) -> None:
    """Refuse a budget that leaves nothing to choose; harms do not count.

    Raises:
        UsageError: no selection fits the budget, or all do.
    """
    smallest, largest = problem.smallest, problem.largest
    if not smallest <= budget <= largest:
        side = "below the smallest" if budget < smallest else "above the largest"
        raise UsageError(
            f"a budget of {exact_size(budget)} is {side} possible footprint; footprints go from {exact_size(smallest)} "
            f"to {exact_size(largest)}",
            _HINT.format("a budget"),
        )


def choose_by_error(problem: Problem, error: float) -> Selection:
    """Choose the fewest bytes with a predicted error of at most ``error``.

    Args:
        problem: what can be chosen; its harms are squares of relative errors.
        error: the largest square root of the sum of harms.

    Raises:
        UsageError: no selection has so small an error, or the smallest footprint has.
        SolverError: too many selections are almost as good as the best one.
    """
    smallest = _each_best(problem, by_bytes=True)
    best = _each_best(problem, by_bytes=False)
    if not best.error <= error * (1 + _ROUNDING) or error >= smallest.error:
        side = "at least as large as that of the smallest" if error >= smallest.error else "below that of the best"
        raise UsageError(
            f"an error of {error:.6g} is {side} selection; predicted errors go from {best.error:.6g} "
            f"({exact_size(best.bytes)}) to {smallest.error:.6g} ({exact_size(smallest.bytes)})",
            _HINT.format("an error"),
        )
    limit = (error * (1 + _ROUNDING)) ** 2
    scale = limit * len(problem.rows)
    most = _integer(limit, scale)
    harms = [
        [most + 1 if choice.harm > limit else _integer(choice.harm, scale) for choice in row.choices]
        for row in problem.rows
    ]
    return select(problem, least_cost(_bytes(problem), harms, most))


def front(problem: Problem, count: int) -> list[Selection]:
    """Choose for budgets that are evenly spread from the smallest footprint to the largest.

    No selection has more harm than those before it.

    Args:
        problem: what can be chosen.
        count: how many selections.

    Raises:
        UsageError: fewer than two were asked for.
        SolverError: too many selections are almost as good as the best one.
    """
    found: list[Selection] = []
    for budget in front_budgets(problem, count):
        chosen = choose(problem, budget)
        # Harms that differ by less than a unit of the integers may come out in another order.
        found.append(min([chosen, *found[-1:]], key=lambda selection: (selection.harm, selection.bytes)))
    return found


def front_budgets(problem: Problem, count: int) -> list[int]:
    """Budgets that are evenly spread from the smallest footprint to the largest.

    Raises:
        UsageError: fewer than two were asked for.
    """
    if count < 2:
        raise UsageError(f"a front of {count} has no two ends", "Ask for at least 2.")
    smallest, spread = problem.smallest, problem.largest - problem.smallest
    return [smallest + spread * number // (count - 1) for number in range(count)]


def _each_best(problem: Problem, *, by_bytes: bool) -> Selection:
    """The selection with fewest bytes or least harm, where nothing limits it."""
    picks = []
    for row in problem.rows:
        figures = [(choice.bytes, choice.harm) if by_bytes else (choice.harm, choice.bytes) for choice in row.choices]
        picks.append(figures.index(min(figures)))
    return select(problem, picks)


def _bytes(problem: Problem) -> list[list[int]]:
    return [[choice.bytes for choice in row.choices] for row in problem.rows]


def _integer(harm: float, largest: float) -> int:
    """A harm as an integer of at most 60 bits if it is at most ``largest``."""
    # A power of two, so that harms which are integers already stay exact.
    return round(math.ldexp(harm, _BITS - math.frexp(largest)[1]))
