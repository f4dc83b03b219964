"""Measure a benchmark on a cluster.

The pairs whose times are compared are measured at the same time on different nodes, each alone on its node. All other
images are a queue, from which as many workers as there is room for take one after the other; nothing is said of their
times. Where and when a worker runs is decided by Ray.
"""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Callable
from functools import partial

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
            queue = _Queue(bench, cells)
            # Ray starts first what asks first: the pairs, for each of which a whole node has to be free.
            work: list[Callable[[], None]] = [
                partial(_measure_pair, bench, pair, nodes, shown) for pair in _pairs(cells)
            ]
            work += [partial(_draw_others, bench, queue, nodes, shown)] * min(nodes.slots, len(queue))
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


def _draw_others(bench: Bench, queue: _Queue, nodes: Nodes, shown: Progress) -> None:
    """Take images from the queue until it is empty; the pipeline stays loaded as long as it has images to generate."""
    with beside_others(nodes, keeps_loaded=True) as place:
        last: Cell | None = None
        while (found := queue.take(last)) is not None:
            last, task = found
            bench.measure_tasks(last, partial(_left, bench, last, task), shown, place)
            queue.give_up_with(last, task, shown)


def _left(bench: Bench, cell: Cell, task: Task) -> list[Task]:
    return [task] if bench.is_missing(cell, task) else []


class _Queue:
    """The images that are not timed, by cell."""

    def __init__(self, bench: Bench, cells: list[Cell]) -> None:
        self._bench = bench
        self._lock = threading.Lock()
        self._left: defaultdict[Cell, deque[Task]] = defaultdict(deque)
        for cell in cells:
            self._left[cell].extend(task for task in bench.missing(cell) if not _is_timed(bench, task))

    def __len__(self) -> int:
        return sum(map(len, self._left.values()))

    def take(self, last: Cell | None) -> tuple[Cell, Task] | None:
        """Take the next image: of the same cell if there is one, else of that with most left; None at the end."""
        with self._lock:
            cells = [cell for cell, tasks in self._left.items() if tasks]
            if not cells:
                return None
            cell = last if last in cells else max(cells, key=lambda found: len(self._left[found]))
            return cell, self._left[cell].popleft()

    def give_up_with(self, cell: Cell, task: Task, shown: Progress) -> None:
        """If a task has just failed since its pipeline cannot be loaded, let the rest of its cell fail, too."""
        reason = self._bench.failed.get((cell, task.key), "")
        if reason.startswith("while loading"):
            with self._lock, self._bench.lock:
                self._bench.fail(cell, list(self._left.pop(cell, ())), reason, shown)
