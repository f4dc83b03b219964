"""The cells of a grid, from the files of a bench. What these files say is not trusted: images are read only from within
the folder, only as they were measured, and only as far as they are small enough.
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
import warnings
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image, UnidentifiedImageError

from converter.errors import EvidenceError, printable, reason_of
from converter.measurement.evidence.names import MATRIX_NAME, MODELS
from converter.presentation.grid.layout import Size

#: Bytes of an image file; as raw pixels, the largest image that PIL takes for no bomb has half as many.
_FILE_LIMIT = 1 << 29
#: Modes that become RGB of 8 bits without any loss.
_EXACT_MODES = ("1", "L", "P", "RGB")
#: Where a PNG tells its bits a channel (PNG specification, 11.2.1); PIL drops what is beyond eight without a word.
_DEPTH_PLACE = 24
#: Pixels a side of a box where no image and no setting tells a size.
_DEFAULT_SIDE = 512
#: What PIL raises where a PNG is broken, from its own checks and from what it is built on.
_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


@dataclass(frozen=True)
class Cell:
    """One prompt drawn by one model."""

    id: str
    model: str
    size: Size
    file: Path | None = None
    """The image; None where it is missing."""
    sha256: str = ""
    """What the file held when its size was read."""
    missing: str = ""
    """Why there is no image."""


@dataclass(frozen=True)
class Row:
    """One prompt drawn by both models."""

    id: str
    scenario: str
    seed: int
    cells: tuple[Cell, Cell]

    @property
    def sizes(self) -> tuple[Size, Size]:
        """Of both cells."""
        return self.cells[0].size, self.cells[1].size


def find_rows(folder: Path, matrix: Mapping[str, Any]) -> list[Row]:
    """Find the images of a bench; sizes are read, pixels are not.

    Args:
        folder: holds ``comparison_matrix.json``.
        matrix: its content, which is valid.

    Returns:
        A row for each prompt. Where an image is missing, its cell has the size of the other one in its row; where both
        are, the most common size.

    Raises:
        EvidenceError: an image lies outside the folder, is no PNG, or is another one than was measured.
    """
    rows = [
        (prompt, [_find_cell(folder, prompt["id"], model, prompt[model]) for model in MODELS])
        for prompt in matrix["prompts"]
    ]
    found = Counter(cell.size for _, cells in rows for cell in cells if cell.file is not None)
    typical = found.most_common(1)[0][0] if found else _size_in_settings(matrix)
    return [Row(prompt["id"], prompt["scenario"], prompt["seed"], _fill(cells, typical)) for prompt, cells in rows]


def read_pixels(cell: Cell) -> Image.Image:
    """Decode the image of a cell.

    Returns:
        It in RGB of 8 bits, with the pixels of the file.

    Raises:
        EvidenceError: the file is truncated or broken, or another one than when its size was read.
    """
    if cell.file is None:
        raise ValueError("a missing cell has no pixels")
    content = _read(cell.file)
    if content is None or hashlib.sha256(content).hexdigest() != cell.sha256:
        raise EvidenceError(cell.file, "was changed while the grid was drawn", "Run the command again.")
    with _open(cell.file, content) as image, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image.load()
        except _BROKEN as error:
            raise _broken(cell.file, error) from error
        return image.convert("RGB")


def _find_cell(folder: Path, prompt: str, model: str, measured: Mapping[str, Any]) -> Cell:
    nothing = Size(0, 0)
    if "failed" in measured:
        return Cell(prompt, model, nothing, missing=f"not measured: {printable(measured['failed'])}")
    if "image" not in measured:
        return Cell(prompt, model, nothing, missing="no image was kept")
    file = _contained(folder, measured["image"])
    content = _read(file)
    if content is None:
        return Cell(prompt, model, nothing, missing=f"no such file: {printable(measured['image'])}")
    digest = hashlib.sha256(content).hexdigest()
    if measured.get("image_sha256", digest) != digest:
        raise EvidenceError(
            file,
            f"is stale: its sha256 is not the one in {MATRIX_NAME}",
            "Put the image that was measured back, or measure again with `lensconv bench`.",
        )
    with _open(file, content) as image:
        return Cell(prompt, model, Size(*image.size), file, digest)


def _fill(cells: Sequence[Cell], typical: Size) -> tuple[Cell, Cell]:
    """Give missing cells a size."""
    size = next((cell.size for cell in cells if cell.file is not None), typical)
    first, second = (cell if cell.file is not None else replace(cell, size=size) for cell in cells)
    return first, second


def _size_in_settings(matrix: Mapping[str, Any]) -> Size:
    settings = matrix.get("settings", {})
    width, height = settings.get("width"), settings.get("height")
    return Size(width, height) if width and height else Size(_DEFAULT_SIDE, _DEFAULT_SIDE)


def _contained(folder: Path, name: str) -> Path:
    """The path of an image, if it stays inside the folder."""
    path = PurePosixPath(name)
    root = os.path.realpath(folder)
    if name.isprintable() and "\\" not in name and path.parts and not path.is_absolute() and ".." not in path.parts:
        resolved = os.path.realpath(Path(root, path))
        if os.path.commonpath((root, resolved)) == root:
            return folder / path
    raise EvidenceError(folder / MATRIX_NAME, f"image {name} is no path inside the folder")


def _read(file: Path) -> bytes | None:
    """Content of an image file; None if there is no such file."""
    try:
        # Opening a pipe would wait for someone to write to it.
        with open(file, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK)) as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise EvidenceError(file, "is no file")
            content = stream.read(_FILE_LIMIT + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise EvidenceError(file, f"cannot be read: {reason_of(error)}", "Check the path.") from error
    if len(content) > _FILE_LIMIT:
        raise EvidenceError(file, f"is longer than {_FILE_LIMIT} bytes")
    return content


def _open(file: Path, content: bytes) -> Image.Image:
    """Read the head of a PNG; no pixels yet."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            image = Image.open(BytesIO(content), formats=["PNG"])
        except _BROKEN as error:
            raise _broken(file, error) from error
    kind = "transparent" if "transparency" in image.info else image.mode
    if kind not in _EXACT_MODES or content[_DEPTH_PLACE] > 8:
        raise EvidenceError(file, f"its pixels are {kind} of {content[_DEPTH_PLACE]} bits, not opaque RGB of 8 bits")
    return image


def _broken(file: Path, error: BaseException) -> EvidenceError:
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return EvidenceError(file, f"claims more than {Image.MAX_IMAGE_PIXELS} pixels")
    reason = "" if isinstance(error, UnidentifiedImageError) else f": {error}"
    return EvidenceError(file, f"is no whole PNG{reason}")
