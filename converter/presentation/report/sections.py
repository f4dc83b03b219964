"""The sections of a report below its prompts: tables and sentences, as the card and the terminal show them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from converter.conversion.release.manifest import SUMMARY_NAME
from converter.measurement.evidence import names
from converter.measurement.evidence.time_comparison import TimeComparison, compare_matrix, compare_offload
from converter.measurement.evidence.weights import denoiser_noun
from converter.presentation.tables import ablation, conditions, fidelity, measurements, times
from converter.presentation.tables.ablation_findings import describe_findings
from converter.presentation.tables.adapters import adapters_table, describe_original
from converter.presentation.tables.table import Code, Table

Content = Mapping[str, Any]
#: Titles of the measures, by their names in ``methods`` and ``not_measured``.
_METHODS = {
    "psnr_db": "PSNR",
    "ssim": "SSIM",
    "lpips": "LPIPS",
    "periodic_grid": "Periodic pattern",
    "text": "Text",
    "trajectory": "Trajectory",
    "flat_field": "Flat field",
}
#: What figures of similarity say, and what not.
_SIMILARITY = (
    "Each image of the quantized model is compared with the original's image of the same prompt and seed. This says "
    "how far the two drifted apart, not which one is better."
)
_BASELINE = "The original with another seed shows how large such figures are for images that share only the prompt."


@dataclass(frozen=True)
class Captioned:
    """A table and what it shows."""

    caption: str
    table: Table


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading."""

    anchor: str
    title: str
    notes: Sequence[str] = ()
    tables: Sequence[Captioned] = field(default_factory=tuple)


def find_sections(evidence: Mapping[str, Content], titles: Sequence[str]) -> list[Section]:
    """Return the sections for which there are measurements.

    Args:
        evidence: contents of the files of measurements, by file name.
        titles: names of both models.
    """
    sections = (
        _images(evidence.get(names.IMAGES_NAME)),
        _times(evidence, titles),
        *(_offload(evidence.get(name), f"offload-{mode}") for mode, name in names.OFFLOAD_FILES.items()),
        _weights(evidence),
        _ablation(evidence.get(names.ABLATION_NAME)),
    )
    return [section for section in sections if section is not None]


def find_provenance(evidence: Mapping[str, Content]) -> Section:
    """Return what was measured, with what, and by which methods."""
    tables = []
    settings, environment, sources = (_first(evidence, key) for key in ("settings", "environment", "sources"))
    if sources:
        tables.append(Captioned("Weights that were measured", conditions.sources_table(sources)))
        added = adapters_table(sources)
        tables += [Captioned("LoRA in these weights", added)] if added is not None else []
    if settings:
        tables.append(_pairs("Settings of generation", conditions.settings(settings)))
    if environment:
        tables.append(_pairs("Machine and versions", conditions.environment(environment)))
    images = evidence.get(names.IMAGES_NAME, {})
    for key, caption in (("methods", "Methods"), ("not_measured", "Not measured")):
        rows = [(_METHODS.get(name, name), text) for name, text in images.get(key, {}).items()]
        tables += [_pairs(caption, rows)] if rows else []
    files = [(Code(name), content.get("schema", "")) for name, content in evidence.items()]
    tables.append(Captioned("Files of the measurements", Table(["File", "Format"], files, "ll")))
    return Section("environment", "Environment and provenance", tables=tables)


def _images(images: Content | None) -> Section | None:
    if images is None:
        return None
    notes = [f"{_SIMILARITY} {_BASELINE}" if images["summary"]["baseline"] else _SIMILARITY]
    if images["num_inference_steps"] is not None:
        notes.append(f"Similarity depends on the number of steps; here it is {images['num_inference_steps']}.")
    notes += _about_original(images)
    tables = [Captioned("All prompts", fidelity.images_summary_table(images))]
    text = fidelity.text_table(images)
    if text is not None:
        tables.append(Captioned("Text in the images, as text recognition (OCR) reads it", text))
    tables.append(Captioned("Prompt by prompt", fidelity.images_table(images)))
    blocks = fidelity.blocks_table(images)
    if blocks is not None:
        tables.append(Captioned("Block by block, in both models from the original's latents", blocks))
    return Section("fidelity", "Image fidelity", notes, tables)


def _times(evidence: Mapping[str, Content], titles: Sequence[str]) -> Section | None:
    metrics, matrix = evidence.get(names.METRICS_NAME), evidence.get(names.MATRIX_NAME)
    summary = evidence.get(SUMMARY_NAME)
    notes, tables, pairs = list[str](), [], list[Captioned]()
    if metrics is not None:
        tables.append(Captioned("Loading and generating", measurements.benchmark_table(metrics, summary)))
    if matrix is not None:
        tables.append(Captioned("Prompt by prompt", measurements.matrix_table(matrix, titles)))
        notes, pairs = _compare_times(compare_matrix(matrix), "an image")
    return Section("times", "Times and memory", notes, [*tables, *pairs]) if tables else None


def _offload(content: Content | None, anchor: str) -> Section | None:
    if content is None:
        return None
    table = Captioned("Set-up, the first image, and the images after it", measurements.offload_table(content))
    notes, pairs = _compare_times(compare_offload(content), "a warm image")
    return Section(anchor, f"Offloading: {content['method']}", notes, [table, *pairs])


def _compare_times(found: TimeComparison, image: str) -> tuple[list[str], list[Captioned]]:
    """Return what may be said of the times of both models, and the pairs of processes that it rests on."""
    words, pairs = times.describe_times(found, image), times.pairs_table(found)
    notes = [str(text) for text in (words.finding, words.disturbance) if text]
    return notes, [Captioned("Pairs of processes", pairs)] if pairs is not None else []


def _weights(evidence: Mapping[str, Content]) -> Section | None:
    weights, summary = evidence.get(names.WEIGHTS_NAME), evidence.get(SUMMARY_NAME)
    notes, tables = list[str](), []
    if weights is not None:
        notes += _about_original(weights)
        tables.append(Captioned("Dequantized weights against those of the source", fidelity.weights_table(weights)))
    if summary is not None:
        noun = denoiser_noun({"sources": _first(evidence, "sources")})
        tables.append(Captioned(f"Size of the {noun}", measurements.storage_table(summary, noun)))
    return Section("weights", "Weights", notes, tables) if tables else None


def _ablation(content: Content | None) -> Section | None:
    if content is None:
        return None
    notes = [*describe_findings(content), ablation.describe_table(content), *ablation.list_failures(content)]
    tables = [Captioned("Variants", ablation.ablation_table(content))]
    tables.append(_pairs("Methods", ablation.list_methods(content)))
    return Section("ablation", "Ablation", notes, tables)


def _about_original(content: Content) -> list[str]:
    """Return what there is to say of the original because of LoRA."""
    text = describe_original(content.get("sources", {}))
    return [text] if text else []


def _pairs(caption: str, rows: Sequence[tuple[object, object]]) -> Captioned:
    return Captioned(caption, Table(["", ""], rows, "ll"))


def _first(evidence: Mapping[str, Content], key: str) -> Content:
    """Return the value of a key in the first file that has it."""
    found: Iterator[Content] = (content[key] for content in evidence.values() if key in content)
    return next(found, {})
