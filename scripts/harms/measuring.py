"""Harms of the modules of one model by every score, and the errors of images with each module alone quantized."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from converter import GenerateOptions, find_recipe
from converter.console import Reporter
from converter.conversion.kernels.sdnq import one_torch_thread
from converter.measurement.benchmark.repos import ImageSettings, choose_image_settings
from converter.measurement.prompts.suite import SuitePrompt
from converter.measurement.search.candidates import SearchSpace, find_choices, parse_candidates
from converter.measurement.search.options import GRADIENTS, INPUTS, MEASURED, WEIGHTS
from converter.measurement.sensitivity.calls import Call, record_calls
from converter.measurement.sensitivity.gradients import estimate_harms
from converter.measurement.sensitivity.inputs import harms_by_inputs
from converter.measurement.sensitivity.loaded import LoadedOriginal, denoiser_checkpoint, load_original, open_original
from converter.measurement.sensitivity.measured import Candidate, measure_harms
from converter.measurement.sensitivity.scan import scan
from converter.measurement.sensitivity.swapping import Swapping
from scripts.harms.images import draw_pairs, squared_errors
from scripts.harms.models import Model

#: Harms by module.
Harms = Mapping[str, float]


@dataclass(frozen=True)
class Settings:
    """How all models are measured."""

    candidates: str
    calibration: Sequence[SuitePrompt]
    """Prompts of the calls that scores are computed from."""
    calls: int
    """Steps of each of these prompts that are recorded."""
    probes: int
    """Random directions of gradients for each call."""
    drawn: Sequence[SuitePrompt]
    """Prompts of the images."""


@dataclass(frozen=True)
class Measured:
    """What was measured of one candidate."""

    candidate: str
    modules: tuple[str, ...]
    scores: Mapping[str, Harms]
    """By ``--score`` of `search`."""
    errors: NDArray[np.float64]
    """What ``squared_errors`` gives for each module: ``[modules, prompts, 2]``."""


def measure(model: Model, folder: Path, settings: Settings, reporter: Reporter) -> tuple[SearchSpace, list[Measured]]:
    """Make a model, and measure it.

    Args:
        model: which one.
        folder: where to write it.
        settings: prompts and candidates.
        reporter: shows progress.

    Returns:
        What can be chosen for the model, and a value for each candidate.
    """
    model.make(folder)
    repo = open_original(folder)
    checkpoint = denoiser_checkpoint(repo)
    recipe = find_recipe(None, checkpoint.config["_class_name"])
    space = find_choices(checkpoint, recipe, parse_candidates(settings.candidates, recipe))
    drawing = GenerateOptions(device="cpu", dtype="float32", **model.drawing)
    images = {
        prompt.id: choose_image_settings(repo, prompt.prompt, replace(drawing, seed=prompt.seed))
        for prompt in (*settings.calibration, *settings.drawn)
    }
    # For models as small as these, several threads wait for each other longer than they compute.
    with one_torch_thread():
        loaded = load_original(repo, list(images.values()), drawing, reporter=reporter)
        calls = record_calls(loaded, {prompt.id: images[prompt.id] for prompt in settings.calibration}, settings.calls)
        drawn = [images[prompt.id] for prompt in settings.drawn]
        work = _Work(loaded, space, calls, folder.with_name(f"{folder.name}-spool"), reporter)
        return space, [work.measure(found.name, settings.probes, drawn) for found in space.candidates]


@dataclass(frozen=True)
class _Work:
    """A loaded model, and what all its candidates share."""

    loaded: LoadedOriginal
    space: SearchSpace
    calls: Sequence[Call]
    spool: Path
    reporter: Reporter

    def measure(self, name: str, probes: int, drawn: Sequence[ImageSettings]) -> Measured:
        """Measure one candidate."""
        candidates = {
            module.names[0]: Candidate(module.storages[name], self.space.quantizations[name])
            for module in self.space.modules
            if name in module.storages
        }
        storages = [candidate.storage for candidate in candidates.values()]
        figures = scan(self.loaded.checkpoint, {found.source: [found] for found in storages}, spool=self.spool)
        found = {
            WEIGHTS: {key: figure.noise / figure.energy for key, figure in figures.items()},
            INPUTS: harms_by_inputs(self.loaded, self.calls, storages, self.spool),
            GRADIENTS: estimate_harms(
                self.loaded, self.calls, storages, self.spool, probes=probes, reporter=self.reporter
            ),
        }
        with Swapping(self.loaded, self.spool) as swapping:
            own = candidates.values()
            found[MEASURED] = measure_harms(self.loaded, swapping, self.calls, own, reporter=self.reporter)
            errors = self._draw(swapping, candidates, drawn)
        scores = {
            score: {path: harms[candidate.key] for path, candidate in candidates.items()}
            for score, harms in found.items()
        }
        return Measured(name, tuple(candidates), scores, errors)

    def _draw(
        self, swapping: Swapping, candidates: Mapping[str, Candidate], drawn: Sequence[ImageSettings]
    ) -> NDArray[np.float64]:
        """Draw with each module alone quantized."""
        swapping.restore()
        originals = draw_pairs(self.loaded, drawn)
        errors = []
        with self.reporter.progress("drawing", len(candidates), "modules") as shown:
            for candidate in candidates.values():
                swapping.use({candidate.storage.source: candidate.storage}, candidate.quantization)
                errors.append(squared_errors(draw_pairs(self.loaded, drawn), originals))
                shown.advance(1)
                shown.refresh()
        return np.array(errors)
