"""Whether figures agree: those of one file with each other, and those of files that speak of the same thing.

Files round to three digits, so that a sum of what they show may be off by half a unit of the last one a term.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from converter.errors import printable
from converter.evidence.statistics import percent_change

MODELS = ("original", "quantized")
#: What rounding to three digits may shift a figure by; half a unit, and a little for binary fractions.
_ROUNDING = 0.00051
#: Likewise for percents with one digit, computed from sizes that are rounded themselves.
_PERCENT_ROUNDING = 0.051
_GB = 10**9


def disagreements(schema: str, content: Mapping[str, Any]) -> Iterator[str]:
    """What contradicts what inside one file that fits its schema.

    Args:
        schema: name of the schema.
        content: of the file.
    """
    check = {
        "benchmark_metrics": _check_metrics,
        "comparison_matrix": _check_matrix,
        "model_cpu_offload_benchmark": _check_offload,
        "sdnq_quantization_summary": _check_summary,
    }.get(schema)
    yield from _check_spreads(content, "")
    if check is not None:
        yield from check(content)


def disagreements_between(files: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[tuple[str, str], str]]:
    """What contradicts what between files of one folder: pairs of file names, and a reason.

    Args:
        files: their contents by their names; each agrees with itself.
    """
    names = list(files)
    for index, name in enumerate(names):
        for other in names[:index]:
            for model in MODELS:
                if _weights(files[name], model) not in (None, _weights(files[other], model)) and _weights(
                    files[other], model
                ):
                    yield (name, other), f"the {model} weights are others"
            for key in ("num_inference_steps", "guidance_scale", "height", "width"):
                values = [files[one].get("settings", {}).get(key) for one in (name, other)]
                if None not in values and values[0] != values[1]:
                    yield (name, other), f"{key} is {values[0]}, and not {values[1]}"
    metrics, matrix = (files.get(f"{name}.json") for name in ("benchmark_metrics", "comparison_matrix"))
    if metrics is not None and matrix is not None:
        for reason in _compare_with_matrix(metrics, matrix):
            yield ("benchmark_metrics.json", "comparison_matrix.json"), reason
    summary = files.get("sdnq_quantization_summary.json")
    if metrics is not None and summary is not None:
        for model, key in zip(MODELS, ("base", "quant"), strict=True):
            shown, other_shown = (
                metrics["models"][model]["transformer_storage_gb"],
                summary[f"{key}_transformer_tensor_storage_gb"],
            )
            if abs(shown - other_shown) > _ROUNDING:
                yield (
                    ("benchmark_metrics.json", "sdnq_quantization_summary.json"),
                    f"the {model} transformer takes {shown} GB, and not {other_shown}",
                )


def measured_times(matrix: Mapping[str, Any], model: str) -> dict[str, float]:
    """Seconds by prompt, of those that were measured.

    Args:
        matrix: content of ``comparison_matrix.json``.
        model: ``original`` or ``quantized``.
    """
    return {row["id"]: row[model]["time_s"] for row in matrix["prompts"] if "time_s" in row[model]}


def _check_metrics(content: Mapping[str, Any]) -> Iterator[str]:
    sizes = []
    for model in MODELS:
        shown = content["models"][model]
        yield from _check_reserved(shown, f"models.{model}")
        size = shown["transformer_storage_gb"]
        footprint = shown.get("transformer")
        if footprint is not None:
            where = f"models.{model}.transformer"
            yield from _check_sum(where, footprint["bytes"], footprint["bytes_by_dtype"])
            families = footprint.get("families", ())
            for family in families:
                yield from _check_sum(f"{where}: {family['name']}", family["bytes"], family["bytes_by_dtype"])
            total = sum(family["bytes"] for family in families)
            if families and total != footprint["bytes"]:
                yield f"{where}: bytes is {footprint['bytes']}, and its families add up to {total}"
            if abs(size - footprint["bytes"] / _GB) > _ROUNDING:
                yield f"models.{model}.transformer_storage_gb is {size}, and its headers say {footprint['bytes']} bytes"
        sizes.append(size)
    percent = content.get("transformer_storage_reduction_percent")
    if percent is not None:
        yield from _check_reduction(percent, *sizes)


def _check_matrix(content: Mapping[str, Any]) -> Iterator[str]:
    yield from _check_ids([row["id"] for row in content["prompts"]])
    for row in content["prompts"]:
        for model in MODELS:
            yield from _check_reserved(row[model], f"{printable(row['id'])}.{model}")
            time, times = row[model].get("time_s"), row[model].get("times_s")
            if times and abs(statistics.median(times) - time) > _ROUNDING:
                yield f"{printable(row['id'])}.{model}.time_s is {time}, which is no median of its times"
        if "delta_percent" in row:
            times = [row[model].get("time_s") for model in MODELS]
            if not all(times) or abs(row["delta_percent"] - percent_change(*times)) > _PERCENT_ROUNDING:
                yield f"{printable(row['id'])}.delta_percent is {row['delta_percent']}, which its times do not give"
    summary = content.get("summary", {})
    for model in MODELS:
        if model in summary:
            yield from _check_mean(f"summary.{model}", summary[model], list(measured_times(content, model).values()))


def _check_offload(content: Mapping[str, Any]) -> Iterator[str]:
    yield from _check_ids([content["cold_prompt"], *content["warm_prompts"]])
    for model in MODELS:
        for part in ("setup", "cold", "warm"):
            yield from _check_reserved(content["models"][model][part], f"models.{model}.{part}")


def _check_summary(content: Mapping[str, Any]) -> Iterator[str]:
    sizes = []
    for key in ("base", "quant"):
        total = sum(content[f"{key}_transformer_dtypes"].values())
        shown = content[f"{key}_transformer_tensor_storage_gb"]
        if abs(shown - total / _GB) > _ROUNDING:
            yield f"{key}_transformer_tensor_storage_gb is {shown}, and its dtypes add up to {total} bytes"
        sizes.append(total / _GB)
    yield from _check_reduction(content["transformer_storage_reduction_percent"], *sizes)


def _check_ids(ids: Sequence[str]) -> Iterator[str]:
    name, count = Counter(ids).most_common(1)[0]
    if count > 1:
        yield f"prompt {printable(name)} is there {count} times"


def _check_sum(where: str, total: int, by_dtype: Mapping[str, int]) -> Iterator[str]:
    added = sum(by_dtype.values())
    if total != added:
        yield f"{where}: bytes is {total}, and its dtypes add up to {added}"


def _check_reduction(percent: float, before: float, after: float) -> Iterator[str]:
    """Sizes of small models are rounded so coarsely that only what every size behind them excludes is a fault."""
    smallest, largest = (
        100 * (1 - (after + sign * _ROUNDING) / (before - sign * _ROUNDING)) if before > _ROUNDING else -sign * 1e9
        for sign in (1, -1)
    )
    if not smallest - _PERCENT_ROUNDING <= percent <= largest + _PERCENT_ROUNDING:
        yield f"transformer_storage_reduction_percent is {percent}, and {after:.3f} GB of {before:.3f} GB are left"


def _check_reserved(figures: Mapping[str, Any], where: str) -> Iterator[str]:
    """What is reserved holds what is allocated."""
    for key, value in figures.items():
        reserved = figures.get(key.replace("_allocated_", "_reserved_"))
        if "_allocated_" not in key or reserved is None:
            continue
        pairs = [(value, reserved)] if isinstance(value, float | int) else [(value.get("max"), reserved.get("max"))]
        for allocated, outer in pairs:
            if None not in (allocated, outer) and allocated > outer + _ROUNDING:
                yield f"{where}.{key} is {allocated}, more than the {outer} that were reserved"


def _check_spreads(value: Any, path: str) -> Iterator[str]:
    """Means and medians lie between the least and the most."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _check_spreads(item, f"{path}.{index}")
    if not isinstance(value, Mapping):
        return
    if "mean" in value:
        for key in ("mean", "median"):
            figure = value.get(key)
            if figure is None or isinstance(figure, bool):
                continue
            least, most = value.get("min"), value.get("max")
            if (least is not None and figure < least - _ROUNDING) or (most is not None and figure > most + _ROUNDING):
                yield f"{path}.{key} is {figure}, outside of its own least and most"
    for key, item in value.items():
        yield from _check_spreads(item, f"{path}.{key}" if path else key)


def _check_mean(where: str, shown: Mapping[str, Any], values: Sequence[float]) -> Iterator[str]:
    for key, expected in (("mean", statistics.fmean), ("median", statistics.median)):
        if key in shown and (not values or abs(shown[key] - expected(values)) > 2 * _ROUNDING):
            yield f"{where}.{key} is {shown[key]}, and the prompts give {expected(values) if values else 'none'}"


def _compare_with_matrix(metrics: Mapping[str, Any], matrix: Mapping[str, Any]) -> Iterator[str]:
    if matrix.get("mode", "standard") != "standard":
        return
    for model in MODELS:
        shown = metrics["models"][model].get("generation_time_s")
        if shown is not None:
            times = list(measured_times(matrix, model).values())
            yield from _check_mean(f"models.{model}.generation_time_s", shown, times)


def _weights(content: Mapping[str, Any], model: str) -> list[tuple[str, str]] | None:
    source = content.get("sources", {}).get(model)
    return None if source is None else sorted((file["name"], file["sha256"]) for file in source["transformer"])
