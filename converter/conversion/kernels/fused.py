"""The hot loops: rounding to bfloat16, and uint4 in groups of 64 in one pass over the weights.

``quantize_uint4`` does what ``sdnq.quant_utils.quantize_weight`` and ``pack_int`` of SDNQ 0.2.8 do together, to the
byte: round to bfloat16, take minimum and maximum of each group, scale, round half to even, clamp, pack two codes a
byte. Each pass of SDNQ goes through main memory; here a block stays in the first cache from the first step to the
last. The loops are separate and simple, because only then does LLVM turn each of them into vector instructions.

All functions work on the bits of the numbers, and return the largest magnitude, so that the caller finds NaN,
infinity and overflow without another pass.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from converter.checkpoint.dtypes import BITS

#: Weights that share a scale: what SDNQ's group_size 0 means for linears at 4 bits.
GROUP = 64
#: Groups in a block: 64 x 64 numbers of 4 bytes fill a third of a 48 KiB cache.
BLOCK = 64
#: Bits of the magnitude from which on a float32 is infinite or NaN.
INFINITE = 0x7F800000
#: Bits of the magnitude from which on a float32 rounds to infinity in bfloat16.
OVERFLOWS_BFLOAT16 = 0x7F7F8000

Bits32 = NDArray[np.uint32]
Bits16 = NDArray[np.uint16]

# numba keeps compiled code in __pycache__ next to this file, as Python does. Where that cannot be written, numba would
# use other folders, and lensconv must not write to those.
OPTIONS: dict[str, Any] = {
    "nogil": True,
    "error_model": "numpy",
    "cache": os.access(Path(__file__).parent, os.W_OK),
}

_u8, _u16, _u32, _f32 = np.uint8, np.uint16, np.uint32, np.float32


@njit(inline="always")
def rounded(bits):
    """Round the bits of a float32 to the nearest bfloat16, ties to even; the low half becomes zero."""
    return (bits + _u32(0x7FFF) + ((bits >> _u32(16)) & _u32(1))) & _u32(0xFFFF0000)


@njit(**OPTIONS)
def _round_to_bfloat16(source, target):
    largest = _u32(0)
    for index in range(source.size):
        bits = source[index]
        magnitude = bits & _u32(0x7FFFFFFF)
        largest = magnitude if magnitude > largest else largest
        target[index] = _u16(rounded(bits) >> _u32(16))
    return largest


@njit(**OPTIONS)
def _largest_magnitude(source):
    largest = _u32(0)
    for index in range(source.size):
        magnitude = source[index] & _u32(0x7FFFFFFF)
        largest = magnitude if magnitude > largest else largest
    return largest


# Without NaN and signed zeros the comparisons become vector instructions. Both are handled elsewhere: with a NaN the
# caller drops the result, and the sign of a zero is looked up afterwards.
@njit(fastmath={"nnan", "nsz"}, **OPTIONS)
def _group_extremes(numbers, low8, high8, low, high, groups):
    for group in range(groups):
        for lane in range(8):
            smallest = numbers[group, lane]
            largest = smallest
            for step in range(1, GROUP // 8):
                number = numbers[group, step * 8 + lane]
                smallest = number if number < smallest else smallest
                largest = number if number > largest else largest
            low8[group, lane] = smallest
            high8[group, lane] = largest
    for group in range(groups):
        smallest = low8[group, 0]
        largest = high8[group, 0]
        for lane in range(1, 8):
            number = low8[group, lane]
            smallest = number if number < smallest else smallest
            number = high8[group, lane]
            largest = number if number > largest else largest
        low[group] = smallest
        high[group] = largest


@lru_cache
def _uint4_kernel(round_weights: bool, round_scales: bool) -> Callable[[Bits32, NDArray[Any], Any, Any], int]:
    """Compile the kernel for one of its four variants; the flags are constants inside it."""

    @njit(**OPTIONS)
    def kernel(source, packed, scales, zero_points):
        bits = np.empty(BLOCK * GROUP, np.uint32)
        numbers = bits.view(np.float32).reshape((BLOCK, GROUP))
        codes = np.empty(BLOCK * GROUP, np.uint8)
        pairs = codes.view(np.uint16)
        low8 = np.empty((BLOCK, 8), np.float32)
        high8 = np.empty((BLOCK, 8), np.float32)
        low = np.empty(BLOCK, np.float32)
        low_bits = low.view(np.uint32)
        scale = np.empty(BLOCK, np.float32)
        scale_bits = scale.view(np.uint32)
        largest = _u32(0)
        groups_left = source.size // GROUP
        for first in range(0, groups_left, BLOCK):
            groups = min(BLOCK, groups_left - first)
            part = source[first * GROUP : (first + groups) * GROUP]
            for index in range(part.size):
                number_bits = part[index]
                magnitude = number_bits & _u32(0x7FFFFFFF)
                largest = magnitude if magnitude > largest else largest
                bits[index] = rounded(number_bits) if round_weights else number_bits
            _group_extremes(numbers, low8, high8, low, scale, groups)
            for group in range(groups):
                if low[group] == _f32(0):
                    # torch's minimum is the first of equal numbers, and 0.0 equals -0.0.
                    for index in range(GROUP):
                        if numbers[group, index] == _f32(0):
                            low[group] = numbers[group, index]
                            break
            for group in range(groups):
                scale[group] = (scale[group] - low[group]) / _f32(15)
            scales_part = scales[first : first + groups]
            zero_points_part = zero_points[first : first + groups]
            if round_scales:
                for group in range(groups):
                    low_bits[group] = rounded(low_bits[group])
                    scale_bits[group] = rounded(scale_bits[group])
                    zero_points_part[group] = _u16(low_bits[group] >> _u32(16))
                    scales_part[group] = _u16(scale_bits[group] >> _u32(16))
            else:
                for group in range(groups):
                    zero_points_part[group] = low_bits[group]
                    scales_part[group] = scale_bits[group]
            for group in range(groups):
                zero = low[group]
                step = scale[group]
                for index in range(GROUP):
                    code = (numbers[group, index] - zero) / step
                    # Written like this, a NaN (from 0/0 in a constant group) becomes 0, as in torch's conversion.
                    code = code if code > _f32(0) else _f32(0)
                    code = code if code < _f32(15) else _f32(15)
                    # Adding 2^23 rounds half to even and leaves the integer in the low bits.
                    numbers[group, index] = code + _f32(8388608)
            for index in range(part.size):
                codes[index] = _u8(bits[index])
            target = packed[first * GROUP // 2 : (first + groups) * GROUP // 2]
            for index in range(target.size):
                pair = pairs[index]
                target[index] = _u8(pair | (pair >> _u16(4)))
        return largest

    return kernel  # type: ignore[no-any-return]


def round_to_bfloat16(source: Bits32, target: Bits16) -> int:
    """Round float32 to bfloat16, ties to even.

    Args:
        source: bits of n numbers.
        target: receives the bits of n bfloat16.

    Returns:
        Bits of the largest magnitude in the source. From ``OVERFLOWS_BFLOAT16`` on, the target contains infinity, or
        bits without meaning where the source is NaN.
    """
    return int(_round_to_bfloat16(source, target))


def largest_magnitude(source: Bits32) -> int:
    """Bits of the largest magnitude of numbers in float32, given by their bits; NaN is larger than infinity."""
    return int(_largest_magnitude(source))


def _fresh_buffer(_: str, size: int) -> NDArray[np.uint8]:
    return np.empty(size, np.uint8)


def quantize_uint4(
    source: Bits32,
    *,
    round_weights: bool,
    round_scales: bool,
    buffer: Callable[[str, int], NDArray[np.uint8]] = _fresh_buffer,
) -> tuple[dict[str, NDArray[Any]], int]:
    """Quantize float32 to uint4 in groups of 64, as SDNQ does.

    Args:
        source: bits of 64·n numbers.
        round_weights: whether to round the numbers to bfloat16 first.
        round_scales: whether scales and zero points become bfloat16; if not, they are float32.
        buffer: returns memory of so many bytes for a part.

    Returns:
        SDNQ's parts by name: ``weight``, 32·n bytes with the first code of each pair in the low half, and the bits of
        n values of ``scale`` and ``zero_point``; and the bits of the largest magnitude in the source. The parts have
        no meaning if that is at least ``OVERFLOWS_BFLOAT16`` when weights are rounded, ``INFINITE`` when not.
    """
    dtype: np.dtype[Any] = np.dtype(np.uint16 if round_scales else np.uint32)
    scale_bytes = source.size // GROUP * dtype.itemsize
    packed = buffer("weight", source.size // 2)
    scales, zero_points = (buffer(part, scale_bytes).view(dtype) for part in ("scale", "zero_point"))
    largest = _uint4_kernel(round_weights, round_scales)(source, packed, scales, zero_points)
    return {"weight": packed, "scale": scales, "zero_point": zero_points}, int(largest)


def compile_kernels(*, round_weights: bool) -> None:
    """Compile, or load from the cache, what a conversion will call, before its threads start.

    Args:
        round_weights: as ``quantize_uint4`` will be called.
    """
    source = np.zeros(GROUP, np.uint32)
    round_to_bfloat16(source, np.empty(GROUP, np.uint16))
    for round_scales in (True, False):
        quantize_uint4(source, round_weights=round_weights, round_scales=round_scales)


def widen(data: NDArray[np.uint8], dtype: str) -> Bits32:
    """The bits of float32 that equal numbers of another dtype; float64 is rounded, as torch rounds it on the way.

    Args:
        data: the bytes of the numbers.
        dtype: ``F32``, ``BF16``, ``F16`` or ``F64``.
    """
    match dtype:
        case "F32":
            return data.view(np.uint32)
        case "BF16":
            return data.view(np.uint16).astype(np.uint32) << np.uint32(16)
        case "F16":
            return data.view(np.float16).astype(np.float32).view(np.uint32)
        case "F64":
            with np.errstate(over="ignore"):
                return data.view(np.float64).astype(np.float32).view(np.uint32)
    raise ValueError(f"{dtype} ({BITS[dtype]} bits) is not a dtype of weights")
