"""The periodic-grid score: what it is of known patterns, and what it does not take for one."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import ImageFilter

from converter.measurement.comparison.periodic import PERIODS, added_score, lattice_spectrum, own_score
from scripts.periodic_images import PATTERNS, draw_clouds, filtered, pattern, scenes, to_pixels
from scripts.periodic_score import area, report, run_scene
from tests.cases import check_cases

Pixels = NDArray[np.uint8]


def added(original: Pixels, candidate: Pixels) -> float | None:
    """The score of what only the candidate has; None for small images."""
    spectra = lattice_spectrum(original), lattice_spectrum(candidate)
    return added_score(spectra[0], spectra[1]) if spectra[0] and spectra[1] else None


def own(image: Pixels) -> float | None:
    """The score of one image; None for a small one."""
    spectrum = lattice_spectrum(image)
    return own_score(spectrum) if spectrum else None


def clouds(seed: int, side: int = 256) -> Pixels:
    """An image with a photograph's spectrum."""
    return draw_clouds(np.random.default_rng(seed), side)


def with_pattern(image: Pixels, shape: str, period: int, amplitude: float) -> Pixels:
    """The image under a pattern of that many levels."""
    drawn = pattern(shape, period, max(image.shape))[: image.shape[0], : image.shape[1]]
    return to_pixels(image + amplitude * (drawn if drawn.ndim == 3 else drawn[..., None]))


@pytest.mark.parametrize("period", PERIODS)
@pytest.mark.parametrize("shape", [shape for shape in PATTERNS if shape != "sinusoid, half the image"])
@pytest.mark.parametrize("size", [(128, 128), (140, 333)])
def test_the_score_of_a_pattern_is_its_strength(shape: str, period: int, size: tuple[int, int]) -> None:
    flat = np.full((*size, 3), 120, np.uint8)
    candidate = with_pattern(flat, shape, period, 8)
    # Borders that are no whole periods are cut off.
    whole = candidate[: size[0] // 32 * 32, : size[1] // 32 * 32]
    strength = np.sqrt(np.mean(whole.var(axis=(0, 1))))
    assert (added(flat, candidate), own(candidate)) == pytest.approx((strength, strength), rel=0.01)


def test_nothing_is_none() -> None:
    image = clouds(3)
    flat = np.full((96, 64, 3), 7, np.uint8)
    assert (added(image, image), added(image[:31], image[:31]), own(image[:1, :1])) == (0, None, None)
    assert (added(flat, flat + np.uint8(9)), own(flat)) == pytest.approx((0, 0), abs=1e-3)


def test_images_that_cannot_be_scored_are_refused() -> None:
    with pytest.raises(ValueError, match="shapes"):
        added(clouds(1)[:64], clouds(1)[:96])
    for image in (clouds(1)[..., 0], clouds(1)[..., :2]):
        with pytest.raises(ValueError, match="is not an RGB image"):
            own(image)


def page_of_words(seed: int, side: int = 512, spacing: int = 32) -> Pixels:
    """Lines of dark words of random lengths, at the spacing of the lattice."""
    random = np.random.default_rng(seed)
    page = random.normal(235, 2, (side, side))
    for top in range(8, side - 16, spacing):
        left = int(random.integers(4, 30))
        while left < side - 40:
            width = int(random.integers(10, 70))
            page[top : top + 12, left : left + width] = random.normal(40, 2, (12, len(page[top, left : left + width])))
            left += width + int(random.integers(6, 14))
    return to_pixels(np.repeat(page[..., None], 3, axis=2))


def test_scores_of_patterns_and_of_what_is_none() -> None:
    """Of an image, another one, a change of that and a pattern over it: what is added, and what it has of its own.

    Structure that a copy keeps of the original does not count as a pattern, and does not hide one. A pattern of 8
    levels scores about 4.
    """
    images = {f"clouds {seed}": clouds(seed, 512) for seed in (1, 2)}
    images |= {f"words {seed}": page_of_words(seed) for seed in (5, 6)}
    images |= {f"wall {period}": with_pattern(clouds(4), "lines", period, 60) for period in PERIODS}
    images |= {"flat": np.full((64, 70, 3), 120, np.uint8), "odd": clouds(5)}
    changes: dict[str, Callable[[Pixels], Pixels]] = {
        "kept": np.copy,
        "contrast": lambda image: to_pixels(128 + 1.2 * (image - 128.0)),
        "reversed": lambda image: to_pixels(255.0 - image),
        "blur": lambda image: filtered(image, ImageFilter.GaussianBlur(1)),
        "moved": lambda image: np.roll(image, (3, 2), (0, 1)),
    }

    def outcome(
        original: str, other: str, change: str, shape: str, period: int, amplitude: float
    ) -> list[float | None]:
        candidate = with_pattern(changes[change](images[other]), shape, period, amplitude)
        return [score and round(score, 2) for score in (added(images[original], candidate), own(candidate))]

    check_cases("periodic_cases.jsonl", outcome)


def test_neighbourhoods_are_those_of_the_whole_spectrum() -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 101, 3)).astype(np.uint8)
    spectrum = lattice_spectrum(image)
    assert spectrum is not None
    grey = image[:, :96].sum(axis=2) / np.sqrt(3)
    window = np.outer(*(1 - np.cos(2 * np.pi * np.arange(length) / length) for length in (64, 96)))
    whole = np.fft.fft2((grey - grey.mean()) * window) / (64 * 96)
    # Of 16 x 16 frequencies, zero is left out, three are their own conjugates, and of the others one of two is there.
    assert [spectrum.weights.tolist().count(weight) for weight in (1, 2)] == [3, 126]
    rows, columns = np.meshgrid(np.arange(-2, 3), np.arange(-4, 5), indexing="ij")
    at = {
        tuple(np.round(whole[(4 * row + rows) % 64, (6 * column + columns) % 96].ravel(), 2).tolist())
        for row in range(16)
        for column in range(16)
    }
    found = {tuple((np.round(patch.astype(complex), 2)).tolist()) for patch in spectrum.patches[0]}
    assert len(found) == 129
    assert found <= at


def test_a_large_image_takes_seconds() -> None:
    image = np.random.default_rng(0).integers(0, 256, (2048, 2048, 3)).astype(np.uint8)
    started = time.process_time()
    assert added(image, image[::-1]) is not None
    assert time.process_time() - started < 2


def test_area_counts_ties_half() -> None:
    assert (area([1, 2], [0, 0]), area([0, 1], [0, 1]), area([0], [1, 1])) == (1, 0.5, 0)


def test_patterns_are_told_from_everything_else() -> None:
    chosen = [scene for scene in scenes(256, 22) if scene.natural]
    found = report([trial for scene in enumerate(chosen) for trial in run_scene(scene, side=256, amplitudes=(2, 8))])
    assert len(chosen) == 4
    aligned, drifted = found["natural, aligned"], found["natural, drifted"]
    assert aligned["area_by_amplitude"]["8"] > 0.98
    assert aligned["area_by_amplitude"]["2"] > 0.9
    assert drifted["area_by_amplitude"]["8"] > 0.9
    assert aligned["clean_score_by_change"]["JPEG 80"]["median"] < 0.2
