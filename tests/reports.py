"""A folder of measurements with images, for tests of the report."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from converter.measurement.evidence.names import IMAGES_NAME, MATRIX_NAME
from tests import pictures

#: Width and height of the images of each prompt; the second one is larger than a window.
SIZES = {"P01": (128, 128), "P02": (1500, 900), "P03": (96, 64)}


def write_measurements(folder: Path, *, only_images: bool = False) -> Path:
    """Write measurements of three prompts: two complete ones, and one that the quantized model failed to draw.

    Args:
        folder: where to write them.
        only_images: whether to leave out most other measurements, and to make the images small: drawing the charts and
            encoding large images takes a second each.
    """
    contents = json.loads(Path(__file__).with_name("measured.json").read_text("utf-8"))
    del contents["summary"]
    common = contents.pop("common")
    files = [{"name": "model.safetensors", "bytes": 22, "sha256": "5" * 64}]
    source = {"repo_id": "a *repo*", "revision": None, "transformer": files}
    sources = {"original": source, "quantized": source}
    for row in contents["comparison_matrix.json"]["prompts"]:
        row["baseline"] = {"seed": row["seed"] + 1000}
        for number, part in enumerate(("original", "quantized", "baseline")):
            if "failed" not in row[part]:
                width, height = SIZES[row["id"]]
                size = (min(width, 160), min(height, 90)) if only_images else (width, height)
                row[part] |= write_image(folder, f"images/{part}/{row['id']}.png", size, number)
    contents["image_fidelity.json"]["pairs"][1]["text"][0] |= {
        "reader": "a reader",
        "original_read": "HELL0",
        "quantized_read": "HEL",
    }
    _add_probes(folder, contents["image_fidelity.json"])
    for name, content in contents.items():
        if only_images and name not in (MATRIX_NAME, IMAGES_NAME):
            continue
        content |= {"sources": sources} if "fidelity" in name else {**common, "sources": sources}
        (folder / name).write_text(json.dumps(content))
    return folder


def _add_probes(folder: Path, images: dict[str, Any]) -> None:
    """Add an error along a trajectory, with one block, and images of an empty prompt."""
    errors = [
        {"step": step, "sigma": 1 - step / 4, "error": error} for step, error in enumerate((0.125, 0.25, 0.25, 0.375))
    ]
    prompt = {"id": "P01", "seed": 1301, "steps": errors, "blocks": [{"block": 0, "error": 0.0625}]}
    images["trajectory"] = {"prompts": [prompt], "mean_error": 0.25, "max_error": 0.375}
    sides = {
        model: write_image(folder, f"images/flat-field/flat-field-0-{model}.png", (64, 64), number)
        for number, model in enumerate(("original", "quantized"), 3)
    }
    images["flat_field"] = {"seed": 0, **sides, "periodic_grid": {"original": 1.0, "quantized": 3.5, "added": 2.5}}


def write_image(folder: Path, name: str, size: tuple[int, int], seed: int) -> dict[str, Any]:
    """Write an image of coarse noise, and return what a matrix says of it."""
    width, height = size
    coarse = pictures.noise(seed, -(-height // 8), -(-width // 8))
    image = np.kron(coarse, np.ones((8, 8, 1), np.uint8))[:height, :width]
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(folder / name, compress_level=1)
    return {"image": name, "image_sha256": hashlib.sha256((folder / name).read_bytes()).hexdigest()}
