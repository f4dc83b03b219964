"""What templates of cards may use: texts, figures, and tables that are Markdown already."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from converter.conversion.release.manifest import SUMMARY_NAME, ReleaseFile
from converter.measurement.evidence import names
from converter.measurement.evidence.time_comparison import TimeComparison, compare_matrix, compare_offload
from converter.measurement.evidence.weights import TRANSFORMER, denoiser_noun
from converter.presentation.card import release_tables
from converter.presentation.card.ablation import describe_ablation
from converter.presentation.card.additions import quantized_images
from converter.presentation.card.component import CardComponent
from converter.presentation.card.evidence import CardEvidence
from converter.presentation.card.markdown import Markdown
from converter.presentation.card.memory import describe_memory
from converter.presentation.card.metadata import CardMetadata, GalleryImage
from converter.presentation.card.originals import describe_originals
from converter.presentation.card.pictures import CardPictures
from converter.presentation.card.release import CardRelease
from converter.presentation.card.sweep import describe_sweep_section
from converter.presentation.card.table_markdown import to_markdown
from converter.presentation.card.usage import describe_usage
from converter.presentation.tables import conditions, fidelity, measurements, times
from converter.presentation.tables.table import Table

#: Packages that a pinned installation names.
_PINNED = ("lensconv", "sdnq", "torch", *conditions.LIBRARIES)
#: Versions as in PEP 440. Any other text could be an option of pip.
_VERSION = re.compile(r"[0-9][0-9A-Za-z.!-]*")
#: Sections that need something, in the order of the card, and the reason why one is missing.
_REASONS = {
    "memory": "only a whole pipeline draws",
    "usage": "example programs exist only for complete pipelines without code of their own",
    "comparison": "the comparison grid is missing; make it with `lensconv grid`",
    "charts": "the charts are missing; make them with `lensconv charts`",
    "benchmark": f"{names.METRICS_NAME} is missing",
    "offload": f"neither {names.OFFLOAD_NAME} nor {names.SEQUENTIAL_NAME} exists",
    "matrix": f"{names.MATRIX_NAME} is missing",
    "images": f"{names.IMAGES_NAME} is missing",
    "weights": f"{names.WEIGHTS_NAME} is missing",
    "ablation": f"{names.ABLATION_NAME} is missing",
    "prompts": f"{names.MATRIX_NAME} does not contain the prompts; name their suite with --prompts",
}
#: In the order of the card. Few releases are measured in a sweep, so it is not missed.
SECTIONS = (
    *("quantized", "memory", "recipe", *(name for name in _REASONS if name not in ("memory", "prompts"))),
    *("sweep", "prompts", "provenance", "limits"),
)


def left_out(context: Mapping[str, Any]) -> dict[str, str]:
    """Return the sections for which there is nothing to show, and why."""
    return {name: reason for name, reason in _REASONS.items() if not context[name]}


def find_gallery(evidence: CardEvidence, texts: Mapping[str, str]) -> tuple[GalleryImage, ...]:
    """Return the images of the quantized model with their prompts; those without one have their titles."""
    matrix = evidence.files.get(names.MATRIX_NAME)
    if matrix is None:
        return ()
    pairs = quantized_images(matrix, evidence.folder)
    return tuple(GalleryImage(texts.get(row["id"], row["scenario"]), name) for row, name in pairs)


def find_ablation(evidence: CardEvidence) -> str:
    """Return what a summary says that an ablation found; empty when it says nothing."""
    return str(evidence.summary.get("root_cause_from_turbo_ablation", ""))


def build_context(
    release: CardRelease,
    evidence: CardEvidence,
    metadata: CardMetadata,
    *,
    repository: str,
    prompt_texts: Mapping[str, str],
    pictures: CardPictures,
    additions: Sequence[ReleaseFile],
) -> dict[str, Any]:
    """Return all values that a template may use.

    Args:
        release: what the card describes.
        evidence: its measurements.
        metadata: its front matter.
        repository: the name by which programs load the release.
        prompt_texts: in full, by id.
        pictures: the comparison grid and the charts.
        additions: files that come with the card.
    """
    measured = (names.METRICS_NAME, names.MATRIX_NAME, *names.OFFLOAD_FILES.values())
    environment = _first(evidence, measured, "environment")
    settings = _first(evidence, (names.METRICS_NAME, names.MATRIX_NAME), "settings")
    evidence_files = [file.name for file in additions if "/" not in file.name]
    if release.summary is not None and evidence.foreign_summary is None:
        evidence_files.insert(0, SUMMARY_NAME)
    return {
        "title": repository.rpartition("/")[2],
        "metadata": Markdown(metadata.to_yaml()),
        "repository": repository,
        "base_model": metadata.base_model,
        "base_revision": metadata.base_revision,
        "license": metadata.license,
        "verified": evidence.is_verified,
        "unverified": list(evidence.unverified),
        "unrecorded": list(evidence.unrecorded),
        "contradictions": list(evidence.contradictions),
        "foreign_summary": evidence.foreign_summary is not None,
        "usage": describe_usage(release, repository, settings),
        "pins": _pins(environment if "sdnq" in environment else release.content["versions"]),
        "pins_drew": "sdnq" in environment,
        "comparison": pictures.preview,
        "sheets": pictures.sheets,
        "charts": pictures.charts,
        "environment": conditions.environment(environment),
        "settings": conditions.settings(settings),
        "ablation": describe_ablation(
            evidence.files.get(names.ABLATION_NAME), evidence.variant, find_ablation(evidence), pictures
        ),
        "sweep": describe_sweep_section(evidence.sweep, evidence.folder),
        "evidence_files": evidence_files,
        "recipe": to_markdown(release_tables.recipe_table(release, metadata)),
        "provenance": to_markdown(release_tables.provenance_table(release, metadata)),
        "files": to_markdown(release_tables.files_table(release, additions)),
        "memory": describe_memory(release, evidence),
        "originals": describe_originals(release, evidence),
        **_describe_release(release),
        **_describe_times(evidence, prompt_texts, _measured_noun(release, evidence)),
        **_describe_fidelity(evidence),
    }


def _describe_release(release: CardRelease) -> dict[str, Any]:
    main = release.main
    is_pipeline = bool(release.others) or len(release.converted) > 1
    return {
        **_describe_component(main),
        "figures": release.figures(),
        "converted": [_describe_component(component) for component in release.converted],
        "terms": release.terms,
        "code": release.code,
        "components": to_markdown(release_tables.components_table(release)) if is_pipeline else None,
        "has_others": bool(release.others),
        "kept": release.kept,
        "matmul": [Markdown(name) for name in _with_matmul(release)],
        "encoder_quantization": release.quantizations.get("text_encoder", ""),
        "converted_before": [name for name, method in release.quantizations.items() if method == "sdnq"],
        "source_files": to_markdown(release_tables.source_table(release)),
    }


def _with_matmul(release: CardRelease) -> Iterator[str]:
    """Yield the attributes of a pipeline whose configurations ask for quantized matrix products."""
    for component in release.converted:
        name = component.name or TRANSFORMER
        # Any folder can be called a component; programs can name few.
        if component.uses_matmul and name.isidentifier():
            yield name


def _describe_component(component: CardComponent) -> dict[str, Any]:
    return {
        "name": component.name,
        "noun": component.noun,
        "is_lens": component.is_lens,
        "class_name": component.class_name or "transformer",
        "figures": component.figures(),
        "source_dtypes": component.source_dtypes,
        "kept_dtypes": component.kept_dtypes,
        "skip_patterns": component.skip_patterns,
        "adapters": component.described.adapters,
        "rounding": component.described.rounding,
        "quantized": to_markdown(release_tables.families_table(component)),
    }


def _measured_noun(release: CardRelease, evidence: CardEvidence) -> str:
    """What to call the component that measurements and summaries are about."""
    sources = _first(evidence, evidence.files, "sources")
    return denoiser_noun({"sources": sources}) if sources or not release.main.is_denoiser else release.main.noun


def _describe_times(evidence: CardEvidence, prompt_texts: Mapping[str, str], noun: str) -> dict[str, Any]:
    metrics, matrix = (evidence.files.get(name) for name in (names.METRICS_NAME, names.MATRIX_NAME))
    titles = measurements.labels(metrics) if metrics else names.MODEL_TITLES
    offloads = (evidence.files[name] for name in names.OFFLOAD_FILES.values() if name in evidence.files)
    return {
        "storage": _table(partial(measurements.storage_table, noun=noun), evidence.summary),
        "measured_noun": noun,
        "benchmark": to_markdown(measurements.benchmark_table(metrics, evidence.summary)) if metrics else None,
        "times": _times(compare_matrix(matrix)) if matrix else None,
        "offload": [_offload(content) for content in offloads],
        "matrix": to_markdown(measurements.matrix_table(matrix, titles)) if matrix else None,
        "prompts": [
            {"id": row["id"], "scenario": row["scenario"], "seed": row["seed"], "text": prompt_texts[row["id"]]}
            for row in (matrix["prompts"] if matrix else ())
            if row["id"] in prompt_texts
        ],
    }


def _offload(content: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "method": content["method"],
        "cold": content["cold_prompt"],
        "warm": list(content["warm_prompts"]),
        "table": to_markdown(measurements.offload_table(content)),
        "times": _times(compare_offload(content), "a warm image"),
    }


def _times(found: TimeComparison, image: str = "an image") -> dict[str, Any]:
    words, pairs = times.describe_times(found, image), times.pairs_table(found)
    return {
        "finding": words.finding,
        "disturbance": words.disturbance,
        "costs_time": words.costs_time,
        "pairs": None if pairs is None else to_markdown(pairs),
    }


def _describe_fidelity(evidence: CardEvidence) -> dict[str, Any]:
    images, weights = (evidence.files.get(name) for name in (names.IMAGES_NAME, names.WEIGHTS_NAME))
    return {
        "images": _table(fidelity.images_summary_table, images),
        "image_pairs": _table(fidelity.images_table, images),
        "image_steps": images["num_inference_steps"] if images else None,
        "trajectory_prompts": len(images.get("trajectory", {}).get("prompts", ())) if images else 0,
        "image_text": _table(fidelity.text_table, images),
        "weights": _table(fidelity.weights_table, weights),
    }


def _table(make: Callable[[Mapping[str, Any]], Table | None], content: Mapping[str, Any] | None) -> Markdown | None:
    """Return the table of a file as Markdown; None if the file does not exist or has nothing to show."""
    table = make(content) if content else None
    return None if table is None else to_markdown(table)


def _first(evidence: CardEvidence, files: Iterable[str], key: str) -> Mapping[str, Any]:
    """Return the value of a key in the first of these files that has it."""
    contents = (evidence.files.get(name, {}) for name in files)
    return next((content[key] for content in contents if key in content), {})


def _pins(versions: Mapping[str, Any]) -> list[str]:
    """Return requirements with these versions."""
    # After a plus sign comes the name of a build, which other machines may not have.
    pairs = ((name, str(versions.get(name)).partition("+")[0]) for name in _PINNED if name in versions)
    return [f"{name}=={version}" for name, version in pairs if _VERSION.fullmatch(version)]
