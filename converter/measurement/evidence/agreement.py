"""Whether the figures of one file agree with each other: what can be computed from other figures is computed again.

Files round to three digits, so figures that are computed from theirs may be off by a unit of the last digit. Fields
that a file lacks, such as the first published ones, agree with everything.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from converter.checkpoint.dtypes import BITS, WEIGHT_DTYPES
from converter.conversion.adapters.described import adapter_identities
from converter.measurement.evidence.ablation_agreement import ablation_disagreements
from converter.measurement.evidence.differences import differences
from converter.measurement.evidence.names import MODELS, OFFLOAD_PARTS, QUANTIZED, SUMMARY_MODELS
from converter.measurement.evidence.statistics import percent_change, spread, summarise_times
from converter.measurement.evidence.time_agreement import check_method, check_seconds, check_times, has_pairs
from converter.measurement.evidence.trajectory import trajectory_disagreements
from converter.measurement.evidence.units import DIGITS, GB, LOADED_BYTES, PERCENT_ROUNDING, ROUNDING


def disagreements(schema: str, content: Mapping[str, Any]) -> Iterator[str]:
    """Yield the contradictions inside one file that fits its schema.

    Args:
        schema: name of the schema.
        content: content of the file.
    """
    checks: dict[str, Callable[[Mapping[str, Any]], Iterator[str]]] = {
        "ablation": ablation_disagreements,
        "benchmark_metrics": _check_metrics,
        "comparison_matrix": _check_matrix,
        "image_fidelity": _check_images,
        "model_cpu_offload_benchmark": _check_offload,
        "sdnq_quantization_summary": _check_summary,
        "sweep": _check_sweep,
    }
    yield from _check_spreads(content, "")
    yield from _check_adapters(content.get("sources", {}))
    if schema in checks:
        yield from checks[schema](content)


def measured_times(matrix: Mapping[str, Any], model: str) -> dict[str, float]:
    """Return seconds by prompt, of those that were measured.

    Args:
        matrix: content of ``comparison_matrix.json``.
        model: ``original`` or ``quantized``.
    """
    return {row["id"]: row[model]["time_s"] for row in matrix["prompts"] if "time_s" in row[model]}


def _check_adapters(sources: Mapping[str, Any]) -> Iterator[str]:
    """Adapters are added to the original only if they are those that the quantized model contains."""
    original, quantized = (adapter_identities(sources.get(model, {}).get("adapters", {})) for model in MODELS)
    # An ablation is of the original alone.
    if original and QUANTIZED in sources and original != quantized:
        yield "sources: the adapters that were added to the original are not those of the quantized model"


def _check_metrics(content: Mapping[str, Any]) -> Iterator[str]:
    yield from check_method(content, "slowdown", content.get("slowdown"))
    sizes = []
    for name in MODELS:
        model = content["models"][name]
        where = f"models.{name}"
        yield from _check_reserved(model, where)
        if "transformer" in model:
            yield from _check_footprint(model, where)
        if "load_times_s" in model:
            median = statistics.median(model["load_times_s"])
            yield from differences(f"{where}.load_time_s", model["load_time_s"], median)
        sizes.append(model["transformer_storage_gb"])
    percent = content.get("transformer_storage_reduction_percent")
    if percent is not None:
        yield from _check_reduction(percent, *sizes)
    footprints = [content["models"][name].get("transformer", {}) for name in MODELS]
    parameters = [footprint.get("parameters") for footprint in footprints]
    if None not in parameters:
        if parameters[0] != parameters[1]:
            yield f"models: one transformer has {parameters[0]} parameters, the other {parameters[1]}"
        shown = content.get("transformer_storage_reduction_vs_bf16_percent")
        if shown is not None:
            percent = 100 * (1 - footprints[1]["bytes"] / (LOADED_BYTES * parameters[0]))
            yield from differences("transformer_storage_reduction_vs_bf16_percent", shown, round(percent, 1))


def _check_footprint(model: Mapping[str, Any], where: str) -> Iterator[str]:
    footprint, size = model["transformer"], model["transformer_storage_gb"]
    path = f"{where}.transformer"
    yield from _check_sum(path, footprint)
    families = footprint.get("families", ())
    for family in families:
        yield from _check_sum(f"{path}: {family['name']}", family)
    for key in ("bytes", "tensors"):
        total = sum(family.get(key, 0) for family in families)
        if families and key in footprint and total != footprint[key]:
            yield f"{path}: {key} is {footprint[key]}, but its families add up to {total}"
    if abs(size - footprint["bytes"] / GB) > ROUNDING:
        yield f"{where}.transformer_storage_gb is {size}, but its headers say {footprint['bytes']} bytes"
    dtypes = footprint["bytes_by_dtype"]
    if "parameters" in footprint and all(dtype in WEIGHT_DTYPES for dtype in dtypes):
        counted = sum(8 * size // BITS[dtype] for dtype, size in dtypes.items())
        if counted != footprint["parameters"]:
            yield f"{path}: parameters is {footprint['parameters']}, but its dtypes give {counted}"


def _check_matrix(content: Mapping[str, Any]) -> Iterator[str]:
    yield from _check_ids([row["id"] for row in content["prompts"]])
    for row in content["prompts"]:
        name = row["id"]
        for model in MODELS:
            side = row[model]
            yield from _check_reserved(side, f"{name}.{model}")
            yield from check_seconds(f"{name}.{model}.time_s", side.get("time_s"))
            if "times_s" in side:
                yield from differences(f"{name}.{model}.time_s", side.get("time_s"), statistics.median(side["times_s"]))
        if "delta_percent" in row and has_pairs(content):
            yield f"{name}.delta_percent is not part of {content['schema']}"
        elif "delta_percent" in row:
            times = [row[model].get("time_s") for model in MODELS]
            change = None if None in times else percent_change(*times)
            if change is None or abs(row["delta_percent"] - change) > PERCENT_ROUNDING:
                given = "a time is missing" if change is None else f"its times give {change:.1f}"
                yield f"{name}.delta_percent is {row['delta_percent']}, but {given}"
    summary = dict(content.get("summary", {}))
    slowdown = summary.pop("slowdown", None)
    times = [measured_times(content, model) for model in MODELS]
    yield from differences("summary", summary, summarise_times(*times))
    all_times = [{row["id"]: row[model].get("times_s", ()) for row in content["prompts"]} for model in MODELS]
    yield from check_times(content, "summary.slowdown", slowdown, times, all_times)


def _check_offload(content: Mapping[str, Any]) -> Iterator[str]:
    yield from _check_ids([content["cold_prompt"], *content["warm_prompts"]])
    warm_times: list[dict[str, float] | None] = [None, None]
    for index, name in enumerate(MODELS):
        model = content["models"][name]
        where = f"models.{name}"
        for part in OFFLOAD_PARTS:
            yield from _check_reserved(model[part], f"{where}.{part}")
        if "times_s" not in model:
            continue
        times = {key: statistics.median(values) for key, values in model["times_s"].items() if values}
        for key in times:
            if key not in (content["cold_prompt"], *content["warm_prompts"]):
                yield f"{where}.times_s: {key} is neither the cold prompt nor a warm one"
        for key, time in times.items():
            yield from check_seconds(f"{where}.times_s.{key}", time)
        warm = {key: times[key] for key in content["warm_prompts"] if key in times}
        warm_times[index] = warm
        if "time_s" in model["cold"]:
            yield from differences(f"{where}.cold.time_s", model["cold"]["time_s"], times.get(content["cold_prompt"]))
        if "time_s" in model["warm"]:
            computed = spread([round(time, DIGITS) for time in warm.values()]).to_dict() if warm else None
            yield from differences(f"{where}.warm.time_s", model["warm"]["time_s"], computed)
    all_times = [content["models"][name].get("times_s", {}) for name in MODELS]
    yield from check_times(content, "warm_slowdown", content.get("warm_slowdown"), warm_times, all_times)


def _check_images(content: Mapping[str, Any]) -> Iterator[str]:
    pairs = content["pairs"]
    summary = content["summary"]
    baselines = [pair["baseline"] for pair in pairs if pair["baseline"] is not None]
    for where, shown, images in (("summary", summary, pairs), ("summary.baseline", summary["baseline"], baselines)):
        for key in ("psnr_db", "ssim", "lpips"):
            if shown is not None:
                yield from _check_mean(f"{where}.{key}", shown[key], [image[key] for image in images])
        if shown is not None:
            added = [image["periodic_grid"]["added"] for image in images]
            yield from _check_mean(f"{where}.periodic_grid_added", shown["periodic_grid_added"], added)
    if "trajectory" in content:
        yield from trajectory_disagreements(content["trajectory"])


def _check_summary(content: Mapping[str, Any]) -> Iterator[str]:
    sizes = []
    for key in SUMMARY_MODELS:
        total = sum(content[f"{key}_transformer_dtypes"].values())
        shown = content[f"{key}_transformer_tensor_storage_gb"]
        if abs(shown - total / GB) > ROUNDING:
            yield f"{key}_transformer_tensor_storage_gb is {shown}, but its dtypes add up to {total} bytes"
        sizes.append(total / GB)
    yield from _check_reduction(content["transformer_storage_reduction_percent"], *sizes)


def _check_sweep(content: Mapping[str, Any]) -> Iterator[str]:
    folders = [model["folder"] for model in content["models"]]
    for name in {name for name in folders if folders.count(name) > 1}:
        yield f"models: {name} is listed {folders.count(name)} times"
    before = content["original"]["denoiser_bytes"]
    for name, model in zip(folders, content["models"], strict=True):
        percent = 100 * (1 - model["denoiser_bytes"] / before) if before else 0.0
        yield from differences(f"{name}.reduction_percent", model["reduction_percent"], round(percent, 1))


def _check_ids(ids: Sequence[str]) -> Iterator[str]:
    name, count = Counter(ids).most_common(1)[0]
    if count > 1:
        yield f"prompt {name} is listed {count} times"


def _check_sum(where: str, sizes: Mapping[str, Any]) -> Iterator[str]:
    added = sum(sizes["bytes_by_dtype"].values())
    if sizes["bytes"] != added:
        yield f"{where}: bytes is {sizes['bytes']}, but its dtypes add up to {added}"


def _check_reduction(percent: float, before: float, after: float) -> Iterator[str]:
    """Compare a reduction with rounded sizes in GB: for small models, several percentages fit the same sizes."""
    smallest, largest = (
        100 * (1 - (after + sign * ROUNDING) / (before - sign * ROUNDING)) if before > ROUNDING else -sign * math.inf
        for sign in (1, -1)
    )
    if not smallest - PERCENT_ROUNDING <= percent <= largest + PERCENT_ROUNDING:
        given = f"from {before:.3f} GB to {after:.3f} GB it is {100 * (1 - after / before):.1f}"
        yield f"transformer_storage_reduction_percent is {percent}, but {given}"


def _check_reserved(figures: Mapping[str, Any], where: str) -> Iterator[str]:
    """Allocated memory is a part of the reserved memory."""
    for key, value in figures.items():
        reserved = figures.get(key.replace("_allocated_", "_reserved_"))
        if "_allocated_" not in key or reserved is None:
            continue
        allocated, outer = (item.get("max", 0) if isinstance(item, Mapping) else item for item in (value, reserved))
        if allocated > outer + ROUNDING:
            yield f"{where}.{key} is {allocated}, more than the {outer} that were reserved"


def _check_spreads(value: Any, path: str) -> Iterator[str]:
    """Means and medians are between the least and the most, and figures are inside their intervals."""
    if not isinstance(value, Mapping):
        return
    for key, figure in value.items():
        bounds: Any = value.get(f"{key}_interval")
        if key in ("mean", "median"):
            bounds = value.get("min", figure), value.get("max", figure)
        if bounds is not None and isinstance(figure, float | int):
            least, most = bounds
            if not least - ROUNDING <= figure <= most + ROUNDING:
                bound = f"min is {least}" if figure < least else f"max is {most}"
                reason = f"the {bound}" if key in ("mean", "median") else f"its interval is {least} to {most}"
                yield f"{path}.{key} is {figure}, but {reason}"
        yield from _check_spreads(figure, f"{path}.{key}" if path else key)


def _check_mean(where: str, shown: Mapping[str, Any] | None, figures: Sequence[float | None]) -> Iterator[str]:
    values = [figure for figure in figures if figure is not None]
    if shown is None or not values:
        if shown is not None or values:
            count = {0: "no pair has", 1: "1 pair has"}.get(len(values), f"{len(values)} pairs have")
            yield f"{where} is {'missing' if shown is None else 'present'}, but {count} it"
        return
    yield from differences(where, shown, spread(values).to_dict())
