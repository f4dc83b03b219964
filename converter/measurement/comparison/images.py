"""Read image files: their settings and their pixels. Nothing in them is trusted."""

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

from converter.errors import MissingInput, UsageError, unreadable
from converter.measurement.generation.image_file import METADATA_KEY

#: Lossless formats by suffix.
FORMATS = {".png": "PNG", ".webp": "WEBP"}
#: Maximum bytes of an image file; 2048x2048 raw pixels are 12.6 MB.
MAXIMUM_FILE_BYTES = 1 << 29
_BITS = 8
#: Offsets in a PNG of the first chunk's name, and of the bits per channel (PNG specification, 11.2.1).
_HEAD_OFFSET, _DEPTH_OFFSET = 12, 24
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
#: Errors of Pillow, and of the libraries below it, for files that break their format.
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, LookupError, OverflowError, TypeError, struct.error, zlib.error)


@dataclass(frozen=True)
class ImageHead:
    """The size and the settings in an image file."""

    width: int
    height: int
    settings: Mapping[str, Any] | None
    """The settings that lensconv wrote into a PNG; None if they are missing or malformed."""


def read_head(path: Path) -> ImageHead:
    """Read size and settings.

    Raises:
        MissingInput: the file cannot be read.
        UsageError: it is not a complete, lossless image, or too large.
    """
    with _opened(path) as image:
        return ImageHead(image.width, image.height, _settings(image.info.get(METADATA_KEY)))


def read_pixels(path: Path) -> NDArray[np.uint8]:
    """Read the pixels.

    Returns:
        Levels of shape (height, width, 3).

    Raises:
        MissingInput: the file cannot be read.
        UsageError: it is not a complete, lossless image, too large, or transparent.
    """
    with _opened(path) as image:
        image.load()
        if image.mode in ("LA", "RGBA") or "transparency" in image.info:
            image = image.convert("RGBA")
            if np.asarray(image)[..., 3].min() < 255:
                raise UsageError(f"{path}: is partly transparent", "Compare opaque images.")
        return np.array(image.convert("RGB"), dtype=np.uint8)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open an image; turn errors that the file causes in the block into one that names it."""
    try:
        # Opening a named pipe would block.
        if not path.is_file():
            raise MissingInput(path, "is not a file")
        if path.stat().st_size > MAXIMUM_FILE_BYTES:
            raise UsageError(f"{path}: is longer than {MAXIMUM_FILE_BYTES} bytes")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            kind = FORMATS[path.suffix.lower()]
            with path.open("rb") as stream, Image.open(stream, formats=[kind]) as image:
                if kind == "WEBP" and not _is_lossless(path):
                    raise UsageError(f"{path}: is a lossy WebP", "Give the original PNG.")
                if getattr(image, "n_frames", 1) > 1:
                    raise UsageError(f"{path}: contains more than one image")
                if kind == "PNG" and _depth(path) > _BITS:
                    raise UsageError(f"{path}: has {_depth(path)} bits per channel, not {_BITS}")
                yield image
    except PermissionError as error:
        raise unreadable(path, error) from error
    except _BOMBS as error:
        raise UsageError(f"{path}: has more than {Image.MAX_IMAGE_PIXELS} pixels") from error
    except _BROKEN as error:
        reason = f"is not a complete {FORMATS[path.suffix.lower()]} image: {error}"
        raise UsageError(f"{path}: {reason}", "Generate or copy it again.") from error


def _settings(text: object) -> Mapping[str, Any] | None:
    if not isinstance(text, str):
        return None
    try:
        settings = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return settings if isinstance(settings, dict) else None


def _depth(path: Path) -> int:
    """Bits per channel of a PNG; Pillow drops those beyond eight without a warning."""
    with path.open("rb") as stream:
        head = stream.read(_DEPTH_OFFSET + 1)
    if not head.startswith(b"IHDR", _HEAD_OFFSET):
        raise ValueError("its first chunk is not IHDR")
    return head[_DEPTH_OFFSET]


def _is_lossless(path: Path) -> bool:
    """Whether a WebP has a chunk of lossless pixels, which Pillow does not say."""
    with path.open("rb") as stream:
        stream.seek(12)
        while len(head := stream.read(8)) == 8:
            name, length = struct.unpack("<4sI", head)
            if name in (b"VP8L", b"VP8 "):
                return bool(name == b"VP8L")
            stream.seek(length + length % 2, 1)
    return False
