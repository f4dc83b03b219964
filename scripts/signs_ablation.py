"""Show what an ablation finds in the model of ``lensconv synth --preset signs``, and in one with planted outliers.

In the planted model, block 2 has outliers in the output layers of its attention; it draws the same images. An ablation
that can be trusted finds them: attention alone does the most harm, and block 2 has the lowest signal-to-noise ratio.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

os.environ["SDNQ_USE_TORCH_COMPILE"] = "0"

from converter import AblateOptions, GenerateOptions, ablate, read_suite
from converter.console import Console
from converter.measurement.evidence.names import ABLATION_NAME
from converter.presentation.tables.ablation_findings import describe_findings
from converter.synthesis.synthesize import synthesize
from scripts.signs.planting import plant_attention

#: The block of the planted outliers.
_BLOCK = 2


def main() -> None:
    """Make both models, measure their variants, and write what was found."""
    parser = argparse.ArgumentParser(prog="scripts/signs_ablation", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="Folder for models and measurements.")
    parser.add_argument("--steps", type=int, default=20, help="Denoising steps.")
    parser.add_argument("--calls", type=int, default=7, help="Steps in which the velocity is compared.")
    parser.add_argument("--level", choices=["velocity", "images"], default="images", help="What is measured.")
    arguments = parser.parse_args()
    found = {}
    for name in ("original", "planted"):
        folder = arguments.out / name
        synthesize(folder, preset="signs", overwrite=folder.exists())
        if name == "planted":
            plant_attention(folder, _BLOCK)
        content = measure(folder, arguments)
        found[name] = summarise(content)
        print(json.dumps(found[name]["findings"], indent=2), flush=True)
    (arguments.out / "figures.json").write_text(json.dumps(found, indent=2) + "\n", "utf-8")


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The content of ``ablation.json`` of a model, with all prompts of the suite."""
    suite = read_suite("signs")
    options = AblateOptions(level=arguments.level, velocity_prompts=len(suite.prompts), calls=arguments.calls)
    drawing = GenerateOptions(device="cpu", dtype="float32", steps=arguments.steps, guidance=1.0)
    output = folder.with_name(f"{folder.name}-evidence")
    report = ablate(folder, output, None, suite, options, drawing, reporter=Console())
    return json.loads((report.output / ABLATION_NAME).read_text())  # type: ignore[no-any-return]


def summarise(content: dict[str, Any]) -> dict[str, Any]:
    """What the file in the repository keeps: figures of variants, and what may be concluded."""
    return {
        "findings": list(describe_findings(content)),
        "suite": content["suite"],
        "settings": content["settings"],
        "baseline": content.get("baseline", {}).get("summary"),
        "variants": [
            {
                "name": variant["name"],
                "bytes": variant["bytes"],
                "sqnr_db": variant["weights"]["sqnr_db"],
                "blocks": {block["name"]: block["sqnr_db"] for block in variant["weights"]["blocks"]},
                "velocity": {key: value for key, value in variant["velocity"].items() if key != "prompts"},
                "images": {key: value for key, value in variant.get("images", {}).items() if key != "prompts"},
            }
            for variant in content["variants"]
        ],
    }


if __name__ == "__main__":
    main()
