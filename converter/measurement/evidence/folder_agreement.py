"""Whether the files of measurements in one folder agree: in weights, prompts, settings and figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any

from converter.conversion.release.manifest import SUMMARY_NAME
from converter.measurement.evidence import names
from converter.measurement.evidence.differences import differences
from converter.measurement.evidence.statistics import combine_stages, shared_figures, spread

#: Fields that are the same in all files of one benchmark.
_SHARED = ("sources", "settings", "environment")
#: Adapters of both models, of which files of earlier versions say nothing, since there were none.
_ADAPTERS = tuple(f"sources.{model}.adapters" for model in names.MODELS)
#: Values in which a part that one file lacks counts, too, such as a variable that is not set.
_WHOLE = ("environment.sdnq_environment", *_ADAPTERS)
#: Where weights are from, which does not matter if they are the same.
_ADDRESS = ("repo_id", "revision")
_MATRIX_GIVES = f"{names.MATRIX_NAME} gives"


def disagreements_between(files: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Yield contradictions between files: the name of a file, and a reason that names the other.

    Args:
        files: contents by file name; each agrees with itself.
    """
    for first, second in combinations(files, 2):
        if names.ABLATION_NAME in (first, second):
            yield from ((first, reason) for reason in _other_original(files[first], files[second], second))
            continue
        for key in _SHARED:
            for reason in _unequal(key, files[first].get(key, {}), files[second].get(key, {}), second):
                yield first, reason
    for name, content in files.items():
        if "cold_prompt" in content and names.MATRIX_NAME in files:
            ids = [row["id"] for row in files[names.MATRIX_NAME]["prompts"]]
            if [content["cold_prompt"], *content["warm_prompts"]] != ids:
                yield name, f"the prompts, or their order, are not the same in {names.MATRIX_NAME}"
    for first, second, compare in (
        (names.METRICS_NAME, names.MATRIX_NAME, _metrics),
        (names.IMAGES_NAME, names.MATRIX_NAME, _images),
        (names.METRICS_NAME, SUMMARY_NAME, _summary),
    ):
        if first in files and second in files:
            for reason in compare(files[first], files[second]):
                yield first, reason


def _other_original(first: Mapping[str, Any], second: Mapping[str, Any], other: str) -> Iterator[str]:
    """Yield the weights of originals that differ; an ablation has settings and a machine of its own."""
    sources = [content.get("sources", {}).get(names.ORIGINAL) for content in (first, second)]
    if None not in sources:
        ours, theirs = ({key: value for key, value in found.items() if key not in _ADDRESS} for found in sources)
        yield from _unequal(f"sources.{names.ORIGINAL}", ours, theirs, other)


def _unequal(where: str, first: Any, second: Any, other: str) -> Iterator[str]:
    """Yield fields that both have, with different values; a later run may have another date."""
    if isinstance(first, Mapping) and isinstance(second, Mapping) and where not in _WHOLE:
        for key in {**first, **second}:
            is_compared = (key in first and key in second) or f"{where}.{key}" in _ADAPTERS
            if is_compared and (where, key) != ("environment", "date"):
                yield from _unequal(f"{where}.{key}", first.get(key), second.get(key), other)
    elif first != second:
        if isinstance(first, str | int | float):
            yield f"{where} is {first}, but {other} has {second}"
        else:
            yield f"{where} is not the same in {other}"


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
                yield from differences(f"models.{name}.generation_{key}", shown, computed, _MATRIX_GIVES)
        if "stages" in model and all("stages" in side for side in sides):
            stages = combine_stages(sides) if sides else None
            yield from differences(f"models.{name}.stages", model["stages"], stages, _MATRIX_GIVES)
    if "slowdown" in metrics and "summary" in matrix:
        yield from differences("slowdown", metrics["slowdown"], matrix["summary"].get("slowdown"), _MATRIX_GIVES)


def _images(images: Mapping[str, Any], matrix: Mapping[str, Any]) -> Iterator[str]:
    seeds = {row["id"]: row["seed"] for row in matrix["prompts"]}
    for pair in images["pairs"]:
        if pair["id"] not in seeds or pair["seed"] not in (None, seeds[pair["id"]]):
            yield f"prompt {pair['id']} with seed {pair['seed']} is not in {names.MATRIX_NAME}"
    steps = matrix.get("settings", {}).get("num_inference_steps")
    for prompt in images.get("trajectory", {}).get("prompts", ()):
        if prompt["id"] not in seeds:
            yield f"trajectory: prompt {prompt['id']} is not in {names.MATRIX_NAME}"
        if steps not in (None, len(prompt["steps"])):
            yield f"trajectory: {prompt['id']} has {len(prompt['steps'])} steps, but {names.MATRIX_NAME} has {steps}"
    if None not in (steps, images["num_inference_steps"]) and steps != images["num_inference_steps"]:
        yield f"num_inference_steps is {images['num_inference_steps']}, but {names.MATRIX_NAME} has {steps}"


def _summary(metrics: Mapping[str, Any], summary: Mapping[str, Any]) -> Iterator[str]:
    for model, key in zip(names.MODELS, names.SUMMARY_MODELS, strict=True):
        shown = metrics["models"][model]["transformer_storage_gb"]
        other = summary[f"{key}_transformer_tensor_storage_gb"]
        yield from differences(f"models.{model}.transformer_storage_gb", shown, other, f"{SUMMARY_NAME} gives")
