"""Show how good the recipes of a search are for the model of ``lensconv synth --preset signs``.

Recipes are searched for budgets along the whole range, with the first prompts of the suite. With the others, their
velocity errors are compared with the predicted ones, and with those of uniform recipes. A second search must write the
same bytes.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

os.environ["SDNQ_USE_TORCH_COMPILE"] = "0"

from converter import GenerateOptions, SearchOptions, SearchReport, read_suite, search
from converter.console import Console
from converter.synthesis.synthesize import synthesize

if TYPE_CHECKING:
    from converter.measurement.search.verdicts import Check


def main() -> None:
    """Search twice, and write what was found."""
    parser = argparse.ArgumentParser(prog="scripts/signs_search", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="Folder for the model and recipes.")
    parser.add_argument("--budgets", type=int, default=7, help="Number of budgets, both ends included.")
    parser.add_argument("--steps", type=int, default=12, help="Denoising steps.")
    parser.add_argument("--score", default="gradients", help="Where harms come from.")
    arguments = parser.parse_args()
    original = arguments.out / "Lens"
    synthesize(original, preset="signs", overwrite=original.exists())
    runs = [find(original, arguments.out / name / "recipe.toml", arguments) for name in ("first", "second")]
    contents = [[one.file.read_bytes() for one in run.found] for run in runs]
    found = {"same_bytes_twice": contents[0] == contents[1], **summarise(runs[0])}
    (arguments.out / "figures.json").write_text(json.dumps(found, indent=2) + "\n", "utf-8")
    Console().result(found, *describe(found))


def find(original: Path, recipe: Path, arguments: argparse.Namespace) -> SearchReport:
    """Recipes along the whole range of budgets, checked."""
    recipe.parent.mkdir(parents=True, exist_ok=True)
    options = SearchOptions(front=arguments.budgets, score=arguments.score, check=True, restart=True, overwrite=True)
    drawing = GenerateOptions(device="cpu", dtype="float32", steps=arguments.steps, guidance=1.0)
    return search(original, recipe, options, suite=read_suite("signs"), drawing=drawing, reporter=Console())


def summarise(report: SearchReport) -> dict[str, Any]:
    """What the file in the repository keeps."""
    check = cast("Check", report.check)
    # The best uniform recipe comes first.
    verdicts = {verdict.recipe: verdict.to_dict() for verdict in reversed(check.verdicts)}
    return {
        "score": report.score,
        "prompts": len(check.found[0].errors),
        "recipes": [
            {
                "budget": one.budget,
                "bytes": one.selection.bytes,
                "modules": one.modules,
                "predicted_error": measured.predicted,
                "root_mean_square": measured.root_mean_square,
                "error": measured.error,
                "against": verdicts.get(one.recipe.name),
            }
            for one, measured in zip(report.found, check.found, strict=True)
        ],
        "uniform": [{key: value for key, value in one.to_dict().items() if key != "prompts"} for one in check.uniform],
    }


def describe(found: dict[str, Any]) -> list[str]:
    """The figures as lines of a Markdown table."""
    lines = ["| budget | predicted | measured | best uniform recipe that fits | its error less that of the recipe |"]
    lines.append("| ---: | ---: | ---: | --- | ---: |")
    errors = {one["name"]: one["error"] for one in found["uniform"]}
    for one in found["recipes"]:
        rival = one["against"]
        low, high = rival["interval"]
        lines.append(
            f"| {one['budget'] / 1e6:.2f} MB | {one['predicted_error']:.4f} | {one['root_mean_square']:.4f} | "
            f"{rival['rival']}: {errors[rival['rival']]:.4f} | {low:.4f} to {high:.4f} |"
        )
    return lines


if __name__ == "__main__":
    main()
