"""The image as a PNG that tells how it was made.

The file holds nothing that the image does not depend on: the same settings, weights and libraries give the same bytes.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from PIL.Image import Image
from PIL.PngImagePlugin import PngInfo

from converter.checkpoint.writer import write_error
from converter.errors import OutputError, UsageError, printable

#: Key of the text chunk with all settings as JSON; prompts stand in chunks of their own, too.
METADATA_KEY = "lensconv"


def refuse_place(output: Path, *, overwrite: bool) -> None:
    """Refuse a place where the image cannot go, before it is drawn.

    Raises:
        UsageError: the name does not end in .png.
        OutputError: the place is taken, or no file can be there.
    """
    where = printable(str(output))
    if output.suffix.lower() != ".png":
        raise UsageError(f"--out {where}: the image is a PNG; let the name end in .png")
    if output.is_dir():
        raise OutputError(f"{where}: is a folder", "Name a file in it.")
    if os.path.lexists(output) and not overwrite:
        raise OutputError(f"{where}: exists already", "Choose another name, or replace it with --overwrite.")
    parent = output.parent
    if not parent.is_dir():
        raise OutputError(f"{printable(str(parent))}: no such folder", "Make it first.")
    if not os.access(parent, os.W_OK):
        raise OutputError(f"{printable(str(parent))}: cannot be written", "Check its permissions.")


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
    draft = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        try:
            with draft.open("xb") as stream:
                image.save(stream, "PNG", pnginfo=texts)
                stream.flush()
                os.fsync(stream.fileno())
            draft.replace(output)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise write_error(output, error) from error
