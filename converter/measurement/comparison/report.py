"""What a comparison found, as the evidence that it leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from converter.measurement.comparison.text_accuracy import LEGIBLE

#: Names the form of the evidence.
SCHEMA_ID = "lensconv.fidelity/1"
#: Decimals of a figure; machines differ in the last bits.
_DECIMALS = 6


@dataclass(frozen=True)
class PeriodicGrid:
    """Periodic patterns in grey levels; None where the images are too small to tell."""

    original: float | None
    candidate: float | None
    added: float | None
    """What only the candidate has."""

    def to_dict(self, name: str) -> dict[str, float | None]:
        """As JSON values; ``name`` says what the candidate is."""
        return {
            "original": rounded(self.original),
            name: rounded(self.candidate),
            "added": rounded(self.added),
        }


@dataclass(frozen=True)
class ImageFidelity:
    """How near one image is to another."""

    identical: bool
    psnr_db: float | None
    """None where the images are identical."""
    ssim: float
    lpips: float | None
    """None where it was not measured."""
    periodic_grid: PeriodicGrid

    def to_dict(self, name: str) -> dict[str, Any]:
        """As JSON values; ``name`` says what the candidate is."""
        return {
            "identical": self.identical,
            "psnr_db": rounded(self.psnr_db),
            "ssim": rounded(self.ssim),
            "lpips": rounded(self.lpips),
            "periodic_grid": self.periodic_grid.to_dict(name),
        }


@dataclass(frozen=True)
class TextAccuracy:
    """Character error rates of one required string; None where they were not measured."""

    required: str
    original_cer: float | None
    quantized_cer: float | None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "required": self.required,
            "original_cer": rounded(self.original_cer),
            "quantized_cer": rounded(self.quantized_cer),
        }


@dataclass(frozen=True)
class PairFidelity:
    """Everything about one prompt at one seed."""

    id: str
    seed: int | None
    steps: int | None
    width: int
    height: int
    quantized: ImageFidelity
    baseline: ImageFidelity | None
    """The original with another seed, held against the original: how far images of one prompt lie apart."""
    baseline_seed: int | None
    text: tuple[TextAccuracy, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        baseline = self.baseline and {"seed": self.baseline_seed, **self.baseline.to_dict("baseline")}
        return {
            "id": self.id,
            "seed": self.seed,
            "width": self.width,
            "height": self.height,
            "num_inference_steps": self.steps,
            **self.quantized.to_dict("quantized"),
            "baseline": baseline,
            "text": [text.to_dict() for text in self.text],
        }


@dataclass(frozen=True)
class FidelityReport:
    """The images of the quantized model against those of the original."""

    steps: int | None
    """Steps that all images took; None where it is not known or not one number."""
    pairs: tuple[PairFidelity, ...]
    methods: Mapping[str, str]
    """What each figure is, exactly."""
    not_measured: Mapping[str, str]
    """Why a figure is missing."""

    @property
    def summary(self) -> dict[str, Any]:
        """Figures over all pairs; None for what was not measured."""
        baselines = [pair.baseline for pair in self.pairs if pair.baseline is not None]
        return {
            **_summarize_images([pair.quantized for pair in self.pairs]),
            "baseline": _summarize_images(baselines) if baselines else None,
            "text": _summarize_text([text for pair in self.pairs for text in pair.text]),
        }

    def to_dict(self) -> dict[str, Any]:
        """The evidence, as JSON values."""
        return {
            "schema": SCHEMA_ID,
            "num_inference_steps": self.steps,
            "pairs": [pair.to_dict() for pair in self.pairs],
            "summary": self.summary,
            "methods": dict(self.methods),
            "not_measured": dict(self.not_measured),
        }


def rounded(value: float | None) -> float | None:
    """A figure with six decimals."""
    return None if value is None else round(value, _DECIMALS)


def summarize(values: Iterable[float | None]) -> dict[str, float | int | None] | None:
    """Mean, median and range of the figures that were measured, and their number; None where there is none."""
    measured = [value for value in values if value is not None]
    if not measured:
        return None
    kinds: dict[str, Callable[[list[float]], float]] = {"mean": fmean, "median": median, "min": min, "max": max}
    return {**{name: rounded(kind(measured)) for name, kind in kinds.items()}, "count": len(measured)}


def _summarize_images(images: list[ImageFidelity]) -> dict[str, Any]:
    return {
        "psnr_db": summarize(image.psnr_db for image in images),
        "ssim": summarize(image.ssim for image in images),
        "lpips": summarize(image.lpips for image in images),
        "periodic_grid_added": summarize(image.periodic_grid.added for image in images),
    }


def _summarize_text(texts: list[TextAccuracy]) -> dict[str, float | int | None] | None:
    """Over the strings that were looked for in both images; shares of legible ones from 0 to 1."""
    rates = [
        (text.original_cer, text.quantized_cer)
        for text in texts
        if text.original_cer is not None and text.quantized_cer is not None
    ]
    if not rates:
        return None
    originals, quantized = ([pair[number] for pair in rates] for number in range(2))
    return {
        "required_strings": len(rates),
        "original_cer_mean": rounded(fmean(originals)),
        "quantized_cer_mean": rounded(fmean(quantized)),
        "original_legible": rounded(fmean(rate <= LEGIBLE for rate in originals)),
        "quantized_legible": rounded(fmean(rate <= LEGIBLE for rate in quantized)),
    }
