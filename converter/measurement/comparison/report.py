"""The result of a comparison, as the evidence that is written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from statistics import fmean, median
from typing import Any

from converter.measurement.comparison.text_accuracy import LEGIBLE

#: Name and version of the format of the evidence.
SCHEMA_ID = "lensconv.fidelity/1"
#: Decimals of a figure; machines differ in the last bits.
_DECIMALS = 6


@dataclass(frozen=True)
class PeriodicGrid:
    """Periodic patterns in grey levels; None where the images are too small to measure them."""

    original: float | None
    candidate: float | None
    added: float | None
    """Patterns that only the candidate has."""

    def to_dict(self, name: str) -> dict[str, float | None]:
        """Return the figures as JSON values; ``name`` is that of the candidate."""
        return {"original": self.original, name: self.candidate, "added": self.added}


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
        """Return the figures as JSON values; ``name`` is that of the candidate."""
        return {**asdict(self), "periodic_grid": self.periodic_grid.to_dict(name)}


@dataclass(frozen=True)
class TextAccuracy:
    """Character error rates of one required string; None where they were not measured."""

    required: str
    original_cer: float | None
    quantized_cer: float | None
    reader: str
    """Name of the reader that the string belongs to."""
    original_read: str | None
    """The part of the recognized text that is nearest to the string."""
    quantized_read: str | None


@dataclass(frozen=True)
class PairFidelity:
    """All figures of one prompt at one seed."""

    id: str
    seed: int | None
    steps: int | None
    width: int
    height: int
    quantized: ImageFidelity
    baseline: ImageFidelity | None
    """The original with another seed, compared with the original: how much images of one prompt differ."""
    baseline_seed: int | None
    text: tuple[TextAccuracy, ...]

    @property
    def text_rates(self) -> list[tuple[float, float]]:
        """Error rates of the original and of the quantized model, of strings that were looked for in both images."""
        return [
            (text.original_cer, text.quantized_cer)
            for text in self.text
            if text.original_cer is not None and text.quantized_cer is not None
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        return {
            "id": self.id,
            "seed": self.seed,
            "width": self.width,
            "height": self.height,
            "num_inference_steps": self.steps,
            **self.quantized.to_dict("quantized"),
            "baseline": self.baseline and {"seed": self.baseline_seed, **self.baseline.to_dict("baseline")},
            "text": [asdict(text) for text in self.text],
        }


@dataclass(frozen=True)
class FidelityReport:
    """The images of the quantized model compared with those of the original."""

    steps: int | None
    """Steps of all images; None where they are unknown or differ."""
    pairs: tuple[PairFidelity, ...]
    methods: Mapping[str, str]
    """The exact definition of each figure."""
    not_measured: Mapping[str, str]
    """The reason why a figure is missing."""

    @property
    def summary(self) -> dict[str, Any]:
        """Figures over all pairs; None for what was not measured."""
        baselines = [pair.baseline for pair in self.pairs if pair.baseline is not None]
        return {
            **_summarize_images([pair.quantized for pair in self.pairs]),
            "baseline": _summarize_images(baselines) if baselines else None,
            "text": _summarize_text([rates for pair in self.pairs for rates in pair.text_rates]),
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the evidence as JSON values, with figures of six decimals."""
        evidence: dict[str, Any] = _rounded(
            {
                "schema": SCHEMA_ID,
                "num_inference_steps": self.steps,
                "pairs": [pair.to_dict() for pair in self.pairs],
                "summary": self.summary,
                "methods": dict(self.methods),
                "not_measured": dict(self.not_measured),
            }
        )
        return evidence


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, _DECIMALS)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value


def _summarize(values: Iterable[float | None]) -> dict[str, float] | None:
    """Mean, median, range and number of the figures that were measured; None where there are none."""
    measured = [value for value in values if value is not None]
    if not measured:
        return None
    return {
        "mean": fmean(measured),
        "median": median(measured),
        "min": min(measured),
        "max": max(measured),
        "count": len(measured),
    }


def _summarize_images(images: list[ImageFidelity]) -> dict[str, Any]:
    return {
        "psnr_db": _summarize(image.psnr_db for image in images),
        "ssim": _summarize(image.ssim for image in images),
        "lpips": _summarize(image.lpips for image in images),
        "periodic_grid_added": _summarize(image.periodic_grid.added for image in images),
    }


def _summarize_text(rates: list[tuple[float, float]]) -> dict[str, float] | None:
    """Mean error rates, and shares of legible strings from 0 to 1."""
    if not rates:
        return None
    original, quantized = zip(*rates, strict=True)
    return {
        "required_strings": len(rates),
        "original_cer_mean": fmean(original),
        "quantized_cer_mean": fmean(quantized),
        "original_legible": fmean(rate <= LEGIBLE for rate in original),
        "quantized_legible": fmean(rate <= LEGIBLE for rate in quantized),
    }
