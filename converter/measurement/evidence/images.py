"""Whether the images that files of measurements name are unchanged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from converter.checkpoint.checksum import file_sha256
from converter.measurement.evidence.names import MODELS


def changed_images(folder: Path, matrix: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with the images of a comparison matrix; missing images are ignored.

    Args:
        folder: the folder to which the paths in the matrix are relative.
        matrix: content of ``comparison_matrix.json``.
    """
    for row in matrix["prompts"]:
        for part in (*(row[model] for model in MODELS), row.get("baseline", {})):
            yield from _changed_image(folder, part)


def changed_flat_fields(folder: Path, images: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with the images of an empty prompt; missing images are ignored.

    Args:
        folder: the folder to which the paths are relative.
        images: content of ``image_fidelity.json``.
    """
    for model in MODELS:
        yield from _changed_image(folder, images.get("flat_field", {}).get(model, {}))


def changed_ablation_images(folder: Path, ablation: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with the images of an ablation; missing images are ignored.

    Args:
        folder: the folder to which the paths are relative.
        ablation: content of ``ablation.json``.
    """
    images = [ablation.get("baseline", {}), *(variant.get("images", {}) for variant in ablation.get("variants", ()))]
    for rows in (ablation.get("original_images", ()), *(found.get("prompts", ()) for found in images)):
        for row in rows:
            yield from _changed_image(folder, row)


def _changed_image(folder: Path, part: Mapping[str, Any]) -> Iterator[str]:
    if "image" not in part or "image_sha256" not in part:
        return
    image = folder / part["image"]
    if not image.resolve().is_relative_to(folder.resolve()):
        yield f"{part['image']} is outside of the folder"
    elif file_sha256(image) not in (None, part["image_sha256"]):
        yield f"{part['image']} is not the image that was measured"
