"""Whether the files of measurements in one folder agree: in weights, prompts, settings and figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any

from converter.conversion.release.manifest import SUMMARY_NAME
from converter.measurement.evidence import names
from converter.measurement.evidence.agreement import differences
from converter.measurement.evidence.statistics import combine_stages, shared_figures, spread

#: Fields that are the same in all files of one benchmark.
_SHARED = ("sources", "settings", "environment")


def disagreements_between(files: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str, str]]:
    """Yield contradictions between files: the names of two files, and a reason.

    Args:
        files: contents by file name; each agrees with itself.
    """
    for first, second in combinations(files, 2):
        for key in _SHARED:
            values = [files[name].get(key, {}) for name in (first, second)]
            for reason in _unequal(key, *values):
                yield first, second, reason
    for name, content in files.items():
        if "cold_prompt" in content and names.MATRIX_NAME in files:
            ids = [row["id"] for row in files[names.MATRIX_NAME]["prompts"]]
            if [content["cold_prompt"], *content["warm_prompts"]] != ids:
                yield name, names.MATRIX_NAME, "the prompts, or their order, differ"
    for first, second, compare in (
        (names.METRICS_NAME, names.MATRIX_NAME, _metrics),
        (names.IMAGES_NAME, names.MATRIX_NAME, _images),
        (names.METRICS_NAME, SUMMARY_NAME, _summary),
    ):
        if first in files and second in files:
            for reason in compare(files[first], files[second]):
                yield first, second, reason


def _unequal(where: str, first: Any, second: Any) -> Iterator[str]:
    """Yield fields that both have, with different values; a later run may have another date."""
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        for key in (key for key in first if key in second):
            if (where, key) != ("environment", "date"):
                yield from _unequal(f"{where}.{key}", first[key], second[key])
    elif first != second:
        yield f"{where} is {first}, not {second}" if isinstance(first, str | int | float) else f"{where} differs"


def _metrics(metrics: Mapping[str, Any], matrix: Mapping[str, Any]) -> Iterator[str]:
    if matrix.get("mode", names.STANDARD) != names.STANDARD:
        return
    for name in names.MODELS:
        model = metrics["models"][name]
        sides = [row[name] for row in matrix["prompts"] if "time_s" in row[name]]
        for key in shared_figures(sides) or ["time_s"]:
            shown = model.get(f"generation_{key}")
            if shown is not None:
                computed = spread([side[key] for side in sides]).to_dict() if sides else None
                yield from differences(f"models.{name}.generation_{key}", shown, computed)
        if "stages" in model and all("stages" in side for side in sides):
            yield from differences(f"models.{name}.stages", model["stages"], combine_stages(sides) if sides else None)
    if "slowdown" in metrics and "summary" in matrix:
        yield from differences("slowdown", metrics["slowdown"], matrix["summary"].get("slowdown"))


def _images(images: Mapping[str, Any], matrix: Mapping[str, Any]) -> Iterator[str]:
    seeds = {row["id"]: row["seed"] for row in matrix["prompts"]}
    for pair in images["pairs"]:
        if pair["id"] not in seeds or pair["seed"] not in (None, seeds[pair["id"]]):
            yield f"prompt {pair['id']} with seed {pair['seed']} is missing"
    steps = matrix.get("settings", {}).get("num_inference_steps")
    if None not in (steps, images["num_inference_steps"]) and steps != images["num_inference_steps"]:
        yield f"num_inference_steps is {images['num_inference_steps']}, not {steps}"


def _summary(metrics: Mapping[str, Any], summary: Mapping[str, Any]) -> Iterator[str]:
    for model, key in zip(names.MODELS, names.SUMMARY_MODELS, strict=True):
        shown = metrics["models"][model]["transformer_storage_gb"]
        other = summary[f"{key}_transformer_tensor_storage_gb"]
        yield from differences(f"models.{model}.transformer_storage_gb", shown, other)
