"""Measure cells: start workers until every image is measured, or has failed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from converter.console import Progress
from converter.measurement.benchmark.image_files import BASELINE, has_image, image_key, image_name, image_seed
from converter.measurement.benchmark.job import FAILED, GENERATED, GENERATING, LOADED, Job, Task
from converter.measurement.benchmark.journal import LOAD_KEY, Cell, Journal, is_image_key
from converter.measurement.benchmark.options import MODES, BenchOptions
from converter.measurement.benchmark.pairing import find_pairs, models_of, timing_prompts
from converter.measurement.benchmark.repos import ImageSettings
from converter.measurement.benchmark.subjects import Subject
from converter.measurement.benchmark.trace_files import is_replayed, trace_file, trace_key
from converter.measurement.benchmark.worker_process import WorkerProcess, raise_if_aborted
from converter.measurement.evidence.names import ORIGINAL
from converter.measurement.evidence.statistics import FEWEST_PAIRS
from converter.measurement.prompts.suite import PromptSuite, SuitePrompt

#: Consecutive workers that hang, or die while loading, after which the rest of a cell is given up.
_FRUITLESS = 3
#: How quantized models work: in the events of workers, and in descriptions of machines.
_WORKING = ("int8_kernel", "sdnq_compiles", "mxfp4")


@dataclass
class Bench:
    """A benchmark: what to measure, and the journal for the figures."""

    output: Path
    subjects: Mapping[str, Subject]
    suite: PromptSuite
    settings: Sequence[ImageSettings]
    """Settings of each prompt."""
    options: BenchOptions
    device: str
    environment: Mapping[str, Any]
    """The machine and the versions, as ``probe_machine`` describes them."""
    journal: Journal
    failed: dict[tuple[Cell, str], str] = field(default_factory=dict)
    """Reasons of the failures in this run, by cell and key."""

    @property
    def picture_mode(self) -> str:
        """The mode whose images are kept: standard, if it is or was measured."""
        known = {cell.mode for cell, key in self.journal.measured if is_image_key(key)} | set(self.options.modes)
        return next(mode for mode in MODES if mode in known)

    @property
    def cells(self) -> list[Cell]:
        """All cells that are known so far, in the order of measuring."""
        return [cell for mode in self.options.modes for cell in (*self._planned(mode), *self._repeated(mode))]

    @property
    def total(self) -> int:
        """Number of the images of these cells; it grows when a pair has to be measured once more."""
        return sum(len(self.tasks(cell)) for cell in self.cells)

    @property
    def measured(self) -> int:
        """Number of the images of these cells that are measured, without those that failed in this run."""
        cells = set(self.cells)
        found = {(cell, key) for cell, key in self.journal.measured if cell in cells and is_image_key(key)}
        return len(found - self.failed.keys())

    def tasks(self, cell: Cell) -> list[Task]:
        """All images of a cell."""
        is_first = cell.pair == cell.attempt == 0
        keeps = cell.mode == self.picture_mode and is_first
        has_baseline = keeps and cell.model == ORIGINAL and not self.options.skip_baseline
        prompts = self.suite.prompts if is_first else self._timing_prompts(cell)
        return [
            Task(
                key=image_key(kind, prompt),
                settings=asdict(replace(settings, seed=image_seed(kind, prompt))),
                image=str(self.output / image_name(kind, prompt)) if keeps else None,
                trace=self._trace(prompt) if kind == BASELINE else None,
                blocks=kind == BASELINE and self.options.trajectory_blocks,
            )
            for kind in (cell.model, *([BASELINE] if has_baseline else ()))
            for prompt, settings in zip(self.suite.prompts, self.settings, strict=True)
            if prompt in prompts
        ]

    @property
    def traced_prompts(self) -> tuple[SuitePrompt, ...]:
        """The prompts along whose trajectories errors are measured."""
        return self.suite.prompts[: self.options.trajectory_prompts]

    def _trace(self, prompt: SuitePrompt) -> str | None:
        """The file for the trajectory of a prompt's baseline image; None if it is not needed."""
        blocks = self.options.trajectory_blocks
        if prompt not in self.traced_prompts or is_replayed(self.journal, self.picture_mode, prompt.id, blocks=blocks):
            return None
        return str(trace_file(self.output, prompt.id))

    def missing(self, cell: Cell) -> list[Task]:
        """Images of a cell that are not measured and have not failed in this run."""
        return [
            task
            for task in self.tasks(cell)
            if (cell, task.key) not in self.failed and not self._is_measured(cell, task)
        ]

    def measure(self, shown: Progress) -> None:
        """Measure all cells.

        Args:
            shown: counts images; its total grows with that of this benchmark.

        Raises:
            DiskError: the disk is full.
            OutputError: they cannot be written.
            DeviceError: the device is lost.
        """
        for mode in self.options.modes:
            for find_cells in (self._planned, self._repeated):
                for cell in find_cells(mode):
                    shown.total = self.total
                    self.measure_tasks(cell, partial(self.missing, cell), shown)
        shown.total = self.total

    def _planned(self, mode: str) -> list[Cell]:
        """The cells of all pairs of a mode; which model is first alternates."""
        return [Cell(mode, pair, 0, model) for pair in range(self.options.pairs) for model in models_of(pair)]

    def _repeated(self, mode: str) -> list[Cell]:
        """The cells of the pairs of a mode that are measured once more, as far as this is known."""
        if self.options.pairs < FEWEST_PAIRS:
            return []
        pairs = find_pairs(self.journal, self.suite, self.options, mode).to_repeat
        return [Cell(mode, pair, 1, model) for pair in pairs if pair < self.options.pairs for model in models_of(pair)]

    def _timing_prompts(self, cell: Cell) -> list[SuitePrompt]:
        """The prompts of a later session, without those that one of an earlier pair has just failed to generate."""
        failed = {
            key
            for other, key in self.failed
            if other.mode == cell.mode and (other.attempt, other.pair) < (cell.attempt, cell.pair)
        }
        return [prompt for prompt in timing_prompts(self.suite, self.options) if prompt.id not in failed]

    def measure_tasks(self, cell: Cell, find_missing: Callable[[], list[Task]], shown: Progress) -> None:
        """Start workers until nothing of a cell is missing.

        Args:
            cell: what the tasks belong to.
            find_missing: what is not measured and has not failed in this run.
            shown: counts tasks.

        Raises: as ``measure``.
        """
        fruitless = 0
        while missing := find_missing():
            if fruitless == _FRUITLESS:
                reason = f"not tried: {_FRUITLESS} consecutive workers hung, or died while loading"
                self.fail(cell, missing, reason, shown)
            else:
                fruitless = fruitless + 1 if self._run_worker(cell, missing, shown) else 0

    def _run_worker(self, cell: Cell, missing: Sequence[Task], shown: Progress) -> bool:
        """Start a worker for the missing images.

        Returns:
            Whether it measured nothing, and another worker would probably measure nothing either.
        """
        shown.label = f"{cell.model}, {cell.mode}"
        left = {task.key: task for task in missing}
        current = LOAD_KEY
        self.journal.worker += 1
        with WorkerProcess(self._job(cell, missing), self.options.timeout, shown.refresh) as worker:
            for event in worker.events():
                raise_if_aborted(event)
                if event["event"] == LOADED:
                    event = self._compare_working(event)
                kind = event.pop("event")
                if kind == LOADED and (cell, LOAD_KEY) not in self.journal.measured:
                    self.journal.note(cell, LOAD_KEY, event)
                elif kind == GENERATING:
                    current = event["key"]
                elif kind == GENERATED and event["key"]:
                    self._take_figures(cell, left.pop(event.pop("key")), event)
                    shown.advance(1)
                elif kind == FAILED:
                    self._take_failure(cell, current, event, list(left.values()), shown)
                    return len(left) == len(missing) and (current == LOAD_KEY or "hung" in event)
                shown.refresh()
        if left:
            self.fail(cell, list(left.values())[:1], "the worker ended too early", shown)
        return False

    def _take_figures(self, cell: Cell, task: Task, figures: dict[str, Any]) -> None:
        """Note what was measured; a trajectory that was recorded with an image is a line of its own."""
        found = {task.key: figures}
        if task.trace is not None:
            key = trace_key(Path(task.trace).stem)
            trace = figures.pop("trace")
            found = {**found, key: trace} if is_image_key(task.key) else {key: trace}
        for key, content in found.items():
            if "failed" in content:
                content["failed"] = self.failed[cell, key] = self.without_paths(content["failed"], cell.model)
            self.journal.note(cell, key, content)

    def _job(self, cell: Cell, missing: Sequence[Task]) -> Job:
        # In the other modes the first image is the cold one; a worker that starts with another one has to warm up.
        warms_up = cell.mode == "standard" or missing[0].key != self.suite.prompts[0].id
        # Only images are timed.
        warms_up = warms_up and is_image_key(missing[0].key)
        warm_up = [replace(missing[0], key="", image=None, trace=None)] if warms_up else []
        subject = self.subjects[cell.model]
        for task in missing:
            for file in filter(None, (task.image, task.trace)):
                Path(file).parent.mkdir(parents=True, exist_ok=True)
        return Job(
            repo=str(subject.repo.folder.absolute()),
            states=dict(subject.states),
            offload=MODES[cell.mode],
            device=self.device,
            dtype=self.settings[0].dtype,
            tasks=[*warm_up, *missing],
            adapters=[(str(choice.file.absolute()), choice.scale) for choice in subject.choices],
            adapted=[*subject.adapters] if subject.choices else [],
        )

    def _take_failure(
        self, cell: Cell, current: str, event: Mapping[str, Any], left: Sequence[Task], shown: Progress
    ) -> None:
        reason = self.without_paths(event["reason"], cell.model)
        if current == LOAD_KEY:
            # An error of a loader would occur again; a death may be an accident, and costs one image.
            self.fail(cell, left[:1] if event.get("died") else left, f"while loading: {reason}", shown)
        elif not current:
            self.fail(cell, left[:1], f"while warming up: {reason}", shown)
        else:
            self.fail(cell, [task for task in left if task.key == current], reason, shown)

    def _compare_working(self, event: dict[str, Any]) -> dict[str, Any]:
        """The event of a load without what it says of quantized models, or a failure if they do not work as noted."""
        working = {"mxfp4": event.pop("mxfp4", None), **(event.pop("quantization", None) or {})}
        for name in _WORKING:
            noted, found = self.environment.get(name), working.get(name)
            if found not in (None, noted):
                reason = f"{name} is {json.dumps(found)} in this worker, and was {json.dumps(noted)} before"
                return {"event": FAILED, "reason": reason}
        return event

    def without_paths(self, reason: str, model: str) -> str:
        """Return a reason of a model's failure without the paths of this machine, so that it can be published."""
        subject = self.subjects[model]
        for folder, name in ((subject.repo.folder, subject.repo_id), (self.output, self.output.name)):
            for path in (folder.resolve(), folder.absolute()):
                reason = reason.replace(str(path), name)
        for choice in subject.choices:
            reason = reason.replace(str(choice.file.absolute()), choice.file.name)
        return reason

    def fail(self, cell: Cell, tasks: Sequence[Task], reason: str, shown: Progress) -> None:
        """Note that tasks of a cell failed, and why."""
        for task in tasks:
            self.journal.note(cell, task.key, {"failed": reason})
            self.failed[cell, task.key] = reason
            shown.advance(1)

    def _is_measured(self, cell: Cell, task: Task) -> bool:
        figures = self.journal.measured.get((cell, task.key))
        return figures is not None and (task.image is None or has_image(figures, Path(task.image)))
