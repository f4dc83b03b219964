"""Images that files of measurements name: whether they are still what was drawn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from converter.checkpoint.checksum import file_sha256
from converter.errors import printable
from converter.measurement.evidence.names import MODELS


def changed_images(folder: Path, matrix: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the images of a comparison matrix; those that are not there count for nothing.

    Args:
        folder: that the paths in the matrix begin with.
        matrix: content of ``comparison_matrix.json``.
    """
    for row in matrix["prompts"]:
        for part in (*(row[model] for model in MODELS), row.get("baseline", {})):
            if "image" not in part or "image_sha256" not in part:
                continue
            image = folder / part["image"]
            if not image.resolve().is_relative_to(folder.resolve()):
                yield f"{printable(part['image'])} leads out of the folder"
            elif file_sha256(image) not in (None, part["image_sha256"]):
                yield f"{printable(part['image'])} is not the image that was measured"
