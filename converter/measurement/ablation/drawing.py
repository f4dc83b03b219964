"""The levels at which the model runs: errors of the velocity, and images.

The original is loaded once, here or in each process on a node. The layers of one variant after the other are put into
its denoiser, so that it computes what a loaded release computes. A variant whose tensors equal those of another has the
same figures without running.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from converter._version import __version__
from converter.checkpoint.checksum import file_sha256
from converter.checkpoint.writer import writing
from converter.cluster.cluster import Cluster
from converter.cluster.sharing import Work
from converter.console import Progress, Reporter
from converter.errors import ImageError
from converter.libraries import package_versions
from converter.measurement.ablation.calibrating import gather_calibration
from converter.measurement.ablation.comparing import Comparisons
from converter.measurement.ablation.contents import (
    INTERVAL_METHOD,
    MeasuredVariant,
    describe_images,
    image_row,
    original_row,
)
from converter.measurement.ablation.failures import Failures
from converter.measurement.ablation.journal import ORIGINAL, ORIGINALS, AblationJournal
from converter.measurement.ablation.options import IMAGES, VELOCITY, AblateOptions
from converter.measurement.ablation.places import IMAGES_FOLDER, work_folder
from converter.measurement.ablation.subject import Original, open_drawn
from converter.measurement.benchmark.image_files import image_seed
from converter.measurement.benchmark.repos import ImageSettings, describe_settings
from converter.measurement.comparison.pairs import ImagePair
from converter.measurement.generation.image_file import write_image
from converter.measurement.generation.options import GenerateOptions
from converter.measurement.prompts.suite import PromptSuite, SuitePrompt
from converter.measurement.sensitivity.calls import METHOD
from converter.measurement.sensitivity.placed import Originals, PlacedOriginal, StoredModel
from converter.measurement.sensitivity.recording import find_calls


class DrawnLevels:
    """Velocity and images of all variants.

    Args:
        folder: the original, a pipeline repo.
        output: folder of the measurements.
        suite: the prompts.
        options: how to measure.
        drawing: how to generate images.
        original: the denoiser, whose weights are hashed.
        journal: has what earlier runs measured, and gets what is new.
        reporter: shows progress and notes.
        cluster: whose nodes draw; None if this machine does.

    Raises:
        InputError: the original cannot be drawn with, or earlier figures depend on something else.
        DeviceError: this machine, or the cluster, does not have the accelerator.
        ClusterError: nodes differ.
    """

    def __init__(
        self,
        folder: Path,
        output: Path,
        suite: PromptSuite,
        options: AblateOptions,
        drawing: GenerateOptions,
        original: Original,
        journal: AblationJournal,
        reporter: Reporter,
        cluster: Cluster | None,
    ) -> None:
        self._output = output
        self._suite = suite
        self._options = options
        self._journal = journal
        self._reporter = reporter
        self._original = open_drawn(folder, original, suite, drawing, reporter, cluster)
        self._followed = suite.prompts[: options.velocity_prompts]
        journal.set_up({**self._original.conditions(suite), "calls": options.calls})
        self._drawn = suite.prompts if options.includes(IMAGES) else ()
        self._kinds = () if not self._drawn else (ORIGINAL,) if options.skip_baseline else ORIGINALS
        required = {prompt.id: prompt.required_text for prompt in self._drawn}
        self._comparisons = Comparisons(required, text=bool(self._drawn))
        self._noting = threading.Lock()

    def measure(self, measured: Sequence[MeasuredVariant]) -> None:
        """Measure both levels of all variants, as far as no earlier run did, and add the figures to the variants.

        Args:
            measured: the variants, whose quantized tensors are in the work folder, unless nodes have them.

        Raises:
            InputError: a component cannot be loaded.
            ResourceError: memory or disk is used up.
            ImageError: the original computes values that are not finite.
        """
        distinct = {one.digest: one for one in measured}
        velocities = [one for one in distinct.values() if self._missing_velocities(one.digest)]
        images = [one for one in distinct.values() if self._missing_images(one.digest)]
        failed = {VELOCITY: Failures(self._followed), IMAGES: Failures(self._drawn)}
        calibrates = self._options.calibration is not None
        if velocities or images or calibrates or any(map(self._missing_images, self._kinds)):
            with self._load() as originals:
                if velocities or calibrates:
                    calls = self._record(originals)
                    gather_calibration(originals, calls, measured, self._options, self._reporter)
                self._draw_originals(originals)
                self._measure_velocities(originals, velocities, failed[VELOCITY])
                self._draw_variants(originals, images, failed[IMAGES])
        for one in measured:
            one.velocity = self._found(self._journal.velocities, one.digest, failed[VELOCITY].counted(one.digest))
            one.images = list(
                self._found(self._journal.images, one.digest, failed[IMAGES].counted(one.digest)).values()
            )
            reasons = {level: failures.reason(one.digest) for level, failures in failed.items()}
            one.failed = {level: reason for level, reason in reasons.items() if reason is not None}

    def has_all(self, digest: str) -> bool:
        """Whether nothing of a variant is left to measure.

        Args:
            digest: of its tensors.
        """
        return not (self._missing_velocities(digest) or self._missing_images(digest))

    def describe(self) -> dict[str, Any]:
        """What ``ablation.json`` says of both levels, besides the variants and the methods."""
        originals, baseline = (
            list(self._found(self._journal.images, kind, self._drawn).values()) for kind in ORIGINALS
        )
        return {
            "sources": {"original": self._original.subject.source()},
            "environment": {**self._original.environment, "date": datetime.now(UTC).date().isoformat()},
            "settings": describe_settings(self._original.repo, self._settings(ORIGINAL, self._suite.prompts[0])),
            "suite": {
                "name": self._suite.name,
                "sha256": self._suite.sha256,
                "prompts": len(self._suite.prompts),
            },
            **({"original_images": originals} if originals else {}),
            **({"baseline": describe_images(baseline)} if baseline else {}),
            **({"not_measured": missing} if (missing := self._comparisons.not_measured) and self._drawn else {}),
        }

    def methods(self) -> dict[str, Any]:
        """How both levels are measured."""
        images = {"images": self._comparisons.methods()} if self._drawn else {}
        return {"velocity": METHOD, "interval": INTERVAL_METHOD, **images}

    def _settings(self, kind: str, prompt: SuitePrompt) -> ImageSettings:
        return self._original.settings(prompt, image_seed(kind, prompt))

    @staticmethod
    def _found(noted: Mapping[tuple[str, str], Any], model: str, prompts: Sequence[SuitePrompt]) -> dict[str, Any]:
        """What is noted of a model, by id of the prompt."""
        return {prompt.id: noted[model, prompt.id] for prompt in prompts if (model, prompt.id) in noted}

    def _missing_velocities(self, digest: str) -> list[SuitePrompt]:
        return [prompt for prompt in self._followed if (digest, prompt.id) not in self._journal.velocities]

    def _missing_images(self, model: str) -> list[SuitePrompt]:
        """Prompts whose image is missing or is not the one that was measured."""
        return [prompt for prompt in self._drawn if not self._has_image(model, prompt)]

    def _has_image(self, model: str, prompt: SuitePrompt) -> bool:
        row = self._journal.images.get((model, prompt.id))
        return row is not None and row["image_sha256"] == file_sha256(self._output / row["image"])

    def _load(self) -> Originals:
        kinds = [(kind, prompt) for kind in self._kinds for prompt in self._drawn]
        wanted = [(ORIGINAL, prompt) for prompt in self._followed] + kinds
        settings = [self._settings(kind, prompt) for kind, prompt in wanted]
        work = work_folder(self._output)
        return self._original.load(settings, self._options.conversion, work, self._reporter)

    def _record(self, originals: Originals) -> int:
        """Find the original's calls of all prompts, as an interrupted run recorded them or recorded now."""
        prompts = {prompt.id: self._settings(ORIGINAL, prompt) for prompt in self._followed}
        file = work_folder(self._output).calls
        return find_calls(originals, prompts, self._options.calls, file, self._journal, self._reporter)

    def _measure_velocities(
        self, originals: Originals, variants: Sequence[MeasuredVariant], failures: Failures
    ) -> None:
        """Repeat the original's calls with the layers of each variant."""

        def measure(original: PlacedOriginal, one: MeasuredVariant, prompt: SuitePrompt) -> None:
            errors = original.velocity(_stored(one), prompt.id)
            with self._noting:
                self._journal.note_velocity(one.digest, prompt.id, errors)

        cells = {one.digest: [(one, prompt) for prompt in self._missing_velocities(one.digest)] for one in variants}
        with self._reporter.progress("velocity", sum(map(len, cells.values())), "prompts") as shown:
            originals.run(Work(cells), _forgiving(measure, failures, shown), shown)

    def _draw_originals(self, originals: Originals) -> None:
        """Draw the original's images, and then those with a second seed."""
        kinds = {kind: self._missing_images(kind) for kind in self._kinds}
        with self._reporter.progress("images of the original", sum(map(len, kinds.values())), "images") as shown:
            for kind, prompts in kinds.items():

                def draw(original: PlacedOriginal, prompt: SuitePrompt, kind: str = kind) -> None:
                    self._draw(original, None, kind, kind, prompt)
                    shown.advance(1)

                originals.run(Work({kind: prompts}), draw, shown)

    def _draw_variants(self, originals: Originals, variants: Sequence[MeasuredVariant], failures: Failures) -> None:
        """Draw the images of each variant."""

        def draw(original: PlacedOriginal, one: MeasuredVariant, prompt: SuitePrompt) -> None:
            self._draw(original, _stored(one), one.digest, one.variant.id, prompt)

        cells = {one.digest: [(one, prompt) for prompt in self._missing_images(one.digest)] for one in variants}
        with self._reporter.progress("images of variants", sum(map(len, cells.values())), "images") as shown:
            originals.run(Work(cells), _forgiving(draw, failures, shown), shown)

    def _draw(
        self, original: PlacedOriginal, stored: StoredModel | None, model: str, folder: str, prompt: SuitePrompt
    ) -> None:
        """Draw an image, compare it with the original's, and note both."""
        settings = self._settings(model, prompt)
        image = original.draw(settings, stored)
        name = (IMAGES_FOLDER / folder / f"{prompt.id}-{settings.seed}.png").as_posix()
        file = self._output / name
        with writing(file.parent):
            file.parent.mkdir(parents=True, exist_ok=True)
        drawn = {**asdict(settings), "width": image.width, "height": image.height}
        machine = {"device": original.device(), "versions": {"lensconv": __version__, **package_versions()}}
        write_image(image, file, {**drawn, **machine, "model": model})
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        first = file if model == ORIGINAL else self._output / self._journal.images[ORIGINAL, prompt.id]["image"]
        found = self._comparisons.compare(
            ImagePair(
                key=prompt.id,
                id=prompt.id,
                seed=settings.seed,
                steps=None,
                width=image.width,
                height=image.height,
                original=first,
                quantized=file,
            )
        )
        row = original_row if model == ORIGINAL else image_row
        with self._noting:
            self._journal.note_image(model, row(name, digest, found))


def _stored(one: MeasuredVariant) -> StoredModel:
    return StoredModel(one.variant.storages, one.variant.plan.quantization_config)


def _forgiving(
    measure: Callable[[PlacedOriginal, MeasuredVariant, SuitePrompt], object], failures: Failures, shown: Progress
) -> Callable[[PlacedOriginal, tuple[MeasuredVariant, SuitePrompt]], None]:
    """The same for a variant and a prompt as one value; a variant that fails gets no more prompts."""

    def attempt(original: PlacedOriginal, cell: tuple[MeasuredVariant, SuitePrompt]) -> None:
        one, prompt = cell
        if prompt in failures.counted(one.digest):
            try:
                measure(original, one, prompt)
            except ImageError as error:
                failures.note(one.digest, prompt, error)
        shown.advance(1)

    return attempt
