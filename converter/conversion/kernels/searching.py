"""Codes that are better than SDNQ's: scales are searched, and codes calibrated where inputs of a layer are known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from converter.conversion.kernels.error_feeding import feed_errors
from converter.conversion.kernels.fused import GROUP, widen
from converter.conversion.kernels.scale_search import search_scales

if TYPE_CHECKING:
    from converter.conversion.kernels.moments import Moments


def improve_uint4(
    data: NDArray[np.uint8],
    dtype: str,
    parts: Mapping[str, NDArray[Any]],
    *,
    channels: int,
    round_scales: bool,
    moments: Moments | None,
) -> None:
    """Improve what ``fused.quantize_uint4`` made of rows of a linear, in place.

    Args:
        data: the bytes of the source.
        dtype: its safetensors dtype.
        parts: SDNQ's parts by name.
        channels: numbers in a row.
        round_scales: whether scales and zero points are bfloat16; if not, they are float32.
        moments: of the inputs; None to search scales only.
    """
    packed = parts["weight"]
    codes = np.empty(packed.size * 2, np.uint8)
    np.bitwise_and(packed, 15, out=codes[::2])
    np.right_shift(packed, 4, out=codes[1::2])
    stored = "BF16" if round_scales else "F32"
    values = {part: widen(parts[part].view(np.uint8), stored).view(np.float32) for part in ("scale", "zero_point")}
    improve_groups(
        as_numbers(data, dtype).reshape(-1, GROUP),
        codes.reshape(-1, GROUP),
        values["scale"],
        values["zero_point"],
        channels=channels,
        bits=4,
        round_scales=round_scales,
        moments=moments,
    )
    np.left_shift(codes[1::2], 4, out=packed)
    np.bitwise_or(packed, codes[::2], out=packed)
    if round_scales:
        for part, found in values.items():
            parts[part].view(np.uint16)[:] = found.view(np.uint32) >> 16


def improve_groups(
    numbers: NDArray[Any],
    codes: NDArray[np.uint8],
    scales: NDArray[np.float32],
    zero_points: NDArray[np.float32] | None,
    *,
    channels: int,
    bits: int,
    round_scales: bool,
    moments: Moments | None,
) -> None:
    """Improve quantized groups, in place; other arguments as for ``search_scales``.

    Args:
        numbers: as there.
        codes: as there.
        scales: as there.
        zero_points: as there.
        channels: numbers in a row; groups are in rows one after the other if there are moments.
        bits: as there.
        round_scales: as there.
        moments: of the inputs; None to search scales only.
    """
    search_scales(numbers, codes, scales, zero_points, bits=bits, round_scales=round_scales)
    if moments is None:
        return
    # Imported here: it imports torch.
    from converter.conversion.kernels.calibrated import calibrate

    groups = channels // numbers.shape[1]
    calibrate(
        numbers.reshape(-1, channels).astype(np.float32, copy=False),
        codes.reshape(-1, channels),
        scales.reshape(-1, groups),
        None if zero_points is None else zero_points.reshape(-1, groups),
        moments,
        bits=bits,
        round_scales=round_scales,
    )


def as_numbers(data: NDArray[np.uint8], dtype: str) -> NDArray[Any]:
    """View bytes of a safetensors dtype as the numbers that errors are measured against: float64, or else float32."""
    return data.view(np.float64) if dtype == "F64" else widen(data, dtype).view(np.float32)


def compile_kernels(*, calibrated: bool) -> None:
    """Compile, or load from the cache, what all conversions but those of float64 will call, before threads start.

    Args:
        calibrated: whether codes will be calibrated.
    """
    numbers, codes, ones = np.zeros((1, GROUP), np.float32), np.zeros((1, GROUP), np.uint8), np.ones(1, np.float32)
    search_scales(numbers, codes, ones, np.zeros(1, np.float32), bits=4, round_scales=True)
    if calibrated:
        weights = np.ones(GROUP, np.float32)
        search_scales(numbers, codes, ones, np.zeros(1, np.float32), bits=4, round_scales=True, weights=weights)
        ratios, zeros = np.zeros((GROUP, GROUP), np.float32), np.zeros(1, np.float32)
        feed_errors(numbers, ratios, ones, zeros, codes, numbers.copy(), least=0, most=15, round_result=True)
