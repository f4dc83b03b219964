"""What a worker says about the tasks of a cell: figures, which are noted, and failures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from converter.console import Progress
from converter.measurement.benchmark.job import FAILED, GENERATED, GENERATING, LOADED, Task
from converter.measurement.benchmark.journal import LOAD_KEY, Cell, Journal, is_image_key
from converter.measurement.benchmark.trace_files import trace_key

#: How quantized models work: in the events of workers, and in descriptions of machines.
_WORKING = ("int8_kernel", "sdnq_compiles", "mxfp4")
#: Figures that mean nothing if something else ran on the machine.
_TIMES = ("time_s", "stages", "conditions")


class Notes(Protocol):
    """Where figures and failures go: a benchmark."""

    journal: Journal
    environment: Mapping[str, Any]
    failed: dict[tuple[Cell, str], str]

    def fail(self, cell: Cell, tasks: Sequence[Task], reason: str, shown: Progress, worker: int | None = None) -> None:
        """Note that tasks of a cell failed, and why."""

    def without_paths(self, reason: str, model: str) -> str:
        """Return a reason of a model's failure without the paths of this machine."""


class WorkerEvents:
    """Takes the events of one worker.

    Args:
        bench: gets the figures and the failures.
        cell: what the tasks belong to.
        worker: its number.
        tasks: of the worker.
        shown: counts tasks.
        is_timed: whether times are noted, and loads.
    """

    def __init__(
        self, bench: Notes, cell: Cell, worker: int, tasks: Sequence[Task], shown: Progress, *, is_timed: bool
    ) -> None:
        self._bench = bench
        self._cell = cell
        self._worker = worker
        self._left = {task.key: task for task in tasks}
        self._has_figures = False
        self._shown = shown
        self._is_timed = is_timed
        self._current = LOAD_KEY

    def take(self, event: dict[str, Any]) -> bool | None:
        """Take an event.

        Returns:
            None if others follow; else whether the worker measured nothing, and another one would probably measure
            nothing either.
        """
        if event["event"] == LOADED:
            event = self._compare_working(event)
        kind = event.pop("event")
        if kind == LOADED and self._is_timed and (self._cell, LOAD_KEY) not in self._bench.journal.measured:
            self._bench.journal.note(self._cell, LOAD_KEY, event, self._worker)
        elif kind == GENERATING:
            self._current = event["key"]
        elif kind == GENERATED and event["key"]:
            self._take_figures(self._left.pop(event.pop("key")), event)
            self._has_figures = True
            self._shown.advance(1)
        elif kind == FAILED:
            self._take_failure(event)
            return not self._has_figures and (self._current == LOAD_KEY or "hung" in event)
        return None

    def end(self) -> None:
        """Take note that the worker has ended."""
        if self._left:
            self._fail(list(self._left.values())[:1], "the worker ended too early")

    def _take_figures(self, task: Task, figures: dict[str, Any]) -> None:
        """Note what was measured; a trajectory that was recorded with an image is a line of its own."""
        found = {task.key: figures}
        if task.trace is not None:
            key = trace_key(Path(task.trace).stem)
            trace = figures.pop("trace")
            found = {**found, key: trace} if is_image_key(task.key) else {key: trace}
        for key, content in found.items():
            if "failed" in content:
                reason = self._bench.without_paths(content["failed"], self._cell.model)
                content["failed"] = self._bench.failed[self._cell, key] = reason
            kept = content if self._is_timed else {name: content[name] for name in content if name not in _TIMES}
            self._bench.journal.note(self._cell, key, kept, self._worker)

    def _take_failure(self, event: Mapping[str, Any]) -> None:
        reason = self._bench.without_paths(event["reason"], self._cell.model)
        left = list(self._left.values())
        if self._current == LOAD_KEY:
            # An error of a loader would occur again; a death may be an accident, and costs one image.
            self._fail(left[:1] if event.get("died") else left, f"while loading: {reason}")
        elif not self._current:
            self._fail(left[:1], f"while warming up: {reason}")
        else:
            self._fail([task for task in left if task.key == self._current], reason)

    def _fail(self, tasks: Sequence[Task], reason: str) -> None:
        self._bench.fail(self._cell, tasks, reason, self._shown, self._worker)

    def _compare_working(self, event: dict[str, Any]) -> dict[str, Any]:
        """The event of a load without what it says of quantized models, or a failure if they do not work as noted."""
        working = {"mxfp4": event.pop("mxfp4", None), **(event.pop("quantization", None) or {})}
        for name in _WORKING:
            noted, found = self._bench.environment.get(name), working.get(name)
            if found not in (None, noted):
                reason = f"{name} is {json.dumps(found)} in this worker, and was {json.dumps(noted)} before"
                return {"event": FAILED, "reason": reason}
        return event
