"""The cells of a grid, from the files of a bench.

These files are not trusted: images are read only from inside the folder, only if they are those that were measured, and
only up to a certain size.
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

from converter.errors import EvidenceError, reason_of
from converter.measurement.evidence.names import ABLATION_NAME, MATRIX_NAME, MODELS
from converter.presentation.grid.layout import Size

#: What measures the images that a file lists.
_COMMANDS = {MATRIX_NAME: "bench", ABLATION_NAME: "ablate"}
#: Most bytes of an image file. The largest image that PIL accepts has half as many bytes of raw pixels.
_FILE_LIMIT = 1 << 29
#: Modes that become RGB of 8 bits without any loss.
_EXACT_MODES = ("1", "L", "P", "RGB")
#: Offset of the bits per channel in a PNG (PNG specification, 11.2.1); PIL silently drops those beyond eight.
_DEPTH_OFFSET = 24
#: Pixels per side of a box whose size is in no image and no setting.
_DEFAULT_SIDE = 512
#: What PIL and the libraries below it raise for a broken PNG.
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
    """The image of one prompt and one model."""

    id: str
    model: str
    size: Size
    file: Path | None = None
    """The image; None where it is missing."""
    sha256: str = ""
    """Checksum of the file when its size was read."""
    missing: str = ""
    """Why the image is missing."""


@dataclass(frozen=True)
class Row:
    """The images of one prompt."""

    id: str
    scenario: str
    seed: int
    cells: tuple[Cell, Cell]

    @property
    def sizes(self) -> tuple[Size, Size]:
        """Sizes of both cells."""
        return self.cells[0].size, self.cells[1].size


def find_rows(folder: Path, matrix: Mapping[str, Any]) -> list[Row]:
    """Find the images of a bench, and read their sizes.

    Args:
        folder: contains ``comparison_matrix.json``.
        matrix: its content, which is valid.

    Returns:
        A row for each prompt. The cell of a missing image has the size of the other image in its row; if both are
        missing, the most common size.

    Raises:
        EvidenceError: an image is outside of the folder, is not a PNG, or is not the image that was measured.
    """
    rows = [
        (prompt, [find_cell(folder, prompt["id"], model, prompt[model]) for model in MODELS])
        for prompt in matrix["prompts"]
    ]
    found = Counter(cell.size for _, cells in rows for cell in cells if cell.file is not None)
    typical = found.most_common(1)[0][0] if found else _size_in_settings(matrix)
    return [Row(prompt["id"], prompt["scenario"], prompt["seed"], _fill(cells, typical)) for prompt, cells in rows]


def find_cell(
    folder: Path, prompt: str, model: str, measured: Mapping[str, Any], *, listed_in: str = MATRIX_NAME
) -> Cell:
    """Find one image of a bench or an ablation, and read its size.

    Args:
        folder: contains the file that lists it.
        prompt: id of its prompt.
        model: name of the model or variant that drew it.
        measured: what the file says of it.
        listed_in: name of the file.

    Returns:
        The cell; one of a missing image has no size.

    Raises:
        EvidenceError: the image is outside of the folder, is not a PNG, or is not the image that was measured.
    """
    nothing = Size(0, 0)
    if "failed" in measured:
        return Cell(prompt, model, nothing, missing=f"not measured: {measured['failed']}")
    if "image" not in measured:
        return Cell(prompt, model, nothing, missing="no image was kept")
    file = _contained(folder, measured["image"], listed_in)
    content = _read(file)
    if content is None:
        return Cell(prompt, model, nothing, missing=f"no such file: {measured['image']}")
    digest = hashlib.sha256(content).hexdigest()
    if measured.get("image_sha256", digest) != digest:
        raise EvidenceError(
            file,
            f"is stale: its sha256 is not the one in {listed_in}",
            f"Restore the image that was measured, or measure again with `lensconv {_COMMANDS[listed_in]}`.",
        )
    with _open(file, content) as image:
        return Cell(prompt, model, Size(*image.size), file, digest)


def read_pixels(cell: Cell) -> Image.Image:
    """Return the image of a cell in RGB of 8 bits, with the pixels of the file.

    Raises:
        EvidenceError: the file is truncated or broken, or was changed after its size was read.
    """
    if cell.file is None:
        raise ValueError("a missing cell has no pixels")
    content = _read(cell.file)
    if content is None or hashlib.sha256(content).hexdigest() != cell.sha256:
        raise EvidenceError(cell.file, "was changed while it was read", "Run the command again.")
    with _open(cell.file, content) as image, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image.load()
        except _BROKEN as error:
            raise _broken(cell.file, error) from error
        return image.convert("RGB")


def _fill(cells: Sequence[Cell], typical: Size) -> tuple[Cell, Cell]:
    """Return both cells with sizes."""
    size = next((cell.size for cell in cells if cell.file is not None), typical)
    first, second = (cell if cell.file is not None else replace(cell, size=size) for cell in cells)
    return first, second


def _size_in_settings(matrix: Mapping[str, Any]) -> Size:
    settings = matrix.get("settings", {})
    width, height = settings.get("width"), settings.get("height")
    return Size(width, height) if width and height else Size(_DEFAULT_SIDE, _DEFAULT_SIDE)


def _contained(folder: Path, name: str, listed_in: str) -> Path:
    """Return the path of an image, which must be inside the folder."""
    path = PurePosixPath(name)
    root = os.path.realpath(folder)
    if name.isprintable() and "\\" not in name and path.parts and not path.is_absolute() and ".." not in path.parts:
        resolved = os.path.realpath(Path(root, path))
        if os.path.commonpath((root, resolved)) == root:
            return folder / path
    raise EvidenceError(folder / listed_in, f"image {name} is not a path inside the folder")


def _read(file: Path) -> bytes | None:
    """Return the content of an image file; None if it does not exist."""
    try:
        # Without this flag, opening a pipe waits for a program that writes to it.
        with open(file, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK)) as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise EvidenceError(file, "is not a regular file")
            content = stream.read(_FILE_LIMIT + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise EvidenceError(file, f"cannot be read: {reason_of(error)}", "Check the path.") from error
    if len(content) > _FILE_LIMIT:
        raise EvidenceError(file, f"is longer than {_FILE_LIMIT} bytes")
    return content


def _open(file: Path, content: bytes) -> Image.Image:
    """Read the header of a PNG."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            image = Image.open(BytesIO(content), formats=["PNG"])
        except _BROKEN as error:
            raise _broken(file, error) from error
    kind = "transparent" if "transparency" in image.info else image.mode
    if kind not in _EXACT_MODES or content[_DEPTH_OFFSET] > 8:
        raise EvidenceError(file, f"its pixels are {kind} of {content[_DEPTH_OFFSET]} bits, not opaque RGB of 8 bits")
    return image


def _broken(file: Path, error: BaseException) -> EvidenceError:
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return EvidenceError(file, f"has more than {Image.MAX_IMAGE_PIXELS} pixels")
    reason = "" if isinstance(error, UnidentifiedImageError) else f": {error}"
    return EvidenceError(file, f"is not a complete PNG{reason}")
