"""Compare the harms by which a search ranks modules with errors of images.

Each module alone is quantized, and images are drawn and compared with the original's: the mean squared error of their
pixels by the variance of the original's, a mean over prompts. That takes too long for a real model. The harms are
those of all scores, with the defaults of ``lensconv search``, from other prompts. Spearman's rank correlation says how
well they agree with the images.

The models are that of ``lensconv synth --preset signs``, the same with outliers planted in an attention, and two
pipelines of other families. Those have random weights: their images show nothing, but depend on the prompt and on the
weights like others.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ["SDNQ_USE_TORCH_COMPILE"] = "0"

from converter import SearchOptions, read_suite
from converter.console import SILENT, Console, table
from converter.measurement.search.options import SCORES
from scripts.harms.measuring import Settings, measure
from scripts.harms.models import MODELS, PLANTED, Model
from scripts.harms.ranks import compare_ranks

ROOT = Path(__file__).resolve().parents[1]
SUITE = "signs"


def main() -> None:
    """Measure all models, write the file, and print the table."""
    parser = argparse.ArgumentParser(prog="scripts/harm_ranks", description=__doc__)
    parser.add_argument("--candidates", default="uint4,int8", help="Dtypes, as in `search` (default uint4,int8).")
    parser.add_argument("--prompts", type=int, default=4, help="Prompts that are drawn, at least 2 (default 4).")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks" / "harm-ranks.json", help="File for the results."
    )
    arguments = parser.parse_args()
    suite, defaults = read_suite(SUITE), SearchOptions(front=2)
    first = defaults.calibration_prompts
    settings = Settings(
        candidates=arguments.candidates,
        calibration=suite.prompts[:first],
        calls=defaults.calls,
        probes=defaults.probes,
        drawn=suite.prompts[first : first + arguments.prompts],
    )
    models = measure_all(settings)
    content = {
        "suite": {"name": suite.name, "sha256": suite.sha256},
        "calibration": [prompt.id for prompt in settings.calibration],
        "calls": settings.calls,
        "probes": settings.probes,
        "drawn": [prompt.id for prompt in settings.drawn],
        "dtype": "float32",
        "models": models,
    }
    arguments.out.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    columns = ("model and dtype", "modules", *SCORES, "halves")
    Console().result(content, table(columns, list(rows(models)), title="Spearman with the errors of images"))


def measure_all(settings: Settings) -> list[dict[str, Any]]:
    """Measure two models at a time; each of them computes on one core."""
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(2, get_context("spawn")) as pool:
        # The last one takes longest.
        begun = [pool.submit(describe, model, Path(folder) / model.folder, settings) for model in reversed(MODELS)]
        return [found.result() for found in reversed(begun)]


def describe(model: Model, folder: Path, settings: Settings) -> dict[str, Any]:
    """What the file says of a model."""
    space, measured = measure(model, folder, settings, SILENT)
    Console().note(f"measured {model.name}")
    return {
        "name": model.name,
        "preset": model.preset,
        "class_name": space.class_name,
        "recipe": space.recipe.name,
        "drawing": dict(model.drawing),
        "candidates": [compare_ranks(found, PLANTED if model.is_planted else ()) for found in measured],
    }


def rows(models: Sequence[dict[str, Any]]) -> Iterator[list[str]]:
    """The rows of the table."""
    for model in models:
        for found in model["candidates"]:
            ranked = found["modules"] - len(found["without_effect"])
            figures = [*(found["spearman"][name] for name in SCORES), found["spearman_of_halves_of_images"]]
            name = f"{model['name']}: {found['candidate']}"
            yield [name, str(ranked), *(f"{figure:.2f}" for figure in figures)]


if __name__ == "__main__":
    main()
