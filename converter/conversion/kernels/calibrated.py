"""Calibrated rounding: codes that change what a linear layer computes as little as possible, for inputs like the given.

The inputs of a layer are known by their second moments H = mean(x·xᵀ), ``[channels, channels]``. An error D of a row of
weights then changes the output of the row by D·H·Dᵀ in the mean square. With H = R·Rᵀ and R upper triangular, that is
the squared length of D·R, to which a column of D adds only from its own place on. So columns are rounded from the
first to the last, and each is moved first by what makes up for the errors before it. This is the algorithm that GPTQ
published, written as nearest-plane rounding.

Columns are rounded in blocks: what the columns before a block ask of it is a product of matrices; within a block,
``error_feeding`` does it. A group's scale and zero point are searched when it is reached, for the numbers that are then
wanted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from converter.conversion.kernels.error_feeding import feed_errors
from converter.conversion.kernels.moments import Moments, MomentsBlock
from converter.conversion.kernels.scale_search import search_scales
from converter.conversion.planning.rounding import MOST_STEPS

#: Columns in a block, at most, unless a group is longer; products of matrices pay from about so many on.
BLOCK = 128
#: Rows that are calibrated at a time: products of matrices of another number of rows may have other bits.
CHUNK = 256
#: A row is calibrated if its error is at least so much smaller: more than float32 can be wrong about it.
NOTICEABLE = 0.01


def calibrate(
    numbers: NDArray[np.float32],
    codes: NDArray[np.uint8],
    scales: NDArray[np.float32],
    zero_points: NDArray[np.float32] | None,
    moments: Moments,
    *,
    bits: int,
    round_scales: bool,
) -> None:
    """Replace rows of a quantized weight, in place, where calibration makes their outputs noticeably more exact.

    Args:
        numbers: the source, ``[rows, channels]``.
        codes: its codes, counted from the least one, of the same shape.
        scales: of its groups, ``[rows, groups]``.
        zero_points: of its groups; None for signed codes.
        moments: of the inputs.
        bits: of a code.
        round_scales: whether scales, zero points and restored numbers are bfloat16; if not, they are float32.
    """
    zeros = np.zeros_like(scales) if zero_points is None else zero_points
    for first in range(0, len(numbers), CHUNK):
        rows = slice(first, first + CHUNK)
        rounding = _Rounding(numbers[rows], scales.shape[1], moments, bits, zero_points is not None, round_scales)
        rounding.run()
        before = moments_error(rounding.restore(codes[rows], scales[rows], zeros[rows]) - rounding.source, moments)
        after = moments_error(rounding.errors, moments)
        better = ((after < (1 - NOTICEABLE) * before) & rounding.is_near()).numpy()
        for old, new in ((codes, rounding.codes), (scales, rounding.scales), (zeros, rounding.zeros)):
            old[rows][better] = new[better]


def moments_error(errors: torch.Tensor, moments: Moments) -> torch.Tensor:
    """D·H·Dᵀ of each row, float64; ``errors`` is float32, ``[rows, channels]``."""
    total = torch.zeros(len(errors), dtype=torch.float64)
    for block in moments.blocks:
        own = errors[:, block.start : block.stop]
        total += (own @ block.hessian).mul_(own).sum(1, dtype=torch.float64)
    return total


class _Rounding:
    """The calibrated codes of some rows."""

    def __init__(
        self,
        numbers: NDArray[np.float32],
        groups: int,
        moments: Moments,
        bits: int,
        has_zero: bool,
        round_scales: bool,
    ) -> None:
        rows, channels = numbers.shape
        self.source = torch.from_numpy(numbers)
        self.errors = torch.empty_like(self.source)
        self.codes = np.empty((rows, channels), np.uint8)
        self.scales, self.zeros = np.zeros((rows, groups), np.float32), np.zeros((rows, groups), np.float32)
        self._group = channels // groups
        self._moments, self._bits, self._has_zero, self._round = moments, bits, has_zero, round_scales
        self._least = 0 if has_zero else -(2 ** (bits - 1))
        self._most = self._least + 2**bits - 1

    def run(self) -> None:
        """Round all columns."""
        for block, start, stop in self._columns():
            number, last = start // self._group, start + self._group
            wanted = self._wanted(start, stop)
            if start % self._group == 0:
                self._choose_scales(number, wanted if last == stop else self._wanted(start, last))
            root = block.root[start - block.start : stop - block.start, start - block.start : stop - block.start]
            inverse = torch.linalg.solve_triangular(root, torch.eye(stop - start), upper=True)
            restored = np.empty(wanted.shape, np.float32)
            codes = np.empty(wanted.shape, np.uint8)
            feed_errors(
                wanted.numpy(),
                (inverse / inverse.diagonal().unsqueeze(1)).numpy(),
                self.scales[:, number].copy(),
                self.zeros[:, number].copy(),
                codes,
                restored,
                least=self._least,
                most=self._most,
                round_result=self._round,
            )
            self.codes[:, start:stop] = codes
            self.errors[:, start:stop] = torch.from_numpy(restored) - self.source[:, start:stop]

    def is_near(self) -> torch.Tensor:
        """Of each row, whether the errors of all its groups are within ``MOST_STEPS``."""
        rows, groups = self.scales.shape
        source, errors = (tensor.view(rows, groups, self._group) for tensor in (self.source, self.errors))
        least, largest = source.aminmax(dim=2)
        span = largest - least if self._has_zero else torch.maximum(-least, largest)
        steps = torch.maximum(span / self._most, torch.from_numpy(self.scales))
        allowed = MOST_STEPS * steps * math.sqrt(self._group)
        return (torch.linalg.vector_norm(errors, dim=2) <= allowed).all(1)

    def _columns(self) -> Iterator[tuple[MomentsBlock, int, int]]:
        """Runs of columns, none of which reaches beyond its group, and the block of moments that has them."""
        for block in self._moments.blocks:
            start = block.start
            while start < block.stop:
                stop = min(start + BLOCK, block.stop, start - start % self._group + self._group)
                yield block, start, stop
                start = stop

    def _wanted(self, start: int, stop: int) -> torch.Tensor:
        """The numbers that make up best for the errors of the columns before; float32, ``[rows, columns]``."""
        wanted = self.source[:, start:stop].contiguous()
        # Errors reach as far as the block of moments that has the first column.
        block = next(block for block in self._moments.blocks if start < block.stop)
        before, after = start - block.start, min(stop, block.stop) - block.start
        if before:
            asked = self.errors[:, block.start : start] @ block.root[:before, before:after]
            root = block.root[before:after, before:after]
            wanted[:, : after - before] -= torch.linalg.solve_triangular(root, asked, upper=True, left=False)
        return wanted

    def _choose_scales(self, number: int, wanted: torch.Tensor) -> None:
        """Search scale and zero point of a group in each row, from those that SDNQ would take."""
        if self._has_zero:
            low, high = torch.aminmax(wanted, dim=1)
            scales, zeros = self._stored((high - low) / self._most), self._stored(low)
        else:
            scales = self._stored(wanted.abs().amax(1) / self._most)
            zeros = torch.zeros_like(scales)
        codes = ((wanted - zeros.unsqueeze(1)) / scales.unsqueeze(1)).nan_to_num_(0).round_()
        codes = codes.clamp_(self._least, self._most).sub_(self._least).to(torch.uint8)
        group = number * self._group
        search_scales(
            wanted.numpy(),
            codes.numpy(),
            scales.numpy(),
            zeros.numpy() if self._has_zero else None,
            bits=self._bits,
            round_scales=self._round,
            weights=self._moments.weights[group : group + self._group],
        )
        self.scales[:, number], self.zeros[:, number] = scales.numpy(), zeros.numpy()

    def _stored(self, values: torch.Tensor) -> torch.Tensor:
        return values.bfloat16().float() if self._round else values

    def restore(
        self, codes: NDArray[np.uint8], scales: NDArray[np.float32], zeros: NDArray[np.float32]
    ) -> torch.Tensor:
        """The numbers that SDNQ restores, float32, ``[rows, channels]``."""
        rows, channels = codes.shape
        grouped = torch.from_numpy(codes).float().add_(self._least).view(rows, -1, self._group)
        restored = torch.addcmul(torch.from_numpy(zeros).unsqueeze(2), grouped, torch.from_numpy(scales).unsqueeze(2))
        return self._stored(restored.view(rows, channels))
