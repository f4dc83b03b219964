"""What a picture was drawn from, noted in the picture, so that one of older measurements is found out."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from converter.measurement.evidence.names import MODELS

if TYPE_CHECKING:
    from PIL import Image

#: The tag ImageDescription of Exif 2.32, which PNG and WebP carry alike.
_DESCRIPTION = 0x010E


def origin_note(text: str) -> Image.Exif:
    """What a picture is to carry as its Exif.

    Args:
        text: tells all that is drawn; the same text gives the same note.
    """
    from PIL import Image

    exif = Image.Exif()
    exif[_DESCRIPTION] = _digest(text)
    return exif


def is_drawn_from(content: bytes, text: str) -> bool:
    """Whether a picture carries the note of this text; not if it is no picture at all."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content), formats=("PNG", "WEBP")) as image:
            return image.getexif().get(_DESCRIPTION) == _digest(text)
    except (OSError, SyntaxError, ValueError):
        return False


def grid_text(matrix: Mapping[str, Any]) -> str:
    """Tells what a comparison grid shows: the images by their sha256, as the matrix names them, and their labels."""
    rows = [
        [row["id"], row["scenario"], row["seed"], *(_image(row[model]) for model in MODELS)]
        for row in matrix["prompts"]
    ]
    return json.dumps(rows)


def _image(measured: Mapping[str, Any]) -> str:
    return str(measured.get("image_sha256") or measured.get("image") or measured.get("failed") or "")


def _digest(text: str) -> str:
    return f"drawn from sha256:{hashlib.sha256(text.encode()).hexdigest()}"
