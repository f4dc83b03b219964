"""What is measured after all pairs: velocity errors along the original's trajectories, and the flat field.

A trajectory of the original is recorded while its baseline image is generated. One that is missing, for example after
a run that was killed, is recorded again. The journal has the sha256 of each; all are removed at the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from converter.checkpoint.checksum import file_sha256
from converter.console import Reporter, readable_size
from converter.errors import OutputError, ResourceError, UsageError
from converter.measurement.benchmark.image_files import BASELINE, has_image, image_seed
from converter.measurement.benchmark.job import Task
from converter.measurement.benchmark.journal import Cell
from converter.measurement.benchmark.measuring import Bench
from converter.measurement.benchmark.options import BenchOptions
from converter.measurement.benchmark.repos import MeasuredRepo, lens_only
from converter.measurement.benchmark.trace_files import (
    FLAT_KEY,
    FLAT_SEED,
    TRACES_FOLDER,
    flat_name,
    is_replayed,
    remove_traces,
    replay_key,
    trace_bytes,
    trace_file,
    trace_key,
)
from converter.measurement.comparison.compare import periodic_grid
from converter.measurement.comparison.images import read_pixels
from converter.measurement.comparison.trajectory import BLOCKS_METHOD, METHOD
from converter.measurement.evidence.names import MODELS, ORIGINAL, QUANTIZED
from converter.measurement.evidence.trajectory import significant, summarise_errors
from converter.measurement.generation.repo import PipelineRepo
from converter.measurement.generation.settings import Settings
from converter.measurement.prompts.suite import SuitePrompt

_FLAT_METHOD = (
    f"both models' images of an empty prompt with seed {FLAT_SEED}, with the settings of the other images; such an "
    "image has little content of its own that could hide a periodic pattern, or look like one"
)
_NOT_REQUESTED = "not requested"


def measured_options(options: BenchOptions, repo: MeasuredRepo) -> BenchOptions:
    """The options, without trajectories where they are not measured.

    Raises:
        UsageError: parts of them were asked for.
    """
    reason = lens_only(repo)
    if reason and options.trajectory_blocks:
        raise UsageError(f"--trajectory-blocks: is {reason}")
    return replace(options, trajectory_prompts=0) if reason else options


@dataclass(frozen=True)
class TrajectoryMeasurement:
    """The last part of a benchmark.

    Args:
        bench: whose pairs are measured.
    """

    bench: Bench

    def announce(self, reporter: Reporter) -> None:
        """Say how much space trajectories take until the quantized model has repeated them."""
        prompts = [prompt for prompt in self._prompts if not self._is_replayed(prompt)]
        repo, settings = self.bench.subjects[ORIGINAL].repo, self.bench.settings[0]
        if prompts and isinstance(repo, PipelineRepo) and isinstance(settings, Settings):
            size = readable_size(len(prompts) * trace_bytes(repo, settings))
            reporter.note(f"the original's trajectories take up to {size} in {TRACES_FOLDER}, until they are compared")

    def measure(self, reporter: Reporter) -> None:
        """Measure what is missing. What fails becomes a reason, and harms nothing else. Traces stay.

        Args:
            reporter: shows progress and notes.
        """
        total = sum(len(self._missing(model)) for model in MODELS)
        if total:
            with reporter.progress("trajectories", total, "tasks") as shown:
                for model in MODELS:
                    try:
                        self.bench.measure_tasks(self._cell(model), partial(self._missing, model), shown)
                    except (ResourceError, OutputError) as error:
                        missing = self._missing(model)
                        # Traces may be what fills the disk.
                        remove_traces(self.bench.output)
                        reason = self.bench.without_paths(error.message, model)
                        self.bench.fail(self._cell(model), missing, reason, shown)
        for name, reason in self._reasons().items():
            if reason != _NOT_REQUESTED:
                reporter.note(f"{name.replace('_', ' ')}: not measured: {reason}")

    def add_to(self, images: Mapping[str, Any]) -> dict[str, Any]:
        """Add what was measured to the content of ``image_fidelity.json``, and the reasons for what was not."""
        content, methods = dict(images), dict(images["methods"])
        prompts = list(self._measured_prompts())
        if prompts:
            has_blocks = any("blocks" in prompt for prompt in prompts)
            content["trajectory"] = {"prompts": prompts, **summarise_errors(prompts)}
            methods["trajectory"] = METHOD + (BLOCKS_METHOD if has_blocks else "")
        if flat := self._flat_field():
            content["flat_field"] = flat
            methods["flat_field"] = _FLAT_METHOD
        content["methods"] = methods
        content["not_measured"] = {**images["not_measured"], **self._reasons()}
        return content

    @property
    def _prompts(self) -> tuple[SuitePrompt, ...]:
        return self.bench.traced_prompts

    def _cell(self, model: str) -> Cell:
        return Cell(self.bench.picture_mode, 0, 0, model)

    def _missing(self, model: str) -> list[Task]:
        """What is not measured, has not failed in this run, and can be measured in its mode."""
        bench, cell = self.bench, self._cell(model)
        if cell.mode not in bench.options.modes or not bench.options.trajectory_prompts or not self._has_images:
            return []
        tasks = [task for prompt in self._prompts if (task := self._task(model, prompt))]
        flat = asdict(replace(bench.settings[0], prompt="", seed=FLAT_SEED))
        image = bench.output / flat_name(model)
        if not has_image(bench.journal.measured.get((cell, FLAT_KEY), {}), image):
            tasks.append(Task(FLAT_KEY, flat, str(image)))
        return [task for task in tasks if (cell, task.key) not in bench.failed]

    def _task(self, model: str, prompt: SuitePrompt) -> Task | None:
        """What a model has to do for the trajectory of a prompt; None if there is nothing to do."""
        bench, file = self.bench, trace_file(self.bench.output, prompt.id)
        has_trace = self._has_trace(prompt, file)
        if self._is_replayed(prompt) or has_trace != (model == QUANTIZED):
            return None
        settings = bench.settings[bench.suite.prompts.index(prompt)]
        task = Task(
            key=trace_key(prompt.id),
            settings=asdict(replace(settings, seed=image_seed(BASELINE, prompt))),
            image=None,
            trace=str(file),
            blocks=bench.options.trajectory_blocks,
        )
        return replace(task, key=replay_key(prompt.id), trace=None, replay=str(file)) if has_trace else task

    def _has_trace(self, prompt: SuitePrompt, file: Path) -> bool:
        """Whether a file is the trajectory that was recorded."""
        figures = self.bench.journal.measured.get((self._cell(ORIGINAL), trace_key(prompt.id)))
        if figures is None or (self.bench.options.trajectory_blocks and not figures["blocks"]):
            return False
        digest: str = figures["sha256"]
        return file_sha256(file) == digest

    def _is_replayed(self, prompt: SuitePrompt) -> bool:
        blocks = self.bench.options.trajectory_blocks
        return is_replayed(self.bench.journal, self.bench.picture_mode, prompt.id, blocks=blocks)

    @property
    def _has_images(self) -> bool:
        """Whether both models generated an image; otherwise they would probably fail here, too."""
        ids = {prompt.id for prompt in self.bench.suite.prompts}
        found = {cell.model for cell, key in self.bench.journal.measured if key in ids}
        return found == set(MODELS)

    def _measured_prompts(self) -> Iterator[dict[str, Any]]:
        for prompt in self.bench.suite.prompts:
            figures = self.bench.journal.measured.get((self._cell(QUANTIZED), replay_key(prompt.id)))
            if figures is not None:
                found: dict[str, Any] = {"id": prompt.id, "seed": image_seed(BASELINE, prompt), **figures}
                del found["worker"]
                yield found

    def _flat_field(self) -> dict[str, Any] | None:
        """Both images of an empty prompt, and their periodic patterns; None if one is missing or was changed."""
        sides: dict[str, Any] = {}
        pixels = []
        for model in MODELS:
            figures = self.bench.journal.measured.get((self._cell(model), FLAT_KEY), {})
            image = self.bench.output / flat_name(model)
            if not has_image(figures, image):
                return None
            sides[model] = {"image": flat_name(model), "image_sha256": figures["image_sha256"]}
            pixels.append(read_pixels(image))
        grid = periodic_grid(*pixels).to_dict(QUANTIZED)
        shown = {name: None if value is None else significant(value) for name, value in grid.items()}
        return {"seed": FLAT_SEED, **sides, "periodic_grid": shown}

    def _reasons(self) -> dict[str, str]:
        """Why something is not measured, by its name."""
        found = {"trajectory": list(self._failures()), "flat_field": self._failures_of(FLAT_KEY)}
        if not list(self._measured_prompts()):
            found["trajectory"] = found["trajectory"] or [self._default_reason]
        if self._flat_field() is None:
            found["flat_field"] = found["flat_field"] or [self._default_reason]
        return {name: "; ".join(reasons) for name, reasons in found.items() if reasons}

    @property
    def _default_reason(self) -> str:
        if not self.bench.options.trajectory_prompts:
            return lens_only(self.bench.subjects[ORIGINAL].repo) or _NOT_REQUESTED
        return "images are missing" if not self._has_images else f"measured with --mode {self.bench.picture_mode} only"

    def _failures(self) -> Iterator[str]:
        for prompt in self._prompts:
            if not self._is_replayed(prompt):
                keys = (trace_key(prompt.id), replay_key(prompt.id))
                yield from (f"{prompt.id}: {reason}" for key in keys for reason in self._failures_of(key))

    def _failures_of(self, key: str) -> list[str]:
        """The last reasons of what failed and was not measured later."""
        found = (
            reasons[-1]
            for (cell, known), reasons in self.bench.journal.failures.items()
            if known == key and (cell, key) not in self.bench.journal.measured
        )
        return list(dict.fromkeys(found))
