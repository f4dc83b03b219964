"""The images of a report, as a browser shows them: the pixels that were measured, in a smaller format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from converter.errors import EvidenceError, printable
from converter.measurement.evidence.names import MODEL_TITLES, MODELS
from converter.presentation.grid.cells import find_cell, read_pixels
from converter.presentation.grid.layout import SIDE_LIMIT, Size
from converter.presentation.report.store import ImageStore

#: Name and title of the image that the original draws with a second seed.
_BASELINE, _BASELINE_TITLE = "baseline", "Original, second seed"
#: Effort of lossless WebP. For an image of 1440 x 1440 pixels, 0 takes 0.1 s and a fifth more bytes than 4, which takes
#: 0.6 s; 6 takes longer and saves nothing.
_METHOD = 4
#: Pixels per side of the images in the list of prompts, which are shown half as large for sharp screens.
_THUMBNAIL_SIDE = 96


@dataclass(frozen=True)
class Picture:
    """One image of a page."""

    model: str
    """``original``, ``quantized`` or ``baseline``."""
    title: str
    seed: int | None
    size: Size
    name: str = ""
    """What the store calls it; empty where it is missing."""
    missing: str = ""
    """Why it is missing."""


@dataclass(frozen=True)
class Pictures:
    """The images of one prompt."""

    found: tuple[Picture, ...]
    """Original, quantized, and the other seed where the bench drew one."""
    thumbnail: str = ""
    """What the store calls a small image of the first that is not missing."""

    @property
    def missing(self) -> tuple[Picture, ...]:
        """Those that are missing."""
        return tuple(picture for picture in self.found if picture.missing)


def read_pictures(folder: Path, row: Mapping[str, Any], store: ImageStore) -> Pictures:
    """Read the images of a prompt, and keep them in a store; one that is missing or was changed has a reason instead.

    Args:
        folder: contains ``comparison_matrix.json``.
        row: one of its rows.
        store: takes the images.

    Raises:
        OutputError: the store cannot write.
        DiskError: the disk is full.
    """
    found, thumbnail = [], ""
    for model, title, seed, measured in _entries(row):
        try:
            image, missing = _read(folder, row["id"], model, measured)
        except EvidenceError as error:
            # The page must not name the folders of this machine.
            image, missing = None, error.message.removeprefix(f"{printable(str(error.file))}: ")
        if image is None:
            found.append(Picture(model, title, seed, Size(0, 0), missing=missing))
            continue
        thumbnail = thumbnail or store.add_small(_shrink(image))
        found.append(Picture(model, title, seed, Size(*image.size), store.add(encode(image))))
    return Pictures(tuple(found), thumbnail)


def encode(image: Image.Image) -> bytes:
    """Return an RGB image in a format without loss: WebP, or PNG where it is larger than WebP allows."""
    stream = BytesIO()
    if max(image.size) <= SIDE_LIMIT:
        image.save(stream, "WEBP", lossless=True, method=_METHOD)
    else:
        image.save(stream, "PNG")
    return stream.getvalue()


def _entries(row: Mapping[str, Any]) -> Iterator[tuple[str, str, int | None, Mapping[str, Any]]]:
    """Yield what a row says of each image: model, title, seed and measurement."""
    for model, title in zip(MODELS, MODEL_TITLES, strict=True):
        yield model, title, row["seed"], row[model]
    if _BASELINE in row:
        yield _BASELINE, _BASELINE_TITLE, row[_BASELINE]["seed"], row[_BASELINE]


def _read(folder: Path, prompt: str, model: str, measured: Mapping[str, Any]) -> tuple[Image.Image | None, str]:
    cell = find_cell(folder, prompt, model, measured)
    return (None, cell.missing) if cell.file is None else (read_pixels(cell), "")


def _shrink(image: Image.Image) -> bytes:
    stream = BytesIO()
    small = image.copy()
    small.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
    small.save(stream, "WEBP", quality=80)
    return stream.getvalue()
