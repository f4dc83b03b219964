"""What templates of cards may use: texts, figures, and tables that are Markdown already."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from converter.conversion.release.manifest import SUMMARY_NAME, ReleaseFile
from converter.measurement.evidence.files import (
    IMAGES_NAME,
    MATRIX_NAME,
    METRICS_NAME,
    OFFLOAD_NAME,
    SEQUENTIAL_NAME,
    WEIGHTS_NAME,
)
from converter.presentation.card import fidelity_tables, figures, tables
from converter.presentation.card.additions import quantized_images
from converter.presentation.card.evidence import CardEvidence
from converter.presentation.card.markdown import Markdown, code, table
from converter.presentation.card.metadata import CardMetadata, GalleryImage
from converter.presentation.card.pictures import CardPictures
from converter.presentation.card.release import CardRelease
from converter.rendering import render

#: What the published benchmark drew with; for a release that nobody measured.
_DEFAULT_SETTINGS: dict[str, Any] = {
    "base_resolution": 1440,
    "aspect_ratio": "1:1",
    "num_inference_steps": 20,
    "guidance_scale": 5.0,
}
_SETTINGS = {
    "base_resolution": "base resolution",
    "aspect_ratio": "aspect ratio",
    "width": "width",
    "height": "height",
    "num_inference_steps": "steps",
    "guidance_scale": "guidance",
    "repeats": "repeats",
    "dtype": "dtype",
}
_ENVIRONMENT = {
    "hardware": "hardware",
    "torch": "PyTorch",
    "cuda": "CUDA",
    "driver": "driver",
    "storage": "storage",
    "cpu_cores": "CPU cores",
    "threads": "threads",
    "sdnq": "sdnq",
    "diffusers": "diffusers",
    "transformers": "transformers",
    "accelerate": "accelerate",
    "safetensors": "safetensors",
    "lensconv": "lensconv",
    "date": "date",
}
#: Packages that a pinned installation names.
_PINNED = ("lensconv", "sdnq", "torch", "diffusers", "transformers", "accelerate", "safetensors")
#: What PEP 440 makes versions of; anything else would be an argument of its own.
_VERSION = re.compile(r"[0-9][0-9A-Za-z.!-]*")
_RECIPE_KEYS = (
    "weights_dtype",
    "quantized_matmul_dtype",
    "use_quantized_matmul",
    "group_size",
    "dequantize_fp32",
    "use_svd",
    "use_hadamard",
)
#: Sections that need something, in the order of the card, and why one is not there.
_REASONS = {
    "usage": "programs are known for whole pipelines of Lens alone",
    "comparison": "there is no comparison grid; `lensconv grid` draws one",
    "charts": "there are no charts; `lensconv charts` draws them",
    "benchmark": f"there is no {METRICS_NAME}",
    "offload": f"there is neither {OFFLOAD_NAME} nor {SEQUENTIAL_NAME}",
    "matrix": f"there is no {MATRIX_NAME}",
    "images": f"there is no {IMAGES_NAME}",
    "weights": f"there is no {WEIGHTS_NAME}",
    "ablation": "no evidence tells of one",
    "prompts": f"no {MATRIX_NAME} tells the prompts; --prompts names the suite that was drawn",
}
SECTIONS = ("quantized", "recipe", *_REASONS, "provenance", "limits")


def left_out(context: Mapping[str, Any]) -> dict[str, str]:
    """Sections for which there is nothing to show, and why."""
    return {name: reason for name, reason in _REASONS.items() if not context[name]}


def find_gallery(evidence: CardEvidence, texts: Mapping[str, str]) -> tuple[GalleryImage, ...]:
    """Images of the quantized model with their prompts, by id, or else their titles."""
    matrix = evidence.files.get(MATRIX_NAME)
    if matrix is None:
        return ()
    pairs = quantized_images(matrix, evidence.folder)
    return tuple(GalleryImage(texts.get(row["id"], row["scenario"]), name) for row, name in pairs)


def find_ablation(evidence: CardEvidence) -> str:
    """What a summary says that an ablation found; empty when it says nothing."""
    return str(_summary(evidence).get("root_cause_from_turbo_ablation", ""))


def build_context(
    release: CardRelease,
    evidence: CardEvidence,
    metadata: CardMetadata,
    *,
    title: str,
    repository: str,
    prompt_texts: Mapping[str, str],
    pictures: CardPictures,
    additions: Sequence[ReleaseFile],
) -> dict[str, Any]:
    """All that a template may use.

    Args:
        release: what the card describes.
        evidence: its measurements.
        metadata: its front matter.
        title: of the card.
        repository: what programs load it by.
        prompt_texts: in full, by id.
        pictures: the comparison grid and the charts.
        additions: files that come with the card.
    """
    files = evidence.files
    summary = _summary(evidence)
    metrics, matrix, images = (files.get(name) for name in (METRICS_NAME, MATRIX_NAME, IMAGES_NAME))
    offloads = [files[name] for name in (OFFLOAD_NAME, SEQUENTIAL_NAME) if name in files]
    measured = next((content for content in (metrics, matrix, *offloads) if content and "environment" in content), {})
    environment = dict(measured.get("environment", {}))
    settings: Mapping[str, Any] = next(
        (content["settings"] for content in (metrics, matrix) if content and "settings" in content), {}
    )
    titles = tables.labels(metrics["models"]) if metrics else ["Original", "Quantized"]
    names = [file.name for file in additions]
    own = release.figures()
    own_summary = [SUMMARY_NAME] if SUMMARY_NAME in release.written and evidence.foreign_summary is None else []
    return {
        "title": title,
        "metadata": Markdown(metadata.to_yaml()),
        "repository": repository,
        "base_model": metadata.base_model,
        "base_revision": metadata.base_revision,
        "license": metadata.license,
        "is_lens": release.is_lens,
        "class_name": release.audit.class_name or "transformer",
        "verified": evidence.is_verified,
        "unverified": list(evidence.unverified),
        "contradictions": list(evidence.contradictions),
        "foreign_summary": evidence.foreign_summary is not None,
        "figures": own,
        "source_dtypes": release.source_dtypes,
        "kept_dtypes": release.kept_dtypes,
        "skip_patterns": release.skip_patterns,
        "quantized": _families_table(release),
        "storage": tables.storage_table(summary) if summary else None,
        "recipe": _recipe_table(release, metadata),
        "matmul": bool(release.audit.config.get("use_quantized_matmul")),
        "usage": _usage(repository, settings) if release.is_lens and release.components else None,
        "pins": _pins(environment if "sdnq" in environment else release.content["versions"]),
        "pins_drew": "sdnq" in environment,
        "encoder_quantization": release.encoder_quantization,
        "comparison": pictures.preview,
        "sheets": pictures.sheets,
        "charts": pictures.charts,
        "environment": _listed(environment, _ENVIRONMENT),
        "settings": _listed(settings, _SETTINGS),
        "benchmark": tables.benchmark_table(metrics, _vs_bf16(metrics, summary)) if metrics else None,
        "slowdown": tables.matrix_figures(matrix)["slowdown"] if matrix else None,
        "offload": [_offload(content) for content in offloads],
        "matrix": tables.matrix_table(matrix, titles) if matrix else None,
        "images": fidelity_tables.images_summary_table(images) if images else None,
        "image_pairs": fidelity_tables.images_table(images) if images else None,
        "image_steps": images["num_inference_steps"] if images else None,
        "image_text": fidelity_tables.text_table(images) if images else None,
        "weights": fidelity_tables.weights_table(files[WEIGHTS_NAME]) if WEIGHTS_NAME in files else None,
        "ablation": find_ablation(evidence),
        "prompts": _prompts(matrix, prompt_texts) if matrix else [],
        "evidence_files": [*own_summary, *(name for name in names if "/" not in name)],
        "provenance": _provenance_table(release, metadata),
        "source_files": _source_table(release),
        "files": _files_table(release, additions),
    }


def _summary(evidence: CardEvidence) -> Mapping[str, Any]:
    return evidence.foreign_summary or evidence.files.get(SUMMARY_NAME) or {}


def _families_table(release: CardRelease) -> Markdown:
    total = release.total_bytes
    rows: list[list[object]] = []
    for entry in release.families:
        dtypes = ", ".join(sorted(entry.bytes_by_dtype))
        how = f"{entry.quantized_modules:,} modules quantized" if entry.quantized_modules else "kept"
        share = figures.percent(100 * entry.bytes / total if total else None)
        rows.append([code(entry.name), release.role(entry.name), how, dtypes, figures.count(entry.bytes), share])
    return table(["Family", "Holds", "What was done", "Stored as", "Bytes", "Share"], rows, "llllrr")


def _recipe_table(release: CardRelease, metadata: CardMetadata) -> Markdown:
    config = release.audit.config
    kind = "dynamic" if config.get("use_dynamic_quantization") else "static"
    rows: list[list[object]] = [
        ["Method", f"SDNQ {config.get('weights_dtype', '')} {kind}"],
        ["Recipe", code(str(release.content["recipe"].get("name", "")))],
        ["Source model", metadata.base_model or "not named"],
        ["Quantized component", f"{release.manifest.component or 'the model'} ({release.audit.class_name})"],
    ]
    for name, held in sorted(release.components.items()):
        if name != release.manifest.component:
            more = (
                f", {release.encoder_quantization}" if name == "text_encoder" and release.encoder_quantization else ""
            )
            rows.append([Markdown(code(name)), f"as in the source ({held}{more})"])
    rows += [[code(key), code(json.dumps(config[key]))] for key in _RECIPE_KEYS if key in config]
    if release.group_sizes:
        rows.append(["Weights that share a scale", ", ".join(map(str, release.group_sizes))])
    if release.skip_patterns:
        rows.append(["Kept by the recipe", Markdown(", ".join(code(name) for name in release.skip_patterns))])
    return table(["Field", "Value"], rows, "ll")


def _usage(repository: str, settings: Mapping[str, Any]) -> Markdown:
    shown = {key: default if settings.get(key) is None else settings[key] for key, default in _DEFAULT_SETTINGS.items()}
    text = render(
        "usage.md.jinja",
        repository=_in_quotes(repository),
        base_resolution=shown["base_resolution"],
        aspect_ratio=_in_quotes(shown["aspect_ratio"]),
        steps=shown["num_inference_steps"],
        guidance=shown["guidance_scale"],
    )
    return Markdown(text)


def _in_quotes(text: str) -> str:
    """Text that stands for itself between double quotes in Python."""
    # Three backticks would end the block of code around it.
    return json.dumps(text)[1:-1].replace("`", "\\u0060")


def _pins(versions: Mapping[str, Any]) -> list[str]:
    """Requirements with these versions."""
    # What follows a plus sign names a build, which other machines need not have.
    pairs = ((name, str(versions.get(name)).partition("+")[0]) for name in _PINNED if name in versions)
    return [f"{name}=={version}" for name, version in pairs if _VERSION.fullmatch(version)]


def _listed(values: Mapping[str, Any], names: Mapping[str, str]) -> list[tuple[str, str]]:
    """Labels and values, of those that are there."""
    return [(label, str(values[key])) for key, label in names.items() if values.get(key) is not None]


def _vs_bf16(metrics: Mapping[str, Any], summary: Mapping[str, Any]) -> float | None:
    stated: float | None = metrics.get("transformer_storage_reduction_vs_bf16_percent")
    return stated if stated is not None else tables.summary_vs_bf16(summary) if summary else None


def _offload(content: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "method": content["method"],
        "cold": content["cold_prompt"],
        "warm": list(content["warm_prompts"]),
        "table": tables.offload_table(content),
        "slowdown": tables.slowdown_figures(content.get("warm_slowdown")),
    }


def _prompts(matrix: Mapping[str, Any], texts: Mapping[str, str]) -> list[dict[str, Any]]:
    return [
        {"id": row["id"], "scenario": row["scenario"], "seed": row["seed"], "text": texts[row["id"]]}
        for row in matrix["prompts"]
        if row["id"] in texts
    ]


def _provenance_table(release: CardRelease, metadata: CardMetadata) -> Markdown:
    rows: list[list[object]] = [
        ["Source model", metadata.base_model or "not named"],
        ["Revision of the source", code(metadata.base_revision) if metadata.base_revision else "not named"],
        ["Recipe", code(str(release.content["recipe"].get("name", "")))],
        ["Seed", str(release.content["recipe"].get("seed", ""))],
        ["Quantized from", str(release.content["recipe"].get("quantize_from", ""))],
    ]
    rows += [[f"Made with {name}", str(version)] for name, version in sorted(release.content["versions"].items())]
    return table(["Field", "Value"], rows, "ll")


def _source_table(release: CardRelease) -> Markdown:
    rows = [
        [code(str(file["name"])), figures.count(file["bytes"]), code(str(file["header_sha256"]))]
        for file in release.content["source"].get("files", ())
    ]
    return table(["Source file", "Bytes", "sha256 of its header"], rows, "lrl")


def _files_table(release: CardRelease, additions: Sequence[ReleaseFile]) -> Markdown:
    """What was converted and measured; pictures stand in the manifest alone."""
    listed = release.manifest.files
    rows = [(name, listed[name].bytes, digest) for name, digest in release.written.items()]
    rows += [(file.name, file.bytes, file.sha256) for file in additions if "/" not in file.name]
    shown = [[code(name), figures.count(size), code(digest)] for name, size, digest in sorted(rows)]
    return table(["File", "Bytes", "sha256"], shown, "lrl")
