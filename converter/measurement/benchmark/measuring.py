"""Measure cells: start workers until every image is measured, or has failed.

Several threads may measure cells of one benchmark at the same time, each with workers of its own. What a worker says is
taken under a lock.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from converter.cluster.losses import Lost
from converter.console import Progress
from converter.measurement.benchmark.events import WorkerEvents
from converter.measurement.benchmark.image_files import BASELINE, has_image, image_key, image_name, image_seed
from converter.measurement.benchmark.job import Job, Task
from converter.measurement.benchmark.journal import Cell, Journal, is_image_key
from converter.measurement.benchmark.options import MODES, BenchOptions
from converter.measurement.benchmark.pairing import find_pairs, models_of, timing_prompts
from converter.measurement.benchmark.repos import ImageSettings
from converter.measurement.benchmark.subjects import Subject
from converter.measurement.benchmark.trace_files import is_replayed, trace_file
from converter.measurement.benchmark.worker_process import Worker, WorkerProcess, raise_if_aborted
from converter.measurement.evidence.names import ORIGINAL
from converter.measurement.evidence.statistics import FEWEST_PAIRS
from converter.measurement.prompts.suite import PromptSuite, SuitePrompt

#: Consecutive workers that hang, or die while loading, after which the rest of a cell is given up.
_FRUITLESS = 3
_Result = TypeVar("_Result")


class Place(Protocol):
    """Where workers run."""

    is_timed: bool
    """Whether nothing else runs there, so that times mean something."""

    def number(self, journal: Journal) -> int:
        """Return the number of the next worker."""

    def start(self, job: Job, timeout: float, tick: Callable[[], None]) -> AbstractContextManager[Worker]:
        """Start a worker."""

    def note_loss(self, loss: Lost) -> None:
        """Take note of the loss of a worker that is not its own fault; raise an error if there are too many."""


class ThisMachine:
    """Workers run on this machine, one after the other."""

    is_timed = True

    def number(self, journal: Journal) -> int:
        """Return the next number."""
        return journal.new_worker()

    def start(self, job: Job, timeout: float, tick: Callable[[], None]) -> WorkerProcess:
        """Start a process."""
        return WorkerProcess(job, timeout, tick)

    def note_loss(self, loss: Lost) -> None:
        """Nothing is lost on this machine."""
        raise loss


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
    place: Place = field(default_factory=ThisMachine)
    """Where workers run, unless something else is said."""
    lock: threading.RLock = field(default_factory=threading.RLock)
    """For the journal and the failures."""

    @property
    def picture_mode(self) -> str:
        """The mode whose images are kept: standard, if it is or was measured."""
        known = {cell.mode for cell, key in self.journal.measured if is_image_key(key)} | set(self.options.modes)
        return next(mode for mode in MODES if mode in known)

    @property
    def cells(self) -> list[Cell]:
        """All cells that are known so far, in the order of measuring."""
        return [cell for mode in self.options.modes for cell in (*self.planned(mode), *self.repeated(mode))]

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
        return [task for task in self.tasks(cell) if self.is_missing(cell, task)]

    def is_missing(self, cell: Cell, task: Task) -> bool:
        """Whether an image is not measured and has not failed in this run."""
        return (cell, task.key) not in self.failed and not self._is_measured(cell, task)

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
            for find_cells in (self.planned, self.repeated):
                for cell in find_cells(mode):
                    shown.total = self.total
                    self.measure_tasks(cell, partial(self.missing, cell), shown)
        shown.total = self.total

    def planned(self, mode: str) -> list[Cell]:
        """Return the cells of all pairs of a mode; which model is first alternates."""
        return [Cell(mode, pair, 0, model) for pair in range(self.options.pairs) for model in models_of(pair)]

    def repeated(self, mode: str) -> list[Cell]:
        """Return the cells of the pairs of a mode that are measured once more, as far as this is known."""
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

    def measure_tasks(
        self, cell: Cell, find_missing: Callable[[], list[Task]], shown: Progress, place: Place | None = None
    ) -> None:
        """Start workers until nothing of a cell is missing.

        Args:
            cell: what the tasks belong to.
            find_missing: what is not measured and has not failed in this run.
            shown: counts tasks.
            place: where workers run; that of the benchmark when None.

        Raises: as ``measure``.
        """
        place, fruitless = place or self.place, 0
        while missing := self._locked(find_missing):
            if fruitless == _FRUITLESS:
                reason = f"not tried: {_FRUITLESS} consecutive workers hung, or died while loading"
                self._locked(lambda: self.fail(cell, missing, reason, shown))  # noqa: B023 - called at once
            else:
                try:
                    fruitless = fruitless + 1 if self._run_worker(cell, missing, shown, place) else 0
                except Lost as loss:
                    place.note_loss(loss)

    def _locked(self, function: Callable[[], _Result]) -> _Result:
        with self.lock:
            return function()

    def _run_worker(self, cell: Cell, missing: Sequence[Task], shown: Progress, place: Place) -> bool:
        """Start a worker for the missing images.

        Returns:
            Whether it measured nothing, and another worker would probably measure nothing either.
        """
        with self.lock:
            shown.label = f"{cell.model}, {cell.mode}"
            number = place.number(self.journal)
            job = self._job(cell, missing, warms_up=place.is_timed)
        events = WorkerEvents(self, cell, number, missing, shown, is_timed=place.is_timed)
        with place.start(job, self.options.timeout, shown.refresh) as worker:
            for event in worker.events():
                raise_if_aborted(event)
                with self.lock:
                    is_fruitless = events.take(event)
                if is_fruitless is not None:
                    return is_fruitless
                shown.refresh()
        with self.lock:
            events.end()
        return False

    def _job(self, cell: Cell, missing: Sequence[Task], *, warms_up: bool = True) -> Job:
        # In the other modes the first image is the cold one; a worker that starts with another one has to warm up.
        warms_up = warms_up and (cell.mode == "standard" or missing[0].key != self.suite.prompts[0].id)
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

    def without_paths(self, reason: str, model: str) -> str:
        """Return a reason of a model's failure without the paths of this machine, so that it can be published."""
        subject = self.subjects[model]
        for folder, name in ((subject.repo.folder, subject.repo_id), (self.output, self.output.name)):
            for path in (folder.resolve(), folder.absolute()):
                reason = reason.replace(str(path), name)
        for choice in subject.choices:
            reason = reason.replace(str(choice.file.absolute()), choice.file.name)
        return reason

    def fail(self, cell: Cell, tasks: Sequence[Task], reason: str, shown: Progress, worker: int | None = None) -> None:
        """Note that tasks of a cell failed, and why."""
        for task in tasks:
            self.journal.note(cell, task.key, {"failed": reason}, worker)
            self.failed[cell, task.key] = reason
            shown.advance(1)

    def _is_measured(self, cell: Cell, task: Task) -> bool:
        figures = self.journal.measured.get((cell, task.key))
        return figures is not None and (task.image is None or has_image(figures, Path(task.image)))
