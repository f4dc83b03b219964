"""The periodic-grid score: how strong a pattern that repeats every 8, 16 or 32 pixels an image has, in grey levels.

Where quantization goes wrong, a pattern locked to the model's own grid lies over the image. Such a pattern stands at a
few known frequencies alone: the multiples of 1/32 of a cycle in a pixel, which hold those of 1/16 and 1/8. What an
image shows spreads over all frequencies around. So the score looks at each of these frequencies, takes the power
there, and counts what stands above the neighbourhood.

A candidate is held against its original in two ways, and at each frequency the one with the lower neighbourhood counts:
their difference, in which all that they share is gone, if the candidate is nearly a copy; the candidate alone, if it
shows something else. Where the original itself has a peak, that much and more does not count.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import fft

#: Pixels of an image token (an 8-fold autoencoder under patches of 2x2), half and twice of it, in the order of choice:
#: the lattice of the largest one holds the others.
PERIODS = (32, 16, 8)
#: Bins between frequencies of the lattice that leave some of the neighbourhood free of the lattice's own peaks.
_LEAST_SPACING = 4
#: Bins to each side that make the neighbourhood. A peak under a Hann window is one bin wide to each side.
_REACH = 6
#: Times the mean of the neighbourhood that power must have to count. In noise, power is distributed exponentially, and
#: the largest of 512 frequencies comes to about log(512) = 6.2 times the mean.
_THRESHOLD = 6.0
#: The same for what counts as a peak of the original; 9 bins are looked at for each frequency.
_OWN_THRESHOLD = 12.0
#: Times the original's peak that are taken off: a copy with the phase reversed differs by twice the amplitude.
_OWN_SHARE = 4.0
#: Likewise in the difference, times the part of the background that the copy did not keep. Measured: with 2 sharpened
#: copies score, with 8 patterns on pages of text are found as well.
_LEFT_SHARE = 8.0
#: The mean of an exponential distribution over its median.
_MEAN_OVER_MEDIAN = 1 / math.log(2)
#: Orthonormal axes of colour: grey, red against blue, green against both. Grey takes most of a photograph's power, so
#: that a weak pattern of one colour still stands out in the others. Energy is kept: the sum over the axes is that over
#: the channels.
_AXES = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]]) / np.sqrt([[3], [2], [6]])


@dataclass(frozen=True)
class Levels:
    """Power at each frequency, and what it is held against; arrays of shape (3, frequencies), in levels squared."""

    power: NDArray[np.float64]
    background: NDArray[np.float64]
    """The neighbourhood's mean, taken from its median, which peaks do not move."""
    highest: NDArray[np.float64]
    """The neighbourhood's largest."""


@dataclass(frozen=True)
class LatticeSpectrum:
    """The spectrum of an image around the frequencies of the lattice."""

    patches: NDArray[np.complex64]
    """Amplitudes in levels, of shape (3, frequencies, bins of a neighbourhood); half of the plane, without 0."""
    centre: NDArray[np.bool_]
    """Which bins of a neighbourhood belong to the peak."""
    weights: NDArray[np.float64]
    """2 for each frequency that stands for its conjugate, too; else 1."""

    @cached_property
    def levels(self) -> Levels:
        """Of the image alone."""
        return _levels(self.patches, self.centre)


def periodic_grid_score(original: NDArray[np.uint8], candidate: NDArray[np.uint8]) -> float | None:
    """Root of the mean square, over pixels and channels, of the periodic pattern that only the candidate has.

    Args:
        original: image of shape (height, width, 3).
        candidate: image of the same shape.

    Returns:
        Grey levels of 0..255, 0 for none; None where the image is too small to tell, below 32 pixels a side.

    Raises:
        ValueError: the shapes differ, or are none of an RGB image.
    """
    if original.shape != candidate.shape:
        raise ValueError(f"images of {original.shape} and {candidate.shape} cannot be compared")
    spectra = lattice_spectrum(original), lattice_spectrum(candidate)
    return None if spectra[0] is None or spectra[1] is None else added_score(spectra[0], spectra[1])


def own_periodic_score(image: NDArray[np.uint8]) -> float | None:
    """The same for all periodic patterns that one image has, held against its own neighbouring frequencies.

    Args:
        image: of shape (height, width, 3).

    Returns:
        Grey levels of 0..255; None where the image is too small to tell.

    Raises:
        ValueError: the shape is none of an RGB image.
    """
    spectrum = lattice_spectrum(image)
    return None if spectrum is None else own_score(spectrum)


def added_score(original: LatticeSpectrum, candidate: LatticeSpectrum) -> float:
    """:func:`periodic_grid_score` of images whose spectra are known."""
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
    # The bins beside the lattice as well: the original's structure may have nearly the lattice's period.
    highest = (np.abs(original.patches[..., original.centre]) ** 2).max(axis=-1)
    # Of a structure that the difference lacks, a near copy has kept all but what its background tells.
    left = np.divide(difference.background, known, out=np.ones_like(known), where=known > 0)
    share = np.where(closer, np.minimum(_OWN_SHARE, _LEFT_SHARE * left), _OWN_SHARE)
    own = np.where(highest > _OWN_THRESHOLD * known, share * (highest - known), 0)
    return _root(_excess(chosen) - own, candidate.weights)


def own_score(spectrum: LatticeSpectrum) -> float:
    """:func:`own_periodic_score` of an image whose spectrum is known."""
    return _root(_excess(spectrum.levels), spectrum.weights)


def lattice_spectrum(image: NDArray[np.uint8]) -> LatticeSpectrum | None:
    """Amplitudes at and around the frequencies of the lattice.

    The image is cut to whole periods, so that the lattice falls on bins, and seen through a Hann window, so that its
    borders, which do not meet, make no cross.

    Args:
        image: of shape (height, width, 3).

    Returns:
        The spectrum; None where the image holds too few periods of any of :data:`PERIODS`.

    Raises:
        ValueError: the shape is none of an RGB image.
    """
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"an array of {image.shape} is no RGB image")
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
    # The other half of the plane holds the conjugates; on its two border columns, the other half of each column.
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
    """What stands above the neighbourhood: above chance, and above every single bin of it."""
    excess: NDArray[np.float64] = levels.power - np.maximum(_THRESHOLD * levels.background, levels.highest)
    return excess


def _root(excess: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    """The amplitude that holds this energy; a mean over the channels."""
    return float(np.sqrt((np.maximum(excess, 0) * weights).sum() / len(_AXES)))
