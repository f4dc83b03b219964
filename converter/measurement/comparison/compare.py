"""Compare what the quantized model draws with what the original draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from converter.console import SILENT, Reporter
from converter.errors import UsageError, printable
from converter.measurement.comparison.images import read_pixels
from converter.measurement.comparison.pairs import ImagePair, find_pairs
from converter.measurement.comparison.perceptual import Lpips, NotMeasured
from converter.measurement.comparison.periodic import PERIODS, LatticeSpectrum, added_score, lattice_spectrum, own_score
from converter.measurement.comparison.pixels import pixel_methods, psnr_db, ssim
from converter.measurement.comparison.report import (
    FidelityReport,
    ImageFidelity,
    PairFidelity,
    PeriodicGrid,
    TextAccuracy,
)
from converter.measurement.comparison.text_accuracy import TextReader, find_reader
from converter.threads import run_in_threads

Pixels = NDArray[np.uint8]


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
    """Compare two folders of images, pair by pair; three images are in memory at a time.

    Args:
        original: folder of the original's images, named ``ID-SEED.png`` or ``ID-SEED-original.png``.
        quantized: folder of the quantized model's, named alike.
        baseline: folder of the original's images with another seed, to tell drift from damage.
        required: strings that the images must show, by id.
        steps: denoising steps of the images; None where the files tell.
        lpips: whether to measure LPIPS, if it is installed.
        text: whether to read the images, if tesseract is installed.
        reporter: shows progress and notes.

    Raises:
        MissingInput: a folder or a file is not there or cannot be read, or a folder has no images.
        UsageError: images do not go together or cannot be compared, or ``steps`` is not what they tell.
    """
    pairs = find_pairs(original, quantized, baseline, reporter=reporter)
    return compare_pairs(pairs, required=required, steps=steps, lpips=lpips, text=text, reporter=reporter)


def compare_pairs(
    pairs: Sequence[ImagePair],
    *,
    required: Mapping[str, Sequence[str]] | None = None,
    steps: int | None = None,
    lpips: bool = True,
    text: bool = True,
    reporter: Reporter = SILENT,
) -> FidelityReport:
    """Compare images whose pairs are known.

    Args and raises: as for ``compare``.
    """
    comparison = _Comparison(dict(required or {}), steps, lpips=lpips, text=text)
    comparison.check(pairs, reporter)
    with reporter.progress("comparing", len(pairs), "pairs") as shown:
        measured = []
        for pair in pairs:
            measured.append(comparison.measure(pair))
            shown.advance(1)
            shown.refresh()
    common = {pair.steps for pair in measured}
    return FidelityReport(
        steps=common.pop() if len(common) == 1 else None,
        pairs=tuple(measured),
        methods=comparison.methods(),
        not_measured=comparison.not_measured(),
    )


class _Comparison:
    """The measures, loaded once, and why some of them cannot be taken.

    Args:
        required: strings that the images must show, by id.
        steps: denoising steps of the images; None where the files tell.
        lpips: whether to measure LPIPS.
        text: whether to read the images.
    """

    def __init__(self, required: dict[str, Sequence[str]], steps: int | None, *, lpips: bool, text: bool) -> None:
        self._required = {key: [string for string in strings if string.strip()] for key, strings in required.items()}
        self._steps = steps
        self._lpips: Lpips | None = None
        self._reader: TextReader | None = None
        self._reasons: dict[str, list[str]] = {"lpips": [], "text": []}
        try:
            self._lpips = _load_lpips(lpips)
        except NotMeasured as reason:
            self._reasons["lpips"].append(str(reason))
        try:
            self._reader = _load_reader(text, any(self._required.values()))
        except NotMeasured as reason:
            self._reasons["text"].append(str(reason))

    def check(self, pairs: Sequence[ImagePair], reporter: Reporter) -> None:
        """Refuse steps that the images deny, and say which texts no image can show."""
        for pair in pairs:
            if self._steps is not None and pair.steps not in (None, self._steps):
                name = printable(str(pair.original))
                raise UsageError(f"{name}: was drawn in {pair.steps} steps, not in the {self._steps} of --steps")
        missing = self._required.keys() - {name for pair in pairs for name in (pair.id, pair.key)}
        if missing:
            reporter.note(f"no images of these prompts: {', '.join(sorted(missing))}")

    def measure(self, pair: ImagePair) -> PairFidelity:
        """Read the images of a pair and take every measure."""
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
        """What each figure that was measured is."""
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
        if self._reader is not None:
            found["text"] = self._reader.method()
        return found

    def not_measured(self) -> dict[str, str]:
        """Why figures are missing, by their names."""
        return {name: "; ".join(dict.fromkeys(reasons)) for name, reasons in self._reasons.items() if reasons}

    def _compare(self, first: Pixels, spectrum: LatticeSpectrum | None, second: Pixels) -> ImageFidelity:
        return ImageFidelity(
            identical=bool(np.array_equal(first, second)),
            psnr_db=psnr_db(first, second),
            ssim=ssim(first, second),
            lpips=self._distance(first, second),
            periodic_grid=_periodic_grid(spectrum, lattice_spectrum(second)),
        )

    def _distance(self, first: Pixels, second: Pixels) -> float | None:
        if self._lpips is None:
            return None
        try:
            return self._lpips.distance(first, second)
        except NotMeasured as reason:
            self._reasons["lpips"].append(str(reason))
            return None

    def _read(self, pair: ImagePair, first: Pixels, second: Pixels) -> tuple[TextAccuracy, ...]:
        required = self._required.get(pair.id) or self._required.get(pair.key) or []
        if self._reader is None or not required:
            return ()
        reader = self._reader

        def read(image: tuple[Path, Pixels]) -> Sequence[float | None]:
            path, pixels = image
            try:
                return reader.error_rates(pixels, required)
            except NotMeasured as reason:
                self._reasons["text"].append(printable(f"{path.name}: {reason}"))
                return [None] * len(required)

        images = (pair.original, first), (pair.quantized, second)
        rates = run_in_threads(read, images, workers=len(images), name="reader", refresh=lambda: None)
        return tuple(TextAccuracy(*figures) for figures in zip(required, *rates, strict=True))


def _load_lpips(wanted: bool) -> Lpips:
    if not wanted:
        raise NotMeasured("not asked for")
    return Lpips()


def _load_reader(wanted: bool, any_required: bool) -> TextReader:
    if not wanted:
        raise NotMeasured("not asked for")
    if not any_required:
        raise NotMeasured("no texts are required of the images; --prompts names their suite")
    return find_reader()


def _periodic_grid(original: LatticeSpectrum | None, candidate: LatticeSpectrum | None) -> PeriodicGrid:
    if original is None or candidate is None:
        return PeriodicGrid(None, None, None)
    return PeriodicGrid(own_score(original), own_score(candidate), added_score(original, candidate))
