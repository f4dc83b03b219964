"""Sums over a weight and what is restored of it, column by column, in float64.

Each column is added up from the first row to the last, whatever runs of rows arrive, on every machine: the vector
instructions of these loops work on several columns at a time, and never join two numbers of one column.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from converter.conversion.kernels.fused import OPTIONS, rounded, widen

#: Columns that are added up at a time; their sums, in float64, fill a quarter of a 48 KiB cache.
TILE = 512
#: Packed numbers that are taken at a time: they fill whole bytes in every format of SDNQ.
RUN = 8

Floats = NDArray[np.float32] | NDArray[np.float64]
Doubles = NDArray[np.float64]

_u64, _f32, _f64 = np.uint64, np.float32, np.float64


def _add_squares_of_rows(original: Floats, squares: Doubles) -> None:
    rows, width = original.shape
    for row in range(rows):
        for column in range(width):
            number = _f64(original[row, column])
            squares[column] += number * number


def _add_row(original: Floats, restored: Floats, noise: Doubles, dot: Doubles, length: Doubles) -> None:
    for column in range(original.size):
        wanted = _f64(original[column])
        got = _f64(restored[column])
        difference = got - wanted
        noise[column] += difference * difference
        dot[column] += wanted * got
        length[column] += got * got


_add_squares = njit(**OPTIONS)(_add_squares_of_rows)
_add = njit(inline="always")(_add_row)


def _add_rows(original: Floats, restored: Floats, noise: Doubles, dot: Doubles, length: Doubles) -> None:
    rows, width = original.shape
    for first in range(0, width, TILE):
        last = min(first + TILE, width)
        for row in range(rows):
            _add(
                original[row, first:last],
                restored[row, first:last],
                noise[first:last],
                dot[first:last],
                length[first:last],
            )


def _add_integer_rows(
    original: Floats,
    packed: NDArray[np.uint8],
    table: NDArray[np.uint64],
    flip: int,
    lowest: float,
    scales: NDArray[np.float32],
    zero_points: NDArray[np.float32],
    rounds: bool,
    noise: Doubles,
    dot: Doubles,
    length: Doubles,
) -> None:
    rows, width = original.shape
    group = original.size // scales.size
    run_bytes = len(table)
    codes = np.empty(TILE, np.uint8)
    runs = codes.view(np.uint64)
    restored = np.empty(TILE, np.float32)
    restored_bits = restored.view(np.uint32)
    for first in range(0, width, TILE):
        last = min(first + TILE, width)
        size = last - first
        for row in range(rows):
            start = row * width + first
            if run_bytes:
                part = packed[start // RUN * run_bytes : (start + size) // RUN * run_bytes]
                for run in range(size // RUN):
                    joined = _u64(0)
                    for position in range(run_bytes):
                        joined |= table[position, part[run * run_bytes + position]]
                    runs[run] = joined
            else:
                part = packed[start : start + size]
                for index in range(size):
                    codes[index] = part[index] ^ flip
            begin = 0
            while begin < size:
                number = (start + begin) // group
                end = min(size, (number + 1) * group - start)
                step = scales[number]
                zero = zero_points[number]
                # Slices, because these loops become vector instructions only if they begin at 0.
                some_codes, some = codes[begin:end], restored[begin:end]
                if rounds:
                    # A product of two bfloat16 is exact in float32.
                    for index in range(some.size):
                        some[index] = zero + (_f32(some_codes[index]) + lowest) * step
                else:
                    # torch rounds product and sum together, once.
                    for index in range(some.size):
                        some[index] = _f32(_f64(zero) + _f64(_f32(some_codes[index]) + lowest) * _f64(step))
                begin = end
            if rounds:
                for index in range(size):
                    restored_bits[index] = rounded(restored_bits[index])
            _add(original[row, first:last], restored[:size], noise[first:last], dot[first:last], length[first:last])


_compare = njit(**OPTIONS)(_add_rows)
_compare_integers = njit(**OPTIONS)(_add_integer_rows)


@dataclass(frozen=True)
class IntegerForm:
    """How SDNQ stores integers of at most eight bits."""

    table: NDArray[np.uint64]
    """``[n, 256]``: for each of the n bytes that hold ``RUN`` packed numbers, and for each of its values, the bits that
    it adds to the numbers, which have a byte each; ``[0, 256]`` where numbers are not packed."""
    flip: int
    """Where they are not packed: the bits of each byte to flip, so that the lowest number becomes 0."""
    lowest: int
    """The number that is stored as 0."""
    scale_dtype: str
    """The dtype of scales and zero points, in which SDNQ computes: ``BF16`` or ``F32``."""


class Squares:
    """The sum of the squares of a tensor.

    Args:
        width: numbers in a row.
    """

    def __init__(self, width: int) -> None:
        self._columns = np.zeros(width)

    def add(self, original: Floats) -> None:
        """Add the next rows; only the last call may end inside of a row.

        Args:
            original: the numbers, one after the other.
        """
        for rows in _in_rows(original, self._columns.size):
            _add_squares(rows, self._columns)

    @property
    def total(self) -> float:
        """The sum so far."""
        return _total(self._columns)


class Comparison:
    """Sums over a tensor and what is restored of it.

    Args:
        width: numbers in a row.
    """

    def __init__(self, width: int) -> None:
        self._columns = np.zeros((3, width))

    def add(self, original: Floats, restored: Floats) -> None:
        """Add the next rows; only the last call may end inside of a row.

        Args:
            original: numbers of the source, one after the other.
            restored: what is restored of them, in the same order.
        """
        width = self._columns.shape[1]
        for wanted, got in zip(_in_rows(original, width), _in_rows(restored, width), strict=True):
            _compare(wanted, got, *self._columns)

    def add_integers(self, original: Floats, parts: Mapping[str, NDArray[Any]], form: IntegerForm) -> None:
        """Add the next whole rows of a weight that is quantized to integers, restored as SDNQ restores it.

        Args:
            original: numbers of the source, one after the other.
            parts: the bytes of SDNQ's parts by name, ``weight``, ``scale`` and perhaps ``zero_point``. Each scale is
                that of as many numbers as every other, one after the other, of one row.
            form: how the integers are stored.
        """
        floats = {
            part: widen(parts[part].view(np.uint8), form.scale_dtype).view(np.float32)
            for part in ("scale", "zero_point")
            if part in parts
        }
        _compare_integers(
            original.reshape(-1, self._columns.shape[1]),
            parts["weight"].view(np.uint8),
            form.table,
            np.uint8(form.flip),
            np.float32(form.lowest),
            floats["scale"],
            floats.get("zero_point", np.zeros_like(floats["scale"])),
            form.scale_dtype == "BF16",
            *self._columns,
        )

    @property
    def noise(self) -> float:
        """The sum of the squared differences."""
        return _total(self._columns[0])

    @property
    def dot(self) -> float:
        """The sum of the products."""
        return _total(self._columns[1])

    @property
    def length(self) -> float:
        """The sum of the squares of what is restored."""
        return _total(self._columns[2])

    def noise_by_column(self, numbers: int) -> NDArray[np.float32]:
        """The sums of the squared differences, of so many numbers of a row together."""
        sums: NDArray[np.float64] = self._columns[0].reshape(-1, numbers).sum(1)
        return sums.astype(np.float32)


def _in_rows(numbers: NDArray[Any], width: int) -> list[NDArray[Any]]:
    """The whole rows, and what is left as a shorter one."""
    whole = numbers.size // width * width
    return [part for part in (numbers[:whole].reshape(-1, width), numbers[whole:].reshape(1, -1)) if part.size]


def _total(columns: Doubles) -> float:
    with np.errstate(invalid="ignore"):
        return float(columns.sum())
