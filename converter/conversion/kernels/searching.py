"""The search for scales in the bytes that lensconv's kernel for uint4 makes, and what a conversion prepares for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.conversion.kernels.fused import GROUP, widen
from converter.conversion.kernels.scale_search import search_scales


def improve_uint4(
    data: NDArray[np.uint8], dtype: str, parts: Mapping[str, NDArray[Any]], *, round_scales: bool
) -> None:
    """Search the scales of what ``quantize_uint4`` made, in place.

    Args:
        data: the bytes of the source.
        dtype: its safetensors dtype.
        parts: SDNQ's parts by name.
        round_scales: whether scales and zero points are bfloat16; if not, they are float32.
    """
    packed = parts["weight"]
    numbers = as_numbers(data, dtype).reshape(-1, GROUP)
    codes = np.empty(packed.size * 2, np.uint8)
    np.bitwise_and(packed, 15, out=codes[::2])
    np.right_shift(packed, 4, out=codes[1::2])
    stored = "BF16" if round_scales else "F32"
    values = {part: widen(parts[part].view(np.uint8), stored).view(np.float32) for part in ("scale", "zero_point")}
    search_scales(
        numbers, codes.reshape(-1, GROUP), values["scale"], values["zero_point"], bits=4, round_scales=round_scales
    )
    np.left_shift(codes[1::2], 4, out=packed)
    np.bitwise_or(packed, codes[::2], out=packed)
    if round_scales:
        for part, found in values.items():
            parts[part].view(np.uint16)[:] = found.view(np.uint32) >> 16


def as_numbers(data: NDArray[np.uint8], dtype: str) -> NDArray[Any]:
    """View bytes of a safetensors dtype as the numbers that errors are measured against: float64, or else float32."""
    return data.view(np.float64) if dtype == "F64" else widen(data, dtype).view(np.float32)


def compile_kernels() -> None:
    """Compile, or load from the cache, what all conversions but those of float64 will call, before threads start."""
    numbers, codes = np.zeros((1, GROUP), np.float32), np.zeros((1, GROUP), np.uint8)
    search_scales(numbers, codes, np.ones(1, np.float32), np.zeros(1, np.float32), bits=4, round_scales=True)
