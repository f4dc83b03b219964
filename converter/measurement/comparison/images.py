"""Image files as they are compared: what they say about themselves, and their pixels. Nothing in them is trusted."""

from __future__ import annotations

import json
import struct
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from converter.errors import MissingInput, UsageError, printable
from converter.measurement.generation.image_file import METADATA_KEY

#: Formats without loss, by the ends of their files' names.
FORMATS = {".png": "PNG", ".webp": "WEBP"}
#: Bytes of an image file; 2048x2048 raw pixels are 12.6 MB.
MAXIMUM_FILE_BYTES = 1 << 29
#: Modes that become RGB of 8 bits without loss; alpha must be opaque.
_MODES = ("1", "L", "P", "RGB", "LA", "PA", "RGBA")
_BITS = 8
#: Where a PNG tells its bits a channel (PNG specification, 11.2.1).
_DEPTH_PLACE = 24
#: What Pillow raises for files that break their format, from its own checks and from what it is built on.
_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    OverflowError,
    TypeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


@dataclass(frozen=True)
class ImageHead:
    """What an image file says before its pixels."""

    width: int
    height: int
    settings: Mapping[str, Any] | None
    """What lensconv wrote into a PNG; None where it is not there or makes no sense."""


def read_head(path: Path) -> ImageHead:
    """Read size and settings.

    Raises:
        MissingInput: the file cannot be read.
        UsageError: it is no whole image without loss, or larger than anything drawn.
    """
    with _opened(path) as image:
        return ImageHead(image.width, image.height, _settings(image.info.get(METADATA_KEY)))


def read_pixels(path: Path) -> NDArray[np.uint8]:
    """Read the pixels.

    Returns:
        Levels of shape (height, width, 3).

    Raises:
        MissingInput: the file cannot be read.
        UsageError: it is no whole image without loss, larger than anything drawn, or transparent.
    """
    with _opened(path) as image:
        image.load()
        if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
            image = image.convert("RGBA")
            if np.asarray(image)[..., 3].min() < 255:
                raise UsageError(f"{path}: is transparent in places", "Compare opaque images.")
        return np.array(image.convert("RGB"), dtype=np.uint8)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open an image; whatever breaks in the block because of the file becomes one line that names it."""
    where = printable(str(path))
    try:
        # A named pipe would make the reader wait.
        if not path.is_file():
            raise MissingInput(where, "is no file")
        if path.stat().st_size > MAXIMUM_FILE_BYTES:
            raise UsageError(f"{where}: is longer than {MAXIMUM_FILE_BYTES} bytes")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            kind = FORMATS[path.suffix.lower()]
            with path.open("rb") as stream, Image.open(stream, formats=[kind]) as image:
                if kind == "WEBP" and not _is_lossless(path):
                    raise UsageError(f"{where}: is a WebP with loss", "Give images as they were drawn: PNG.")
                if getattr(image, "n_frames", 1) > 1:
                    raise UsageError(f"{where}: holds more than one image")
                if kind == "PNG" and _depth(path) > _BITS:
                    raise UsageError(f"{where}: has {_depth(path)} bits a channel, not RGB of {_BITS} bits")
                if image.mode not in _MODES:
                    raise UsageError(f"{where}: has pixels of the kind {image.mode}, not RGB of 8 bits")
                yield image
    except PermissionError as error:
        raise MissingInput(where, f"cannot be read: {error.strerror}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UsageError(f"{where}: claims more than {Image.MAX_IMAGE_PIXELS} pixels") from error
    except _BROKEN as error:
        raise UsageError(
            f"{where}: is no whole {FORMATS[path.suffix.lower()]} image: {error}",
            "Draw or copy it again.",
        ) from error


def _settings(text: object) -> Mapping[str, Any] | None:
    if not isinstance(text, str):
        return None
    try:
        settings = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return settings if isinstance(settings, dict) else None


def _depth(path: Path) -> int:
    """Bits a channel of a PNG; Pillow drops what is beyond eight without a word."""
    with path.open("rb") as stream:
        return stream.read(_DEPTH_PLACE + 1)[_DEPTH_PLACE]


def _is_lossless(path: Path) -> bool:
    """Whether a WebP holds a chunk of lossless pixels; Pillow does not tell."""
    with path.open("rb") as stream:
        stream.seek(12)
        while len(head := stream.read(8)) == 8:
            name, length = struct.unpack("<4sI", head)
            if name in (b"VP8L", b"VP8 "):
                return bool(name == b"VP8L")
            stream.seek(length + length % 2, 1)
    return False
