"""The periodic-grid score: the strength of patterns that repeat every 8, 16 or 32 pixels, in grey levels.

Bad quantization shows as a pattern over the whole image, locked to the model's own grid. Such a pattern has power at a
few known frequencies only: the multiples of 1/32 cycles per pixel, which include those of 1/16 and 1/8. The content of
an image has power at all frequencies. So the score compares the power at each known frequency with its neighbourhood,
and counts the excess.

A candidate is compared with its original in two ways, and at each frequency the one with the lower neighbourhood
counts: their difference, if the candidate is nearly a copy, since everything that they share vanishes in it; or the
candidate alone, if it shows something else. Where the original has a peak itself, that much and more does not count.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import fft

#: Pixels of an image token (an 8-fold autoencoder under patches of 2x2), half and twice of it. The first that fits is
#: used: its lattice includes those of the others.
PERIODS = (32, 16, 8)
#: Bins between frequencies of the lattice that leave some of the neighbourhood free of the lattice's own peaks.
_LEAST_SPACING = 4
#: Bins of the neighbourhood to each side. A peak under a Hann window is one bin wide to each side.
_REACH = 6
#: Power counts from this many times the mean of the neighbourhood. In noise, power is distributed exponentially, and
#: the largest of 512 frequencies comes to about log(512) = 6.2 times the mean.
_THRESHOLD = 6.0
#: The same for a peak of the original; 9 bins are compared for each frequency.
_OWN_THRESHOLD = 12.0
#: The original's peak is subtracted this many times: a copy of reversed phase differs by twice the amplitude.
_OWN_SHARE = 4.0
#: Likewise in the difference, times the part of the background that the copy did not keep. Measured: with 2, sharpened
#: copies score; with 8, patterns on pages of text are still found.
_LEFT_SHARE = 8.0
#: The mean of an exponential distribution over its median.
_MEAN_OVER_MEDIAN = 1 / math.log(2)
#: Orthonormal axes of colour: grey, red against blue, green against both. Grey takes most of a photograph's power, so
#: that a weak pattern of one colour is still visible in the others. Energy is kept: the sum over the axes is that over
#: the channels.
_AXES = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]]) / np.sqrt([[3], [2], [6]])


@dataclass(frozen=True)
class Levels:
    """Power at each frequency and around it; arrays of shape (3, frequencies), in levels squared."""

    power: NDArray[np.float64]
    background: NDArray[np.float64]
    """The mean of the neighbourhood, computed from its median, which peaks do not change."""
    highest: NDArray[np.float64]
    """The maximum of the neighbourhood."""


@dataclass(frozen=True)
class LatticeSpectrum:
    """The spectrum of an image around the frequencies of the lattice."""

    patches: NDArray[np.complex64]
    """Amplitudes in levels, of shape (3, frequencies, bins of a neighbourhood); half of the plane, without 0."""
    centre: NDArray[np.bool_]
    """Which bins of a neighbourhood belong to the peak."""
    weights: NDArray[np.float64]
    """2 for each frequency that represents its conjugate, too; else 1."""

    @cached_property
    def levels(self) -> Levels:
        """The levels of the image alone."""
        return _levels(self.patches, self.centre)


def added_score(original: LatticeSpectrum, candidate: LatticeSpectrum) -> float:
    """Score the patterns that only the candidate has: a root mean square over pixels and channels, in grey levels."""
    alone = candidate.levels
    difference = _levels(candidate.patches - original.patches, candidate.centre)
    closer = difference.background < alone.background
    choose: Callable[..., NDArray[np.float64]] = np.where
    chosen = Levels(
        choose(closer, difference.power, alone.power),
        choose(closer, difference.background, alone.background),
        choose(closer, difference.highest, alone.highest),
    )
    known = original.levels.background
    # The bins next to the lattice count, too: the original's structure may have nearly the lattice's period.
    highest = (np.abs(original.patches[..., original.centre]) ** 2).max(axis=-1)
    # A near copy has kept a structure that the difference lacks, except for the share that its background shows.
    left = np.divide(difference.background, known, out=np.ones_like(known), where=known > 0)
    share = np.where(closer, np.minimum(_OWN_SHARE, _LEFT_SHARE * left), _OWN_SHARE)
    own = np.where(highest > _OWN_THRESHOLD * known, share * (highest - known), 0)
    return _root(_excess(chosen) - own, candidate.weights)


def own_score(spectrum: LatticeSpectrum) -> float:
    """Score all patterns of one image, compared with its own neighbouring frequencies; as for ``added_score``."""
    return _root(_excess(spectrum.levels), spectrum.weights)


def lattice_spectrum(image: NDArray[np.uint8]) -> LatticeSpectrum | None:
    """Compute the amplitudes at and around the frequencies of the lattice.

    The image is cut to whole periods, so that the lattice falls on bins. It is multiplied by a Hann window, so that its
    borders, which do not match, leave no cross in the spectrum.

    Args:
        image: of shape (height, width, 3).

    Returns:
        The spectrum; None if the image has too few periods of each of :data:`PERIODS`.

    Raises:
        ValueError: the shape is not that of an RGB image.
    """
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"an array of {image.shape} is not an RGB image")
    sides = image.shape[:2]
    period = next((period for period in PERIODS if min(sides) // period >= _LEAST_SPACING), None)
    if period is None:
        return None
    height, width = (side // period * period for side in sides)
    window = _hann(height)[:, None] * _hann(width)[None, :]
    rows, columns, bins, centre = _neighbourhoods(height, width, period)
    mirrored = (columns < 0) | (columns > width // 2)
    at = np.where(mirrored, -rows, rows) % height, np.where(mirrored, -columns, columns) % width
    patches = np.empty((3, *rows.shape), np.complex64)
    for number, axis in enumerate(_AXES.astype(np.float32)):
        # One axis at a time: all of them at once would take three times the memory.
        plane = image[:height, :width] @ axis
        patches[number] = fft.rfft2((plane - plane.mean()) * window)[at] / (height * width)
    patches = np.where(mirrored, patches.conj(), patches)
    lone = (2 * bins[0] % height == 0) & (2 * bins[1] % width == 0)
    return LatticeSpectrum(patches, centre, np.where(lone, 1.0, 2.0))


def _hann(length: int) -> NDArray[np.float32]:
    """A periodic Hann window of mean 1, so that the amplitude of a pattern stays what it is."""
    return (1 - np.cos(2 * np.pi * np.arange(length) / length)).astype(np.float32)


def _neighbourhoods(
    height: int, width: int, period: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp], NDArray[np.bool_]]:
    """Rows and columns of all bins, of shape (frequencies, bins); those of the lattice; which belong to the peak."""
    spacings = height // period, width // period
    down, across = np.meshgrid(np.arange(period) * spacings[0], np.arange(period // 2 + 1) * spacings[1], indexing="ij")
    # The other half of the plane contains the conjugates; on its two border columns, the other half of each column.
    half = ((across > 0) & (across < width // 2)) | ((down > 0) & (down <= height // 2)) | ((across > 0) & (down == 0))
    bins = np.stack([down[half], across[half]])
    reach = [min(_REACH, spacing - 2) for spacing in spacings]
    steps = np.meshgrid(*(np.arange(-far, far + 1) for far in reach), indexing="ij")
    offsets = [step.ravel() for step in steps]
    centre = (np.abs(offsets[0]) <= 1) & (np.abs(offsets[1]) <= 1)
    return bins[0][:, None] + offsets[0], bins[1][:, None] + offsets[1], bins, centre


def _levels(patches: NDArray[np.complex64], centre: NDArray[np.bool_]) -> Levels:
    power = np.abs(patches) ** 2
    around = power[..., ~centre]
    measured = power[..., power.shape[-1] // 2], np.median(around, axis=-1) * _MEAN_OVER_MEDIAN, around.max(axis=-1)
    return Levels(*(figure.astype(np.float64) for figure in measured))


def _excess(levels: Levels) -> NDArray[np.float64]:
    """The power above the neighbourhood: above chance, and above every single bin of it."""
    excess: NDArray[np.float64] = levels.power - np.maximum(_THRESHOLD * levels.background, levels.highest)
    return excess


def _root(excess: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    """The amplitude of this energy; a mean over the channels."""
    return float(np.sqrt((np.maximum(excess, 0) * weights).sum() / len(_AXES)))
