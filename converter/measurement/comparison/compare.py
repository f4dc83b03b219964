"""Compare the images of the quantized model with those of the original."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from converter.console import SILENT, Reporter
from converter.errors import UsageError
from converter.measurement.comparison.images import read_pixels
from converter.measurement.comparison.pairs import ImagePair, find_pairs
from converter.measurement.comparison.perceptual import Lpips, NotMeasured
from converter.measurement.comparison.periodic import PERIODS, LatticeSpectrum, added_score, lattice_spectrum, own_score
from converter.measurement.comparison.pixels import pixel_methods, psnr_db, ssim
from converter.measurement.comparison.rapidocr_reader import RapidOcrReader
from converter.measurement.comparison.report import (
    FidelityReport,
    ImageFidelity,
    PairFidelity,
    PeriodicGrid,
    TextAccuracy,
)
from converter.measurement.comparison.text_accuracy import Readers, Reading, find_readers
from converter.threads import run_in_threads

Pixels = NDArray[np.uint8]
Result = TypeVar("Result")


def compare(
    original: Path,
    quantized: Path,
    *,
    baseline: Path | None = None,
    required: Mapping[str, Sequence[str]] | None = None,
    steps: int | None = None,
    lpips: bool = True,
    text: bool = True,
    reporter: Reporter = SILENT,
) -> FidelityReport:
    """Compare two folders of images, pair by pair.

    Args:
        original: folder of the original's images, named ``ID-SEED.png`` or ``ID-SEED-original.png``.
        quantized: folder of the quantized model's, named alike.
        baseline: folder of the original's images with another seed, to distinguish drift from damage.
        required: strings that the images must show, by id.
        steps: denoising steps of the images; None to take them from the files.
        lpips: whether to measure LPIPS, if it is installed.
        text: whether to read the images, if RapidOCR or tesseract is installed.
        reporter: shows progress and notes.

    Raises:
        MissingInput: a folder or a file cannot be read, or a folder has no images.
        UsageError: images have no counterpart or cannot be compared, or ``steps`` is not what they say.
    """
    pairs = find_pairs(original, quantized, baseline, reporter=reporter)
    return Comparison(required, steps, lpips=lpips, text=text).compare(pairs, reporter)


class Comparison:
    """The measures, loaded once, and the reasons why some of them are missing.

    Args:
        required: strings that the images must show, by id.
        steps: denoising steps of the images; None to take them from the files.
        lpips: whether to measure LPIPS, if it is installed.
        text: whether to read the images, if RapidOCR or tesseract is installed.
    """

    def __init__(
        self,
        required: Mapping[str, Sequence[str]] | None = None,
        steps: int | None = None,
        *,
        lpips: bool = True,
        text: bool = True,
    ) -> None:
        self._required = {
            key: [string for string in strings if string.strip()] for key, strings in (required or {}).items()
        }
        self._steps = steps
        #: What was read in images of originals, by path, reader and strings.
        self._originals: dict[tuple[object, ...], list[Reading]] = {}
        self._reasons = defaultdict[str, list[str]](list)
        self._lpips = self._attempt("lpips", _load_lpips, lpips)
        self._readers = self._attempt("text", _load_readers, text, any(self._required.values()))

    def compare(self, pairs: Sequence[ImagePair], reporter: Reporter) -> FidelityReport:
        """Compare images, pair by pair; three images are in memory at a time.

        Raises:
            MissingInput: a file cannot be read.
            UsageError: an image cannot be compared, or ``steps`` is not what the images say.
        """
        self._check(pairs, reporter)
        with reporter.progress("comparing", len(pairs), "pairs") as shown:
            measured = []
            for pair in pairs:
                measured.append(self._measure(pair))
                shown.advance(1)
                shown.refresh()
        common = {pair.steps for pair in measured}
        return FidelityReport(
            steps=common.pop() if len(common) == 1 else None,
            pairs=tuple(measured),
            methods=self.methods(),
            not_measured=self.not_measured,
        )

    @property
    def not_measured(self) -> dict[str, str]:
        """The reason why a figure is missing, by its name."""
        return {name: "; ".join(dict.fromkeys(reasons)) for name, reasons in self._reasons.items()}

    def _check(self, pairs: Sequence[ImagePair], reporter: Reporter) -> None:
        """Refuse steps that contradict the images; report prompts without images, and that RapidOCR is missing."""
        for pair in pairs:
            if self._steps is not None and pair.steps not in (None, self._steps):
                raise UsageError(
                    f"{pair.original}: was made in {pair.steps} steps, not in the {self._steps} of --steps"
                )
        missing = self._required.keys() - {name for pair in pairs for name in (pair.id, pair.key)}
        if missing:
            reporter.note(f"no images of these prompts: {', '.join(sorted(missing))}")
        if self._readers is not None and self._readers.rapidocr is None:
            reporter.note(
                f"tesseract reads all texts, and many of them worse: {self._readers.reasons[RapidOcrReader.name]}"
            )

    def _measure(self, pair: ImagePair) -> PairFidelity:
        """Read the images of a pair and compute every figure."""
        first, second = read_pixels(pair.original), read_pixels(pair.quantized)
        spectrum = lattice_spectrum(first)
        quantized = self._compare(first, spectrum, second)
        texts = self._read(pair, first, second)
        baseline = None
        if pair.baseline is not None:
            del second
            baseline = self._compare(first, spectrum, read_pixels(pair.baseline))
        return PairFidelity(
            id=pair.id,
            seed=pair.seed,
            steps=pair.steps if pair.steps is not None else self._steps,
            width=pair.width,
            height=pair.height,
            quantized=quantized,
            baseline=baseline,
            baseline_seed=pair.baseline_seed,
            text=texts,
        )

    def methods(self) -> dict[str, str]:
        """The exact definition of each figure that is measured."""
        found = pixel_methods()
        if self._lpips is not None:
            found["lpips"] = self._lpips.method()
        found["periodic_grid"] = (
            "root mean square in grey levels, over pixels and channels, of patterns that repeat every "
            f"{', '.join(map(str, reversed(PERIODS)))} pixels: spectral power at multiples of 1/{PERIODS[0]} cycles "
            "per pixel above the neighbouring frequencies, Hann window, whole image; added: what the original lacks; "
            "a pattern on a part of the image counts for less, and lines of another pitch than the original's count; "
            f"scipy {version('scipy')}"
        )
        if self._readers is not None:
            found["text"] = self._readers.method()
        return found

    def _compare(self, first: Pixels, spectrum: LatticeSpectrum | None, second: Pixels) -> ImageFidelity:
        return ImageFidelity(
            identical=bool(np.array_equal(first, second)),
            psnr_db=psnr_db(first, second),
            ssim=ssim(first, second),
            lpips=self._attempt("lpips", self._lpips.distance, first, second) if self._lpips else None,
            periodic_grid=_periodic_grid(spectrum, lattice_spectrum(second)),
        )

    def _attempt(self, name: str, measure: Callable[..., Result], *arguments: Any, prefix: str = "") -> Result | None:
        """Call ``measure``; if it cannot measure, keep the reason and return None."""
        try:
            return measure(*arguments)
        except NotMeasured as reason:
            self._reasons[name].append(f"{prefix}{reason}")
            return None

    def _read(self, pair: ImagePair, first: Pixels, second: Pixels) -> tuple[TextAccuracy, ...]:
        required = self._required.get(pair.id) or self._required.get(pair.key) or []
        if self._readers is None or not required:
            return ()
        images = (pair.original, first), (pair.quantized, second)
        measured: dict[str, TextAccuracy] = {}
        for name, strings in self._readers.assign(required):
            read = partial(self._read_image, self._readers, name, strings)
            # Several models are compared with one original, whose images are read once.
            key = pair.original, name, *strings
            unread = images[1:] if key in self._originals else images
            found = run_in_threads(read, unread, workers=len(images), name="reader", refresh=lambda: None)
            texts = self._originals.setdefault(key, found[0])
            for string, one, other in zip(strings, texts, found[-1], strict=True):
                rates = one.error_rate, other.error_rate
                measured[string] = TextAccuracy(string, *rates, name, one.text, other.text)
        return tuple(measured[string] for string in required)

    def _read_image(
        self, readers: Readers, name: str, strings: Sequence[str], image: tuple[Path, Pixels]
    ) -> list[Reading]:
        path, pixels = image
        found = self._attempt("text", readers.read, name, pixels, strings, prefix=f"{path.name}: ")
        return found or [Reading()] * len(strings)


def _load_lpips(wanted: bool) -> Lpips:
    if not wanted:
        raise NotMeasured("not requested")
    return Lpips()


def _load_readers(wanted: bool, any_required: bool) -> Readers:
    if not wanted:
        raise NotMeasured("not requested")
    if not any_required:
        raise NotMeasured("no texts are required in the images; give their suite with --prompts")
    return find_readers()


def periodic_grid(original: Pixels, candidate: Pixels) -> PeriodicGrid:
    """Score the periodic patterns of two images, and those that only the candidate has.

    Args:
        original: levels of shape (height, width, 3).
        candidate: of the same shape.
    """
    return _periodic_grid(lattice_spectrum(original), lattice_spectrum(candidate))


def _periodic_grid(original: LatticeSpectrum | None, candidate: LatticeSpectrum | None) -> PeriodicGrid:
    if original is None or candidate is None:
        return PeriodicGrid(None, None, None)
    return PeriodicGrid(own_score(original), own_score(candidate), added_score(original, candidate))
