# mypy: allow-untyped-defs, no-check-untyped-defs
"""The innermost loop of calibrated rounding: a block of columns, whose errors are fed forward within each row.

As in ``scale_search``, up to 16 rows lie side by side, and what comes of one does not depend on the others.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from converter.conversion.kernels.fused import OPTIONS
from converter.conversion.kernels.scale_search import LANES, _restore, _round


@njit(**OPTIONS)
def _subtract(target, errors, ratio):
    for lane in range(errors.size):
        target[lane] -= errors[lane] * ratio


@njit(**OPTIONS)
def _feed(wanted, ratios, scales, zeros, least, most, round_result, all_codes, all_restored):
    rows, width = wanted.shape
    lanes = min(LANES, rows)
    numbers = np.empty((width, lanes), np.float32)
    codes, restored, errors = np.empty(lanes, np.float32), np.empty(lanes, np.float32), np.empty(lanes, np.float32)
    bits = restored.view(np.uint32)
    for first in range(0, rows, lanes):
        for lane in range(lanes):
            for column in range(width):
                numbers[column, lane] = wanted[first + lane, column]
        own_scales, own_zeros = scales[first : first + lanes], zeros[first : first + lanes]
        for column in range(width):
            _restore(numbers[column], own_scales, own_zeros, least, most, codes, restored)
            if round_result:
                _round(bits)
            for lane in range(lanes):
                errors[lane] = numbers[column, lane] - restored[lane]
                all_codes[first + lane, column] = np.uint8(codes[lane] - least)
                all_restored[first + lane, column] = restored[lane]
            for later in range(column + 1, width):
                _subtract(numbers[later], errors, ratios[column, later])


def feed_errors(
    wanted: NDArray[np.float32],
    ratios: NDArray[np.float32],
    scales: NDArray[np.float32],
    zero_points: NDArray[np.float32],
    codes: NDArray[np.uint8],
    restored: NDArray[np.float32],
    *,
    least: int,
    most: int,
    round_result: bool,
) -> None:
    """Choose codes column by column, and let the later ones make up for the errors of the earlier ones.

    Args:
        wanted: the numbers to come near to, ``[rows, width]``.
        ratios: what an error in a column changes in another one, ``[width, width]``; only later columns count.
        scales: of each row.
        zero_points: of each row; 0 for signed codes.
        codes: receives the codes, counted from the least one, of the shape of the numbers.
        restored: receives the numbers that SDNQ restores from them.
        least: the least code.
        most: the largest code.
        round_result: whether restored numbers are bfloat16.
    """
    ends: tuple[Any, Any] = np.float32(least), np.float32(most)
    # Rows that do not fill the lanes come last, and have as many lanes as there are.
    full = len(wanted) - len(wanted) % LANES
    for rows in (slice(0, full), slice(full, None)):
        if len(wanted[rows]):
            _feed(
                wanted[rows], ratios, scales[rows], zero_points[rows], *ends, round_result, codes[rows], restored[rows]
            )
