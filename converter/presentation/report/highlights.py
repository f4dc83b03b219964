"""The few figures at the top of a report, as its tables have them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from converter.measurement.evidence.names import CHART_PEAKS, IMAGES_NAME, METRICS_NAME, MODELS, peak_key
from converter.measurement.evidence.weights import denoiser_title
from converter.presentation.tables.fidelity import TRAJECTORY
from converter.presentation.tables.figures import decimal, number, percent
from converter.presentation.tables.table import NOTHING


@dataclass(frozen=True)
class Highlight:
    """A figure of the quantized model and what to compare it with."""

    label: str
    value: str
    detail: str


def find_highlights(evidence: Mapping[str, Mapping[str, Any]]) -> list[Highlight]:
    """Return what was measured of size, time, memory, similarity and text.

    Args:
        evidence: contents of the files of measurements, by file name.
    """
    metrics, images = evidence.get(METRICS_NAME), evidence.get(IMAGES_NAME)
    found = [*(_of_metrics(metrics) if metrics else ()), *(_of_images(images) if images else ())]
    return [highlight for highlight in found if highlight.value not in (NOTHING, f"{NOTHING} GB", f"{NOTHING} s")]


def _of_metrics(metrics: Mapping[str, Any]) -> Iterator[Highlight]:
    original, quantized = (metrics["models"][model] for model in MODELS)
    before, after = (number(model.get("transformer_storage_gb")) for model in (original, quantized))
    yield Highlight(denoiser_title(metrics), f"{after} GB", f"original {before} GB")
    before, after = (number((model.get("generation_time_s") or {}).get("median")) for model in (original, quantized))
    yield Highlight("Time of an image, median", f"{after} s", f"original {before} s")
    for kind, title in CHART_PEAKS.items():
        key = f"generation_{peak_key(kind)}"
        if key in original and key in quantized:
            before, after = (number((model[key] or {}).get("max")) for model in (original, quantized))
            yield Highlight(title, f"{after} GB", f"original {before} GB")
            return


def _of_images(images: Mapping[str, Any]) -> Iterator[Highlight]:
    summary, baseline = images["summary"], images["summary"]["baseline"] or {}
    key, title, digits = ("lpips", "LPIPS, mean", 4) if summary["lpips"] else ("psnr_db", "PSNR, mean, dB", 2)
    value, other = (decimal((found.get(key) or {}).get("mean"), digits) for found in (summary, baseline))
    yield Highlight(title, value, f"original with a second seed {other}" if images["summary"]["baseline"] else "")
    if "trajectory" in images:
        mean, largest = (decimal(images["trajectory"][f"{kind}_error"], 4) for kind in ("mean", "max"))
        yield Highlight(f"{TRAJECTORY}, mean", mean, f"largest {largest}")
    text = summary["text"]
    if text is not None:
        before, after = (percent(100 * text[f"{model}_legible"]) for model in MODELS)
        yield Highlight("Legible strings", after, f"original {before}")
