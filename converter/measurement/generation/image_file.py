"""The image as a PNG that tells how it was made.

The file holds nothing that the image does not depend on: the same settings, weights and libraries give the same bytes.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from PIL.Image import Image
from PIL.PngImagePlugin import PngInfo

from converter.checkpoint.writer import refuse_taken_place, replace_file
from converter.errors import UsageError

#: Key of the text chunk with all settings as JSON; prompts stand in chunks of their own, too.
METADATA_KEY = "lensconv"


def refuse_place(output: Path, *, overwrite: bool) -> None:
    """Refuse a place where the image cannot go, before it is drawn.

    Raises:
        UsageError: the name does not end in .png.
        OutputError: the place is taken, or no file can be there.
    """
    if output.suffix.lower() != ".png":
        raise UsageError(f"--out {output}: the image is a PNG; let the name end in .png")
    refuse_taken_place(output, overwrite=overwrite)


def write_image(image: Image, output: Path, metadata: dict[str, Any]) -> None:
    """Write the image, whole or not at all.

    Args:
        image: what to write.
        output: where.
        metadata: settings, as JSON values; ``prompt`` and ``negative_prompt`` among them.

    Raises:
        OutputError: it cannot be written.
        DiskError: there is no space.
    """
    texts = PngInfo()
    for key in ("prompt", "negative_prompt"):
        texts.add_itxt(key, metadata[key])
    texts.add_itxt(METADATA_KEY, json.dumps(metadata, sort_keys=True, ensure_ascii=False))
    content = io.BytesIO()
    image.save(content, "PNG", pnginfo=texts)
    replace_file(output, content.getvalue())
