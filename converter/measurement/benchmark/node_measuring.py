"""Measure a benchmark on a cluster.

The pairs whose times are compared are measured at the same time on different nodes, each alone on its node. All other
images are a queue. As many workers as there are GPUs, or nodes, take one image after the other; nothing is said of
their times. Where and when a worker runs is decided by Ray.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from converter.cluster.sharing import Work
from converter.console import Progress, Reporter
from converter.measurement.benchmark.job import Task
from converter.measurement.benchmark.journal import Cell
from converter.measurement.benchmark.measuring import Bench
from converter.measurement.benchmark.node_places import Nodes, alone_on_a_node, beside_others
from converter.measurement.benchmark.pairing import timing_prompts
from converter.measurement.benchmark.trajectory import TrajectoryMeasurement


def measure_on_nodes(bench: Bench, nodes: Nodes, shown: Progress) -> None:
    """Measure all cells of a benchmark.

    Args:
        bench: what to measure.
        nodes: where.
        shown: counts images.

    Raises: as ``Bench.measure``; and
        ClusterError: too many workers were lost, or no node is left.
    """
    for mode in bench.options.modes:
        for find_cells in (bench.planned, bench.repeated):
            cells = find_cells(mode)
            shown.total = bench.total
            others = _others(bench, cells)
            # Ray starts first what asks first: the pairs, for each of which a whole node has to be free.
            work: list[Callable[[], None]] = [
                partial(_measure_pair, bench, pair, nodes, shown) for pair in _pairs(cells)
            ]
            work += [partial(_draw_others, bench, others, nodes, shown)] * min(nodes.slots, others.size)
            nodes.cluster.run(_call, work, refresh=shown.refresh)
    shown.total = bench.total


def measure_trajectories(bench: Bench, trajectories: TrajectoryMeasurement, nodes: Nodes, reporter: Reporter) -> None:
    """Measure what comes after all pairs, with one worker after the other.

    Args:
        bench: whose pairs are measured.
        trajectories: the measurement.
        nodes: where.
        reporter: shows progress and notes.
    """
    with beside_others(nodes, keeps_loaded=False) as place:
        bench.place = place
        trajectories.measure(reporter)


def _call(work: Callable[[], None]) -> None:
    work()


def _pairs(cells: list[Cell]) -> list[list[Cell]]:
    """The cells of each attempt at a pair, in their order."""
    found: dict[tuple[int, int], list[Cell]] = {}
    for cell in cells:
        found.setdefault((cell.pair, cell.attempt), []).append(cell)
    return list(found.values())


def _measure_pair(bench: Bench, cells: list[Cell], nodes: Nodes, shown: Progress) -> None:
    """Measure both sessions of a pair, one after the other on one node."""

    def find_missing(cell: Cell) -> list[Task]:
        return [task for task in bench.missing(cell) if _is_timed(bench, task)]

    with alone_on_a_node(nodes) as place:
        for cell in cells:
            bench.measure_tasks(cell, partial(find_missing, cell), shown, place)


def _is_timed(bench: Bench, task: Task) -> bool:
    """Whether a task belongs to those whose times are compared."""
    return task.key in {prompt.id for prompt in timing_prompts(bench.suite, bench.options)}


def _others(bench: Bench, cells: Sequence[Cell]) -> Work[tuple[Cell, Task]]:
    """The images that are not timed; those of a cell are a group, as they need the same pipeline."""
    return Work(
        {str(cell): [(cell, task) for task in bench.missing(cell) if not _is_timed(bench, task)] for cell in cells}
    )


def _draw_others(bench: Bench, others: Work[tuple[Cell, Task]], nodes: Nodes, shown: Progress) -> None:
    """Generate one image after the other until none is left; a pipeline stays loaded as long as it has some."""
    with beside_others(nodes, keeps_loaded=True) as place:
        # While no node is free for it, other threads may generate what is left.
        place.open(bench.options.timeout, lambda: others.size > 0)
        group: str | None = None
        while (taken := others.take(group)) is not None:
            group, (cell, task) = taken
            bench.measure_tasks(cell, partial(_left, bench, cell, task), shown, place)
            _give_up_with(bench, cell, task, others, shown)


def _give_up_with(bench: Bench, cell: Cell, task: Task, others: Work[tuple[Cell, Task]], shown: Progress) -> None:
    """If a task has just failed since its pipeline cannot be loaded, let the rest of its cell fail, too."""
    reason = bench.failed.get((cell, task.key), "")
    if reason.startswith("while loading"):
        with bench.lock:
            bench.fail(cell, [left for _, left in others.drop(str(cell))], reason, shown)


def _left(bench: Bench, cell: Cell, task: Task) -> list[Task]:
    return [task] if bench.is_missing(cell, task) else []
