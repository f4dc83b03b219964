"""Show what recipes do to the model of ``lensconv synth --preset signs``, on signs that its training never drew.

The original, its conversions and a second seed of the original draw the same prompts; RapidOCR reads the pictures. The
planted model has outliers in its modulation layers, so that it shows whether harm there would be seen.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from statistics import mean
from typing import Any

os.environ["SDNQ_USE_TORCH_COMPILE"] = "0"

import numpy as np
import torch
from PIL import Image

from converter import ConvertOptions, Rule, convert, find_recipe
from converter.lens import LensPipeline
from converter.measurement.comparison.periodic import added_score, lattice_spectrum
from converter.measurement.comparison.rapidocr_reader import RapidOcrReader
from converter.measurement.comparison.text_accuracy import LEGIBLE, find_readers
from converter.measurement.comparison.trajectory import Trace, recording, replay
from converter.measurement.generation.options import PROMPT_DATE
from converter.models.lens.layout import CLASS_NAME
from converter.synthesis.synthesize import synthesize
from scripts.signs.drawing import SIDE
from scripts.signs.planting import plant_outliers
from scripts.signs.table import markdown_table
from scripts.signs.vocabulary import Sign, held_out_signs

_BATCH = 10
#: Pictures begin from noise of these seeds on.
_SEED, _SECOND_SEED = 1000, 2000


@dataclass(frozen=True)
class Case:
    """A model to be measured, and the one that it was made from."""

    name: str
    folder: Path
    source: str
    """Name of the original that it is compared with; empty for an original."""
    seed: int = _SEED


@dataclass(frozen=True)
class Drawn:
    """What a model drew."""

    images: list[Image.Image]
    error_rates: list[float]
    """Of the text on each sign, as RapidOCR reads it."""
    traces: list[Trace]
    """One for each batch of prompts; only of an original."""


def main() -> None:
    """Make the models, draw and measure, and write pictures and figures."""
    parser = argparse.ArgumentParser(prog="scripts/signs_recipes", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="Folder for models, pictures, figures.")
    parser.add_argument("--prompts", type=int, default=50, help="How many held-out signs are drawn.")
    parser.add_argument("--steps", type=int, default=20, help="Denoising steps.")
    parser.add_argument("--guidance", type=float, default=1.0, help="Guidance scale.")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="float32", help="Dtype of the computation.")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    signs = held_out_signs(arguments.prompts)
    originals: dict[str, Drawn] = {}
    rows, strips = [], []
    for case in make_cases(arguments.out):
        drawn, errors = draw(case, signs, originals.get(case.source), arguments)
        if not case.source:
            originals[case.name] = drawn
        rows.append(figures(case, drawn, originals.get(case.source), errors))
        strips.append([np.asarray(image) for image in drawn.images[:_BATCH]])
        print(json.dumps(rows[-1]), flush=True)
    settings = {name: getattr(arguments, name) for name in ("prompts", "steps", "guidance", "dtype")}
    found = {**settings, "models": rows}
    (arguments.out / "figures.json").write_text(json.dumps(found, indent=2) + "\n", "utf-8")
    (arguments.out / "figures.md").write_text(markdown_table(found), "utf-8")
    Image.fromarray(np.block([[[image] for image in strip] for strip in strips])).save(arguments.out / "grid.png")


def make_cases(out: Path) -> list[Case]:
    """Write the models, and name what is measured, each original before what it is compared with."""
    static = find_recipe("lens-uint4-static", CLASS_NAME)
    everything = replace(static, name="uint4, all linear", rules=())
    alone = static.with_rules(Rule(match=f"*.{part}.*", keep=True) for part in ("attn", "img_mlp", "txt_mlp"))
    modulation = replace(alone, name="uint4, modulation alone", rules=alone.rules[len(static.rules) :])
    int8 = find_recipe("sdnq-int8", CLASS_NAME)
    cases = []
    for source, recipes in (
        ("original", (static, everything, modulation, int8)),
        ("planted outliers", (static, everything)),
    ):
        folder = out / source.replace(" ", "-")
        synthesize(folder, preset="signs", overwrite=folder.exists())
        if source != "original":
            plant_outliers(folder)
        cases += [Case(source, folder, ""), Case(f"{source}, second seed", folder, source, _SECOND_SEED)]
        for recipe in recipes:
            name = f"{source}, {recipe.name}"
            output = out / re.sub("[^a-z0-9]+", "-", name)
            convert(folder, output, recipe, ConvertOptions(overwrite=output.exists()))
            cases.append(Case(name, output, source))
    return cases


def draw(
    case: Case, signs: Sequence[Sign], original: Drawn | None, arguments: argparse.Namespace
) -> tuple[Drawn, list[float]]:
    """Draw every sign, read the pictures, and follow the original's trajectory.

    Returns:
        What was drawn, and the velocity's relative error in each step, a mean over the batches; empty where there is
        nothing to follow.
    """
    pipeline = LensPipeline.from_pretrained(case.folder, dtype=getattr(torch, arguments.dtype))
    pipeline.set_progress_bar_config(disable=True)
    pipeline.prompt_date = date.fromisoformat(PROMPT_DATE)
    options = {
        "height": SIDE,
        "width": SIDE,
        "num_inference_steps": arguments.steps,
        "guidance_scale": arguments.guidance,
    }
    images, traces = [], []
    for first in range(0, len(signs), _BATCH):
        part = range(first, min(first + _BATCH, len(signs)))
        generators = [torch.Generator().manual_seed(case.seed + index) for index in part]
        with recording(pipeline) as trace:
            images += pipeline([signs[index].prompt for index in part], **options, generator=generators).images
        if not case.source:
            traces.append(trace)
    follows = original.traces if original is not None and case.seed == _SEED else []
    errors = [[step.error for step in replay(pipeline, trace, **options).steps] for trace in follows]
    return Drawn(images, _read(signs, images), traces), [mean(step) for step in zip(*errors, strict=True)]


def _read(signs: Sequence[Sign], images: Sequence[Image.Image]) -> list[float]:
    """The character error rate of each sign's text."""
    readers = find_readers()
    readings = (
        readers.read(RapidOcrReader.name, np.asarray(image), [sign.text])[0]
        for sign, image in zip(signs, images, strict=True)
    )
    return [reading.error_rate for reading in readings if reading.error_rate is not None]


def figures(case: Case, drawn: Drawn, original: Drawn | None, errors: Sequence[float]) -> dict[str, Any]:
    """The row of a model."""
    row: dict[str, Any] = {
        "model": case.name,
        "legible_percent": 100 * mean(rate <= LEGIBLE for rate in drawn.error_rates),
        "exact_percent": 100 * mean(rate == 0 for rate in drawn.error_rates),
        "character_error_rate": mean(drawn.error_rates),
    }
    if original is not None:
        pairs = list(zip(original.images, drawn.images, strict=True))
        row["periodic_score"] = mean(_periodic_score(*pair) for pair in pairs)
        row["levels_difference"] = mean(float(np.abs(np.subtract(*map(_levels, pair))).mean()) for pair in pairs)
    if errors:
        row |= {"velocity_error": mean(errors), "velocity_error_by_step": errors}
    return row


def _levels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(np.float64)


def _periodic_score(original: Image.Image, candidate: Image.Image) -> float:
    first, second = (lattice_spectrum(np.asarray(image)) for image in (original, candidate))
    if first is None or second is None:
        raise ValueError("pictures are too small for the periodic score")
    return added_score(first, second)


if __name__ == "__main__":
    main()
