"""The image as a PNG with its settings in the metadata.

The file contains only what the image depends on: the same settings, weights and libraries give the same bytes.
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

#: Key of the text chunk with all settings as JSON; prompts are also in text chunks of their own.
METADATA_KEY = "lensconv"


def refuse_output(output: Path, *, overwrite: bool) -> None:
    """Refuse a path that the image cannot be written to, before it is generated.

    Raises:
        UsageError: the name does not end in .png.
        OutputError: the path is taken, or a file cannot be there.
    """
    if output.suffix.lower() != ".png":
        raise UsageError(f"--out {output}: the image is a PNG; use a name that ends in .png")
    refuse_taken_place(output, overwrite=overwrite)


def write_image(image: Image, output: Path, metadata: dict[str, Any]) -> None:
    """Write the image, whole or not at all.

    Args:
        image: what to write.
        output: its path.
        metadata: settings, as JSON values; ``prompt`` and ``negative_prompt`` among them.

    Raises:
        OutputError: it cannot be written.
        DiskError: the disk is full.
    """
    texts = PngInfo()
    for key in ("prompt", "negative_prompt"):
        texts.add_itxt(key, metadata[key])
    texts.add_itxt(METADATA_KEY, json.dumps(metadata, sort_keys=True, ensure_ascii=False))
    content = io.BytesIO()
    image.save(content, "PNG", pnginfo=texts)
    replace_file(output, content.getvalue())
