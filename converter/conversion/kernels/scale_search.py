# mypy: allow-untyped-defs, no-check-untyped-defs
"""The search for scales and zero points with the least squared error: same codes, same shapes, a smaller error.

A group of numbers x is stored as codes c with a scale s and a zero point z, and restored as z + c·s. SDNQ takes s and z
from minimum and maximum. Here several ranges that clip some numbers are tried, and from the most promising one, s and z
are fitted to the codes by least squares and codes to s and z, in turn. A choice replaces SDNQ's only if it lowers the
squared error of the numbers that SDNQ restores, against the source as it is.

Up to 16 groups lie side by side, number by number, so that each loop below runs over many groups at once and LLVM turns
it into vector instructions. The sums of a group are added up in one order, whatever groups are beside it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from converter.conversion.kernels.fused import OPTIONS, rounded

#: Groups that lie side by side: as many float32 as fit into the largest vector register.
LANES = 16
#: Numbers of each group that are restored at a time; a power of two.
ROWS = 16
#: Codes by which a range with a zero point is too long for its codes, at each end.
ENDS = np.array([0.0, 0.5, 1.0], np.float32)
#: The same where zero is the middle of the range.
SYMMETRIC_ENDS = np.array([0.0, 0.3, 0.6, 0.9, 1.2, 1.5, 1.8, 2.1], np.float32)
#: Times that scale and zero point are fitted to the codes, at most.
FITS = 3
#: What an error must be multiplied by to be lower for certain: differences are float32, sums of their squares float64.
CERTAINLY_LOWER = 1 - 2.0**-20

#: 1.5 times 2^23: adding it rounds half to even, for negative numbers, too.
_ROUNDING = np.float32(12582912)
_f32, _f64 = np.float32, np.float64


@intrinsic
def _fused(_context, _factor, _other, _summand):
    """A product and a sum with one rounding, as torch's vector instructions compute them."""

    def generate(_context, builder, _signature, arguments):
        return builder.fma(*arguments)

    return types.float32(types.float32, types.float32, types.float32), generate


@njit(**OPTIONS)
def _restore(numbers, scales, zeros, least, most, codes, restored):
    for index in range(numbers.size):
        code = (numbers[index] - zeros[index]) / scales[index]
        # Written like this, a NaN becomes the least code.
        code = code if code > least else least
        code = code if code < most else most
        whole = (_f32(code) + _ROUNDING) - _ROUNDING
        codes[index] = whole
        restored[index] = _fused(whole, scales[index], zeros[index])


@njit(**OPTIONS)
def _round(bits):
    for index in range(bits.size):
        bits[index] = rounded(bits[index])


@njit(**OPTIONS)
def _add_squares(numbers, restored, weights, errors):
    for index in range(numbers.size):
        difference = _f64(restored[index] - numbers[index])
        if weights is None:
            errors[index] += difference * difference
        else:
            errors[index] += difference * difference * weights[index]


@njit(**OPTIONS)
def _add_differences(numbers, restored, codes, weights, differences, moments):
    for index in range(numbers.size):
        difference = _f32(restored[index] - numbers[index])
        if weights is not None:
            difference *= weights[index]
        differences[index] += difference
        moments[index] += codes[index] * difference


@njit(**OPTIONS)
def _add_codes(codes, weights, sums, squares):
    for index in range(codes.size):
        code = codes[index] if weights is None else codes[index] * weights[index]
        sums[index] += code
        squares[index] += code * codes[index]


@njit(**OPTIONS)
def _fold(values, lanes):
    """Add up the numbers of each lane, in place, by halves."""
    rows = ROWS // 2
    while rows:
        for index in range(rows * lanes):
            values[index] += values[index + rows * lanes]
        rows //= 2


@njit(**OPTIONS)
def _measure(numbers, weights, scales, zeros, least, most, round_result, lanes, work, errors, sums):
    """Choose codes for each group, and compute their error and what a fit needs.

    ``numbers`` has the groups side by side, and so have their ``weights``; ``scales`` and ``zeros`` repeat theirs ROWS
    times. ``errors`` receives the squared errors, ``sums`` those of differences, codes times differences, codes, and
    their squares.
    """
    codes, restored = work[0], work[1]
    bits = work[1].view(np.uint32)
    errors[:] = 0
    sums[:] = 0
    width = ROWS * lanes
    for first in range(0, numbers.size, width):
        part = numbers[first : first + width]
        size = part.size
        own = None if weights is None else weights[first : first + width]
        _restore(part, scales, zeros, least, most, codes, restored)
        if round_result:
            _round(bits)
        _add_squares(part, restored, own, errors)
        _add_differences(part, restored, codes, own, sums[0], sums[1])
        _add_codes(codes[:size], own, sums[2], sums[3])
    _fold(errors, lanes)
    for kind in range(4):
        _fold(sums[kind], lanes)


@njit(**OPTIONS)
def _known_error(numbers, codes, weights, scale, zero, least, round_result):
    """The squared error of the codes that a group has."""
    one = np.empty(1, np.float32)
    error = _f64(0)
    for index in range(numbers.size):
        one[0] = _fused(_f32(codes[index]) + least, scale, zero)
        if round_result:
            _round(one.view(np.uint32))
        difference = _f64(one[0] - numbers[index])
        error += difference * difference if weights is None else difference * difference * weights[index]
    return error


@njit(**OPTIONS)
def _repeat(values, lanes, round_values):
    """Round the first values as they are stored, and repeat them in every row."""
    if round_values:
        _round(values[:lanes].view(np.uint32))
    for row in range(1, ROWS):
        for lane in range(lanes):
            values[row * lanes + lane] = values[lane]


@njit(**OPTIONS)
def _start(step, group_scales, group_zeros, has_zero, most, ends, scales, zeros):
    """A range of so many more codes at its ends, which do not exist, so that numbers there are clipped."""
    low, high = (ends[step // ends.size] if has_zero else _f32(0)), ends[step % ends.size]
    for lane in range(group_scales.size):
        scales[lane] = group_scales[lane] * (most / (most + low + high))
        zeros[lane] = group_zeros[lane] + low * scales[lane]


@njit(**OPTIONS)
def _note_better(errors, scales, zeros, best, best_scales, best_zeros):
    for lane in range(best.size):
        if errors[lane] < best[lane] * CERTAINLY_LOWER and scales[lane] > 0:
            best[lane] = errors[lane]
            best_scales[lane] = scales[lane]
            best_zeros[lane] = zeros[lane]


@njit(**OPTIONS)
def _fit(errors, sums, count, scales, zeros, has_zero, round_scales, is_start, promises, fits):
    """Fit scale and zero point to the codes by least squares; of several starts, keep the fit that promises most.

    ``fits`` and ``promises``, the errors to be expected, have the new ones first, and then those to keep.
    """
    for lane in range(promises.shape[1]):
        difference, moment = _f64(sums[0, lane]), _f64(sums[1, lane])
        total, squares = _f64(sums[2, lane]), _f64(sums[3, lane])
        if has_zero:
            change = (total * difference - count * moment) / (count * squares - total * total)
            shift = -(difference + change * total) / count
        else:
            change = -moment / squares
            shift = 0.0
        promises[0, lane] = errors[lane] + change * moment + shift * difference
        fits[0, lane] = scales[lane] + change
    if round_scales:
        _round(fits[0].view(np.uint32))
    for lane in range(promises.shape[1]):
        shift = 0.0
        if has_zero:
            # The zero point that fits the scale as it is stored.
            shift = -(sums[0, lane] + (_f64(fits[0, lane]) - scales[lane]) * sums[2, lane]) / count
        fits[1, lane] = zeros[lane] + shift
    for lane in range(promises.shape[1]):
        is_best = promises[0, lane] < promises[1, lane] or not is_start
        promises[1, lane] = promises[0, lane] if is_best else promises[1, lane]
        fits[2, lane] = fits[0, lane] if is_best else fits[2, lane]
        fits[3, lane] = fits[1, lane] if is_best else fits[3, lane]


@njit(**OPTIONS)
def _choose_codes(numbers, codes, scale, zero, least, most):
    for index in range(numbers.size):
        code = (numbers[index] - zero) / scale
        code = code if code > least else least
        code = code if code < most else most
        codes[index] = np.uint8((_f32(code) + _ROUNDING) - _ROUNDING - least)


@njit(**OPTIONS)
def _search(source, weights, all_codes, all_scales, all_zeros, has_zero, least, most, round_scales, ends):
    """``search_scales`` of groups that fill all lanes, or are fewer."""
    groups, length = source.shape
    lanes = min(LANES, groups)
    width = ROWS * lanes
    numbers = np.empty(length * lanes, source.dtype)
    work, sums = np.empty((2, width), np.float32), np.empty((4, width), np.float32)
    scales, zeros = np.empty(width, np.float32), np.empty(width, np.float32)
    fits, best_values = np.empty((4, lanes), np.float32), np.empty((2, lanes), np.float32)
    errors, known, best = np.empty(width, np.float64), np.empty(lanes, np.float64), np.empty(lanes, np.float64)
    promises = np.empty((2, lanes), np.float64)
    starts = ends.size * (ends.size if has_zero else 1)
    count, side_by_side = float(length), None
    if weights is not None:
        count = weights.sum()
        side_by_side = np.empty(length * lanes, np.float32)
        for index in range(length):
            side_by_side[index * lanes : (index + 1) * lanes] = weights[index]
    for first in range(0, groups, lanes):
        group_scales, group_zeros = all_scales[first : first + lanes], all_zeros[first : first + lanes]
        for lane in range(lanes):
            own = source[first + lane]
            for index in range(length):
                numbers[index * lanes + lane] = own[index]
            codes = all_codes[first + lane]
            scale, zero = group_scales[lane], group_zeros[lane]
            known[lane] = _known_error(own, codes, weights, scale, zero, least, round_scales)
        best[:] = known
        promises[1] = np.inf
        for step in range(starts + FITS):
            if step < starts:
                _start(step, group_scales, group_zeros, has_zero, most, ends, scales, zeros)
            else:
                scales[:lanes] = fits[2]
                zeros[:lanes] = fits[3]
            _repeat(scales, lanes, round_scales)
            _repeat(zeros, lanes, round_scales)
            _measure(numbers, side_by_side, scales, zeros, least, most, round_scales, lanes, work, errors, sums)
            _note_better(errors, scales, zeros, best, best_values[0], best_values[1])
            is_start = step < starts
            _fit(errors, sums, count, scales, zeros, has_zero, round_scales, is_start, promises, fits)
        for lane in range(lanes):
            if best[lane] < known[lane]:
                scale, zero = best_values[0, lane], best_values[1, lane]
                group_scales[lane] = scale
                group_zeros[lane] = zero
                _choose_codes(source[first + lane], all_codes[first + lane], scale, zero, least, most)


def search_scales(
    numbers: NDArray[Any],
    codes: NDArray[np.uint8],
    scales: NDArray[np.float32],
    zero_points: NDArray[np.float32] | None,
    *,
    bits: int,
    round_scales: bool,
    weights: NDArray[np.float32] | None = None,
) -> None:
    """Lower the squared error of quantized groups, in place.

    A group is left as it is where nothing lowers its error, or where its numbers are not finite. What comes of a group
    does not depend on the others.

    Args:
        numbers: the source, float32 or float64, ``[groups, length]``.
        codes: of the numbers, counted from the least one, of the same shape.
        scales: of the groups, as they are restored.
        zero_points: of the groups; None for signed codes, which have none.
        bits: of a code.
        round_scales: whether scales, zero points and restored numbers are bfloat16; if not, they are float32.
        weights: of the squared errors at the places of a group, ``[length]``; all are 1 if None.
    """
    has_zero = zero_points is not None
    zeros = zero_points if zero_points is not None else np.zeros_like(scales)
    least, most = (0, 2**bits - 1) if has_zero else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    ends = ENDS if has_zero else SYMMETRIC_ENDS
    if not numbers.size:
        return
    # Groups that do not fill the lanes come last, and have as many lanes as there are.
    full = len(numbers) - len(numbers) % LANES
    for groups in (slice(0, full), slice(full, None)):
        if len(numbers[groups]):
            own = codes[groups], scales[groups], zeros[groups]
            _search(numbers[groups], weights, *own, has_zero, _f32(least), _f32(most), round_scales, ends)
