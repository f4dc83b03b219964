"""A note in each picture of the measurements that it shows, so that outdated pictures are found."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from converter.measurement.evidence.names import MODELS

if TYPE_CHECKING:
    from PIL import Image

#: The tag ImageDescription of Exif 2.32, which PNG and WebP both support.
_DESCRIPTION = 0x010E


def origin_note(text: str) -> Image.Exif:
    """Return the Exif of a picture.

    Args:
        text: describes everything that the picture shows; the same text gives the same note.
    """
    from PIL import Image

    exif = Image.Exif()
    exif[_DESCRIPTION] = _digest(text)
    return exif


def is_drawn_from(content: bytes, text: str) -> bool:
    """Return whether a file is a picture with the note of this text."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content), formats=("PNG", "WEBP")) as image:
            return image.getexif().get(_DESCRIPTION) == _digest(text)
    except (OSError, SyntaxError, ValueError):
        return False


def grid_text(matrix: Mapping[str, Any]) -> str:
    """Return what a comparison grid shows: the sha256 of the images in the matrix, and their labels."""
    rows = [
        [row["id"], row["scenario"], row["seed"], *(_image(row[model]) for model in MODELS)]
        for row in matrix["prompts"]
    ]
    return json.dumps(rows)


def ablation_text(ablation: Mapping[str, Any]) -> str:
    """Return what a sheet of an ablation shows: names, and the sha256 of all images.

    Args:
        ablation: content of ``ablation.json``.
    """
    rows = [["", _ablation_images(ablation.get("original_images", ()))]]
    rows.append(["", _ablation_images(ablation.get("baseline", {}).get("prompts", ()))])
    rows += [
        [variant["name"], _ablation_images(variant.get("images", {}).get("prompts", ())), variant.get("failed", {})]
        for variant in ablation["variants"]
    ]
    return json.dumps(rows)


def _ablation_images(rows: Iterable[Mapping[str, Any]]) -> list[list[Any]]:
    return [[row["id"], row["seed"], row["image_sha256"]] for row in rows]


def _image(measured: Mapping[str, Any]) -> str:
    return str(measured.get("image_sha256") or measured.get("image") or measured.get("failed") or "")


def _digest(text: str) -> str:
    return f"drawn from sha256:{hashlib.sha256(text.encode()).hexdigest()}"
