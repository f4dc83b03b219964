"""The levels at which the model runs: errors of the velocity, and images.

The original is loaded once. The layers of one variant after the other are put into its denoiser, so that it computes
what a loaded release computes. A variant whose tensors equal those of another has the same figures without running.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from converter._version import __version__
from converter.checkpoint.checksum import file_sha256
from converter.checkpoint.writer import writing
from converter.console import SILENT, Reporter
from converter.errors import ImageError
from converter.libraries import package_versions
from converter.measurement.ablation.calibrating import gather_calibration
from converter.measurement.ablation.contents import (
    INTERVAL_METHOD,
    MeasuredVariant,
    describe_images,
    image_row,
    original_row,
)
from converter.measurement.ablation.journal import ORIGINAL, ORIGINALS, AblationJournal
from converter.measurement.ablation.options import IMAGES, VELOCITY, AblateOptions
from converter.measurement.ablation.places import IMAGES_FOLDER, work_folder
from converter.measurement.ablation.subject import Original, open_drawn
from converter.measurement.benchmark.image_files import image_seed
from converter.measurement.benchmark.repos import ImageSettings, describe_settings
from converter.measurement.comparison.compare import Comparison
from converter.measurement.comparison.pairs import ImagePair
from converter.measurement.generation.image_file import write_image
from converter.measurement.generation.options import GenerateOptions
from converter.measurement.prompts.suite import PromptSuite, SuitePrompt
from converter.measurement.sensitivity.calls import METHOD, Call
from converter.measurement.sensitivity.loaded import LoadedOriginal
from converter.measurement.sensitivity.measured import measure_variant
from converter.measurement.sensitivity.recording import find_calls
from converter.measurement.sensitivity.swapping import Swapping


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

    Raises:
        InputError: the original cannot be drawn with, or earlier figures depend on something else.
        DeviceError: this machine does not have the accelerator.
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
    ) -> None:
        self._output = output
        self._suite = suite
        self._options = options
        self._journal = journal
        self._reporter = reporter
        self._original = open_drawn(folder, original, suite, drawing, reporter)
        self._followed = suite.prompts[: options.velocity_prompts]
        journal.set_up({**self._original.conditions(suite), "calls": options.calls})
        self._drawn = suite.prompts if options.includes(IMAGES) else ()
        self._kinds = () if not self._drawn else (ORIGINAL,) if options.skip_baseline else ORIGINALS
        required = {prompt.id: prompt.required_text for prompt in self._drawn}
        self._comparison = Comparison(required, text=bool(self._drawn))

    def measure(self, measured: Sequence[MeasuredVariant], spool: Path) -> None:
        """Measure both levels of all variants, as far as no earlier run did, and add the figures to the variants.

        Args:
            measured: the variants.
            spool: folder of their quantized tensors.

        Raises:
            InputError: a component cannot be loaded.
            ResourceError: memory or disk is used up.
            ImageError: the original computes values that are not finite.
        """
        distinct = {one.digest: one for one in measured}
        velocities = [one for one in distinct.values() if self._missing_velocities(one.digest)]
        images = [one for one in distinct.values() if self._missing_images(one.digest)]
        failed: dict[tuple[str, str], str] = {}
        calibrates = self._options.calibration is not None
        if velocities or images or calibrates or any(map(self._missing_images, self._kinds)):
            loaded = self._load()
            calls = self._calls(loaded) if velocities or calibrates else []
            if self._options.calibration is not None:
                gather_calibration(loaded, calls, measured, self._options, self._reporter)
            self._draw_originals(loaded)
            with Swapping(loaded, spool) as swapping:
                failed |= self._measure_velocities(loaded, swapping, velocities, calls)
                failed |= self._draw_variants(loaded, swapping, images)
        for one in measured:
            one.velocity = self._found(self._journal.velocities, one.digest, self._followed)
            one.images = list(self._found(self._journal.images, one.digest, self._drawn).values())
            one.failed = {level: reason for (digest, level), reason in failed.items() if digest == one.digest}

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
            **({"not_measured": missing} if (missing := self._comparison.not_measured) and self._drawn else {}),
        }

    def methods(self) -> dict[str, Any]:
        """How both levels are measured."""
        images = {"images": self._comparison.methods()} if self._drawn else {}
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

    def _load(self) -> LoadedOriginal:
        kinds = [(kind, prompt) for kind in self._kinds for prompt in self._drawn]
        wanted = [(ORIGINAL, prompt) for prompt in self._followed] + kinds
        settings = [self._settings(kind, prompt) for kind, prompt in wanted]
        return self._original.load(settings, self._reporter)

    def _measure_velocities(
        self, loaded: LoadedOriginal, swapping: Swapping, variants: Sequence[MeasuredVariant], calls: Sequence[Call]
    ) -> dict[tuple[str, str], str]:
        """Repeat the original's calls with the layers of each variant; return why some could not be measured."""
        failed: dict[tuple[str, str], str] = {}
        with self._reporter.progress("velocity", len(variants), "variants") as shown:
            for one in variants:
                plan = one.variant.plan
                try:
                    for prompt in self._missing_velocities(one.digest):
                        own = [call for call in calls if call.prompt == prompt.id]
                        found = measure_variant(loaded, swapping, own, one.variant.storages, plan.quantization_config)
                        self._journal.note_velocity(one.digest, prompt.id, [error.relative for error in found])
                        shown.refresh()
                except ImageError as error:
                    failed[one.digest, VELOCITY] = error.message
                shown.advance(1)
        return failed

    def _calls(self, loaded: LoadedOriginal) -> list[Call]:
        """The original's calls of all prompts, as an interrupted run recorded them or recorded now."""
        prompts = {prompt.id: self._settings(ORIGINAL, prompt) for prompt in self._followed}
        file = work_folder(self._output).calls
        return find_calls(loaded, prompts, self._options.calls, file, self._journal, self._reporter)

    def _draw_originals(self, loaded: LoadedOriginal) -> None:
        """Draw the original's images, and those with a second seed."""
        work = [(kind, prompt) for kind in self._kinds for prompt in self._missing_images(kind)]
        with self._reporter.progress("images of the original", len(work), "images") as shown:
            for kind, prompt in work:
                self._draw(loaded, kind, kind, prompt)
                shown.advance(1)
                shown.refresh()

    def _draw_variants(
        self, loaded: LoadedOriginal, swapping: Swapping, variants: Sequence[MeasuredVariant]
    ) -> dict[tuple[str, str], str]:
        """Draw the images of each variant; return why some could not be drawn."""
        failed: dict[tuple[str, str], str] = {}
        total = sum(len(self._missing_images(one.digest)) for one in variants)
        with self._reporter.progress("images of variants", total, "images") as shown:
            for one in variants:
                swapping.use(one.variant.storages, one.variant.plan.quantization_config)
                try:
                    for prompt in self._missing_images(one.digest):
                        self._draw(loaded, one.digest, one.variant.id, prompt)
                        shown.advance(1)
                        shown.refresh()
                except ImageError as error:
                    failed[one.digest, IMAGES] = error.message
        return failed

    def _draw(self, loaded: LoadedOriginal, model: str, folder: str, prompt: SuitePrompt) -> None:
        """Draw an image, compare it with the original's, and note both."""
        settings = self._settings(model, prompt)
        image = loaded.draw(settings)
        name = (IMAGES_FOLDER / folder / f"{prompt.id}-{settings.seed}.png").as_posix()
        file = self._output / name
        with writing(file.parent):
            file.parent.mkdir(parents=True, exist_ok=True)
        drawn = {**asdict(settings), "width": image.width, "height": image.height}
        machine = {"device": loaded.device.type, "versions": {"lensconv": __version__, **package_versions()}}
        write_image(image, file, {**drawn, **machine, "model": model})
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        first = file if model == ORIGINAL else self._output / self._journal.images[ORIGINAL, prompt.id]["image"]
        pair = ImagePair(
            key=prompt.id,
            id=prompt.id,
            seed=settings.seed,
            steps=None,
            width=image.width,
            height=image.height,
            original=first,
            quantized=file,
        )
        (found,) = self._comparison.compare([pair], SILENT).pairs
        row = original_row if model == ORIGINAL else image_row
        self._journal.note_image(model, row(name, digest, found))
