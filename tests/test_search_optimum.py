"""The optimum of a search, against all that could have been chosen."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st

from converter.errors import SolverError, UsageError
from converter.measurement.search import knapsack, optimum
from converter.measurement.search.knapsack import least_cost
from converter.measurement.search.optimum import choose, choose_by_error, front
from converter.measurement.search.problem import Choice, Problem, Selection
from tests.conftest import run_python

Table = list[list[tuple[int, float]]]


def make_problem(table: Table, groups: tuple[tuple[int, ...], ...] = (), fixed: int = 0) -> Problem:
    """Choices are called a, b, c …, in the order of a row."""
    modules = (tuple(Choice(*pair, chr(97 + at)) for at, pair in enumerate(row)) for row in table)
    return Problem(tuple(modules), groups, fixed)


def random_table(seed: int, *, ties: bool, whole: bool = True) -> Table:
    """12 modules of 4 choices, with harms over 8 decades or with few different harms and bytes."""
    random = np.random.default_rng(seed)
    if ties:
        sizes, harms = 64 * random.integers(1, 6, (12, 4)), random.choice([0, 1, 2, 5], (12, 4))
    else:
        sizes, harms = random.integers(1, 10**8, (12, 4)), 10 ** random.uniform(-0.1, 7.9, (12, 4))
    rows = zip(sizes.tolist(), (np.rint(harms) if whole else harms).tolist(), strict=True)
    return [[*zip(*pair, strict=True)] for pair in rows]


def enumerate_all(table: Table, budget: int) -> tuple[float, int]:
    """Least harm and then fewest bytes within a budget, of all 4**12 selections."""
    halves = [np.array([[*itertools.product(*part)]][0], dtype=np.float64) for part in (table[:6], table[6:])]
    first, second = (half.sum(axis=1) for half in halves)
    best = (math.inf, 0)
    for chunk in np.array_split(first, 16):
        both = chunk[:, None, :] + second[None, :, :]
        sizes, harms = both[..., 0], both[..., 1]
        harms = np.where(sizes <= budget, harms, np.inf)
        least = harms.min()
        best = min(best, (float(least), int(sizes[harms == least].min())))
    return best


@pytest.mark.parametrize(("seed", "ties"), [(1, False), (2, True), (3, True)])
def test_the_optimum_of_twelve_modules_is_that_of_all_selections(
    seed: int, ties: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The first pass alone would find the optimum of so few modules.
    monkeypatch.setattr(knapsack, "_BEAM", 1)
    table = random_table(seed, ties=ties)
    problem = make_problem(table, fixed=1000)
    for part in (0, 0.3, 0.7) if ties else (0.02, 0.5):
        budget = problem.smallest + int(part * (problem.largest - problem.smallest))
        found = choose(problem, budget)
        assert (found.harm, found.bytes - 1000) == enumerate_all(table, budget - 1000)


def test_harms_that_are_no_integers_are_told_apart_where_they_matter() -> None:
    """At a large budget only harms count that are a billion times smaller than the largest."""
    table = [[(size, harm * 1e-14) for size, harm in row] for row in random_table(4, ties=False, whole=False)]
    table = [[(10, 1.0), *row[1:]] for row in table]
    problem = make_problem(table)
    budget = problem.smallest + (problem.largest - problem.smallest) * 3 // 5
    best, _ = enumerate_all(table, budget)
    assert best < 1e-9
    assert choose(problem, budget).harm == pytest.approx(best, rel=1e-12)


#: Sums of a few of them are exact in float64, and the smallest is above what counts as rounding.
HARMS = st.integers(0, 6).map(float) | st.sampled_from([2.0**-10, 0.25, 2.0**20])
ROWS = st.lists(st.tuples(st.integers(0, 9), HARMS), min_size=1, max_size=4)


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """3 to 6 modules, of which some are equal and some are in groups."""
    count = draw(st.integers(3, 6))
    shapes = draw(st.lists(ROWS, min_size=1, max_size=3))
    table = [draw(st.sampled_from(shapes)) for _ in range(count)]
    numbers = draw(st.permutations(range(count)))
    groups = ((), (numbers[:2],), (numbers[:2], numbers[2:4]))[draw(st.integers(0, 2))]
    return make_problem(table, tuple(tuple(group) for group in groups if len(group) == 2), draw(st.integers(0, 5)))


def selections(problem: Problem) -> Iterator[Selection]:
    """All that keep the groups."""
    for choices in itertools.product(*problem.modules):
        if all(len({choices[number].name for number in group}) == 1 for group in problem.groups):
            yield Selection(choices, problem.fixed_bytes + sum(choice.bytes for choice in choices))


def best_of(problem: Problem, fitting: Callable[[Selection], bool], *, by_bytes: bool) -> Selection | None:
    """The best selection by its sums and then by the names of its candidates, one module after the other."""

    def rank(selection: Selection) -> tuple[float, float, list[str]]:
        sums = (selection.bytes, selection.harm) if by_bytes else (selection.harm, selection.bytes)
        return (*sums, [choice.name for choice in selection.choices])

    return min(filter(fitting, selections(problem)), key=rank, default=None)


@settings(max_examples=100)
@given(problem=problems(), part=st.floats(0, 1))
def test_the_optimum_of_few_modules_is_the_best_of_all(problem: Problem, part: float) -> None:
    budget = problem.smallest + int(part * (problem.largest - problem.smallest))
    best = best_of(problem, lambda selection: selection.bytes <= budget, by_bytes=False)
    assert choose(problem, budget) == best


@settings(max_examples=100)
@given(problem=problems(), square=st.integers(0, 40) | st.sampled_from([0.25, 1e12]))
def test_fewest_bytes_for_an_error(problem: Problem, square: float) -> None:
    best = best_of(problem, lambda selection: selection.harm <= square, by_bytes=True)
    smallest = best_of(problem, lambda _: True, by_bytes=True)
    if best is None or best == smallest:
        with pytest.raises(
            UsageError, match="below that of the best" if best is None else "as large as that of the sm"
        ):
            choose_by_error(problem, math.sqrt(square))
    else:
        assert choose_by_error(problem, math.sqrt(square)) == best


@settings(max_examples=15, derandomize=True)
@given(seed=st.integers(0, 2**32), part=st.floats(0.02, 0.98), alike=st.sampled_from([1.0, 0.2]))
def test_the_optimum_of_many_modules_is_that_of_scipy(seed: int, part: float, alike: float) -> None:
    """Integers of few digits, for which the tolerances of HiGHS are too small to matter."""
    random = np.random.default_rng(seed)
    costs = np.rint(10 ** random.uniform(2 - 2 * alike, 5, (60, 1)) * random.uniform(0.8, 1.2, (60, 4)) * (50, 9, 2, 0))
    sizes = random.integers(1, 9, (60, 1)) * (9, 11, 16, 32)
    limit = int(sizes.min(axis=1).sum() + part * (sizes.max(axis=1) - sizes.min(axis=1)).sum())
    picks = least_cost(costs.astype(int).tolist(), sizes.tolist(), limit)
    assert sizes[np.arange(60), picks].sum() <= limit
    result = scipy.optimize.milp(
        costs.ravel(),
        integrality=np.ones(240),
        bounds=scipy.optimize.Bounds(0, 1),
        constraints=[
            scipy.optimize.LinearConstraint(np.kron(np.eye(60), np.ones(4)), 1, 1),
            scipy.optimize.LinearConstraint(sizes.reshape(1, -1), ub=limit),
        ],
        options={"mip_rel_gap": 0},
    )
    assert costs[np.arange(60), picks].sum() == round(result.fun)


MODEL = """
import numpy as np
from converter.measurement.search import knapsack, optimum
from converter.measurement.search.knapsack import least_cost
from converter.measurement.search.optimum import choose, front
from converter.measurement.search.problem import Choice, Problem

def model(seed, blocks=48):
    # The linears of a Lens block, and harms that differ from block to block.
    random = np.random.default_rng(seed)
    shapes = [(4608, 1536), (1536, 1536)] * 2 + [(4096, 1536), (4096, 1536), (1536, 4096)] * 2
    modules = []
    for rows, channels in shapes * blocks:
        count = rows * channels
        sizes = [count * 9 // 16, count * 21 // 32, count * 3 // 4 + 2 * rows, count + 2 * rows, 2 * count]
        harms = 10 ** random.uniform(-8, 0) * random.uniform(0.8, 1.2, 5) * (1, 0.3, 0.06, 0.004, 0)
        modules.append(tuple(map(Choice, sizes, harms.tolist(), ("uint4", "int5", "int6", "int8", "BF16"))))
    return Problem(tuple(modules), fixed_bytes=10**9)

def names(problem, part):
    budget = problem.smallest + (problem.largest - problem.smallest) * part // 10
    return [choice.name for choice in choose(problem, budget).choices]
"""


def test_a_new_process_chooses_the_same() -> None:
    """480 modules and 5 candidates."""
    found: dict[str, Any] = {}
    exec(MODEL, found)  # noqa: S102
    expected = [found["names"](found["model"](1), part) for part in (1, 6)]
    assert len(set(expected[1])) == 5
    done = run_python(MODEL + "print(names(model(1), 1), names(model(1), 6))")
    assert (done.stdout, done.stderr) == (f"{expected[0]} {expected[1]}\n", "")


def test_a_front_goes_from_the_smallest_footprint_to_the_least_harm() -> None:
    problem = make_problem([[*row, (10**8, 0.0)] for row in random_table(5, ties=False)], groups=((0, 3), (5, 6, 7)))
    found = front(problem, 7)
    assert [selection.bytes for selection in found] == sorted(selection.bytes for selection in found)
    assert [selection.harm for selection in found] == sorted((selection.harm for selection in found), reverse=True)
    spread = problem.largest - problem.smallest
    assert all(own.bytes <= problem.smallest + spread * at // 6 for at, own in enumerate(found))
    assert found[0].bytes == problem.smallest
    assert found[-1].harm == 0
    assert front(problem, 2) == [found[0], found[-1]]
    with pytest.raises(UsageError, match="a front of 1 has no two ends"):
        front(problem, 1)


def test_a_front_has_falling_harms_even_if_integers_are_coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimum, "_BITS", 3)
    # As integers, 2 or 1 and 2 or 0: with 2 bytes, the second module seems to be the better one.
    problem = make_problem([[(0, 2.49), (1, 0.51)], [(0, 1.51), (2, 0.49)]])
    assert [selection.harm for selection in front(problem, 4)] == [4.0, 2.02, 2.02, 1.0]
    assert choose(problem, 2).harm == pytest.approx(2.98)


def test_impossible_budgets_and_errors_are_refused_with_both_ends() -> None:
    problem = make_problem([[(10, 4.0), (30, 1.0)], [(10, 5.0), (20, 0.0)]], fixed=10**9)
    ends = "footprints go from 1000000020 bytes (1.000 GB) to 1000000050 bytes (1.000 GB)"
    for budget, side in ((10**9 + 19, "below the smallest"), (10**9 + 51, "above the largest")):
        with pytest.raises(UsageError) as caught:
            choose(problem, budget)
        assert caught.value.message == f"a budget of {budget} bytes (1.000 GB) is {side} possible footprint; {ends}"
    assert choose(problem, 10**9 + 20).harm == 9
    assert choose(problem, 10**9 + 50).harm == 1
    for error, side in (
        (3.0, "at least as large as that of the smallest"),
        (0.99, "below that of the best"),
        (math.nan, "below"),
    ):
        with pytest.raises(UsageError, match=f"an error of {error:g} is {side}") as caught:
            choose_by_error(problem, error)
        assert "from 1 (1000000050 bytes (1.000 GB)) to 3 (1000000020 bytes (1.000 GB))" in caught.value.message
    assert choose_by_error(problem, 1.0).bytes == 10**9 + 50
    assert choose_by_error(problem, 2.0).choices == (problem.modules[0][0], problem.modules[1][1])


@pytest.mark.parametrize(
    ("table", "groups"),
    [
        ([[(1, math.nan)]], ()),
        ([[(1, math.inf)]], ()),
        ([[(1, -1.0)]], ()),
        ([[(-1, 1.0)]], ()),
        ([[]], ()),
        ([[(1, 1.0)], [(1, 1.0)]], ((0, 1), (1,))),
        ([[(1, 1.0)]], ((0, 1),)),
    ],
)
def test_problems_that_make_no_sense(table: Table, groups: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(ValueError, match=r"module|group"):
        make_problem(table, groups)


def test_a_group_needs_a_candidate_in_common() -> None:
    with pytest.raises(ValueError, match="a group has no candidate in common"):
        Problem(((Choice(1, 1.0, "a"),), (Choice(1, 1.0, "b"),)), groups=((0, 1),))


def test_what_cannot_be_solved_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="every selection is above the limit"):
        least_cost([[1, 2]], [[5, 4]], 3)
    # Costs that are proportional to weights: all selections are equally good.
    count = random_table(6, ties=False)
    sizes = [[size for size, _ in row] for row in count]
    costs = [[10**8 - size for size in row] for row in sizes]
    monkeypatch.setattr(knapsack, "_MOST_SUMS", 100)
    with pytest.raises(SolverError, match="too many selections are almost as good"):
        least_cost(costs, sizes, sum(map(max, sizes)) * 3 // 4)
