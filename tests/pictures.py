"""Images of noise, and PNG files written chunk by chunk, for tests of what is compared and what is refused."""

from __future__ import annotations

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
END = (b"IEND", b"")


def noise(seed: int = 0, height: int = 64, width: int = 96) -> Pixels:
    """An image of noise."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def head(width: int, height: int, bits: int = 8) -> tuple[bytes, bytes]:
    """The first chunk of an image in colours."""
    return b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0)


def pixels(content: bytes) -> tuple[bytes, bytes]:
    """The chunk of the rows, each behind the number of its filter."""
    return b"IDAT", zlib.compress(content)


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of these chunks."""
    parts = [
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)
