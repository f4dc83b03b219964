"""From cells to rows: workers are started until everything was measured, or has failed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from converter import errors
from converter.checkpoint.checksum import file_sha256
from converter.console import Progress
from converter.errors import DependencyError, LensconvError
from converter.measurement.benchmark.job import (
    ABORTED,
    BASELINE_SEED_OFFSET,
    DRAWING,
    DRAWN,
    FAILED,
    LOADED,
    PROBED,
    Job,
    Task,
)
from converter.measurement.benchmark.journal import LOAD_KEY, Cell, Journal
from converter.measurement.benchmark.machine import describe_machine
from converter.measurement.benchmark.options import MODES, BenchOptions
from converter.measurement.benchmark.subjects import ORIGINAL, QUANTIZED, Subject
from converter.measurement.benchmark.worker_process import WorkerProcess
from converter.measurement.generation.devices import choose_device
from converter.measurement.generation.settings import Settings
from converter.measurement.prompts.suite import PromptSuite, SuitePrompt

#: Whose images there are: both models', and the original's with a second seed.
IMAGE_KINDS = (ORIGINAL, QUANTIZED, "baseline")
#: Workers in succession that hang, or die while loading, after which a cell is given up.
_FRUITLESS = 3


def probe_machine(device: str, timeout: float, tick: Callable[[], None]) -> dict[str, Any]:
    """What figures depend on beside the models.

    Args:
        device: as in ``GenerateOptions``.
        timeout: seconds that a worker may take.
        tick: called while waiting.

    Raises:
        UsageError: there is no such kind of device.
        DeviceError: this machine does not have it.
        DependencyError: a worker cannot start.
    """
    if choose_device(device).type == "cpu":
        return describe_machine(device)
    # To ask an accelerator takes memory of it, which would be there as long as this process.
    job = Job(repo="", states={}, offload="none", device=device, dtype="bfloat16", tasks=[], probe=True)
    reason = "it said nothing"
    with WorkerProcess(job, timeout, tick) as worker:
        for event in worker.events():
            if event["event"] == PROBED:
                environment: dict[str, Any] = event["environment"]
                return environment
            _raise_if_aborted(event)
            reason = event.get("reason", reason)
    raise DependencyError(f"a worker process cannot start: {reason}", "Check the installation of torch and diffusers.")


@dataclass
class Bench:
    """What is measured, and where to.

    Attributes:
        failed: what failed in this run and is still missing, by cell and key.
    """

    output: Path
    subjects: Mapping[str, Subject]
    suite: PromptSuite
    settings: Sequence[Settings]
    """Of each prompt."""
    options: BenchOptions
    device: str
    journal: Journal
    failed: dict[tuple[Cell, str], str] = field(default_factory=dict)

    @property
    def picture_mode(self) -> str:
        """The mode whose images are kept: standard, if it is or was measured."""
        known = {cell.mode for cell, key in self.journal.measured if key != LOAD_KEY} | set(self.options.modes)
        return next(mode for mode in MODES if mode in known)

    @property
    def cells(self) -> list[Cell]:
        """In the order in which they are measured: who goes first alternates."""
        models = (ORIGINAL, QUANTIZED)
        return [
            Cell(mode, repeat, model)
            for mode in self.options.modes
            for repeat in range(self.options.repeats)
            for model in (models if repeat % 2 == 0 else models[::-1])
        ]

    def tasks(self, cell: Cell) -> list[Task]:
        """All images of a cell."""
        keeps = cell.mode == self.picture_mode and cell.repeat == 0
        tasks = [
            Task(
                prompt.id,
                asdict(settings),
                str(self.output / image_name(cell.model, prompt, prompt.seed)) if keeps else None,
            )
            for prompt, settings in zip(self.suite.prompts, self.settings, strict=True)
        ]
        if keeps and cell.model == ORIGINAL and not self.options.skip_baseline:
            for prompt, settings in zip(self.suite.prompts, self.settings, strict=True):
                seed = prompt.seed + BASELINE_SEED_OFFSET
                place = str(self.output / image_name("baseline", prompt, seed))
                tasks.append(Task(baseline_key(prompt), asdict(replace(settings, seed=seed)), place))
        return tasks

    def missing(self, cell: Cell) -> list[Task]:
        """Images of a cell that are neither measured nor have failed."""
        return [
            task
            for task in self.tasks(cell)
            if (cell, task.key) not in self.failed and not self._is_measured(cell, task)
        ]

    def measure(self, shown: Progress) -> None:
        """Measure all cells.

        Args:
            shown: counts images.

        Raises:
            DiskError: images or the journal do not fit.
            OutputError: they cannot be written.
            DeviceError: the device is gone.
        """
        for cell in self.cells:
            fruitless = 0
            while missing := self.missing(cell):
                if fruitless == _FRUITLESS:
                    reason = f"not tried: {_FRUITLESS} workers in succession hung, or died while loading"
                    self._fail(cell, missing, reason, shown)
                else:
                    fruitless = fruitless + 1 if self._run_worker(cell, missing, shown) else 0

    def _run_worker(self, cell: Cell, missing: Sequence[Task], shown: Progress) -> bool:
        """Start a worker for what is missing.

        Returns:
            Whether it measured nothing, and another one would probably fare no better.
        """
        # In the other modes the first image is the cold one; whoever begins later has to be warm.
        warms_up = cell.mode == "standard" or missing[0].key != self.suite.prompts[0].id
        warm_up = [replace(missing[0], key="", image=None)] if warms_up else []
        subject = self.subjects[cell.model]
        for task in missing:
            if task.image is not None:
                Path(task.image).parent.mkdir(parents=True, exist_ok=True)
        job = Job(
            repo=str(subject.repo.folder.absolute()),
            states=dict(subject.states),
            offload=MODES[cell.mode],
            device=self.device,
            dtype=self.settings[0].dtype,
            tasks=[*warm_up, *missing],
        )
        left = {task.key: task for task in missing}
        shown.label = f"{cell.model}, {cell.mode}"
        current = LOAD_KEY
        with WorkerProcess(job, self.options.timeout, shown.refresh) as worker:
            for event in worker.events():
                _raise_if_aborted(event)
                kind = event.pop("event")
                if kind == LOADED and (cell, LOAD_KEY) not in self.journal.measured:
                    self.journal.note(cell, LOAD_KEY, event)
                elif kind == DRAWING:
                    current = event["key"]
                elif kind == DRAWN and event["key"]:
                    self.journal.note(cell, event.pop("key"), event)
                    del left[current]
                    shown.advance(1)
                elif kind == FAILED:
                    self._take_failure(cell, current, event, list(left.values()), shown)
                    return len(left) == len(missing) and (current == LOAD_KEY or "hung" in event)
                shown.refresh()
        if left:
            self._fail(cell, list(left.values())[:1], "the worker ended before it was done", shown)
        return False

    def _take_failure(
        self, cell: Cell, current: str, event: Mapping[str, Any], left: Sequence[Task], shown: Progress
    ) -> None:
        reason = self._without_places(event["reason"], self.subjects[cell.model])
        if current == LOAD_KEY:
            # What a loader says it will say again; a death may have been an accident, and costs one image.
            self._fail(cell, left[:1] if event.get("died") else left, f"while loading: {reason}", shown)
        elif not current:
            self._fail(cell, left[:1], f"while warming up: {reason}", shown)
        else:
            self._fail(cell, [task for task in left if task.key == current], reason, shown)

    def _without_places(self, reason: str, subject: Subject) -> str:
        """A reason that can be published: where folders lie on this machine is nobody's business."""
        for place, name in ((subject.repo.folder, subject.repo_id), (self.output, self.output.name)):
            for path in (place.resolve(), place.absolute()):
                reason = reason.replace(str(path), name)
        return reason

    def _fail(self, cell: Cell, tasks: Sequence[Task], reason: str, shown: Progress) -> None:
        for task in tasks:
            self.journal.note(cell, task.key, {"failed": reason})
            self.failed[cell, task.key] = reason
            shown.advance(1)

    def _is_measured(self, cell: Cell, task: Task) -> bool:
        figures = self.journal.measured.get((cell, task.key))
        if figures is None:
            return False
        if task.image is None:
            return True
        digest = figures.get("image_sha256")
        return digest is not None and digest == file_sha256(Path(task.image))


def image_name(kind: str, prompt: SuitePrompt, seed: int) -> str:
    """Path of an image in the folder of measurements.

    Args:
        kind: one of ``IMAGE_KINDS``.
        prompt: whose image it is.
        seed: that it was drawn with.
    """
    return f"images/{kind}/{prompt.id}-{seed}-{'original' if kind == 'baseline' else kind}.png"


def baseline_key(prompt: SuitePrompt) -> str:
    """By which the journal knows the image with the second seed; no prompt's id has a plus sign."""
    return f"{prompt.id}+{BASELINE_SEED_OFFSET}"


def _raise_if_aborted(event: Mapping[str, Any]) -> None:
    if event["event"] == ABORTED:
        error: type[LensconvError] = getattr(errors, event["type"])
        raise error(event["message"], event["hint"])
