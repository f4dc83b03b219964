"""Tables of a card: times, memory and sizes of both models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from converter.measurement.evidence.agreement import MODELS
from converter.measurement.evidence.statistics import percent_change
from converter.measurement.evidence.summary import matrix_statistics
from converter.presentation.card.figures import NOTHING, count, number, percent, reduction, signed_percent
from converter.presentation.card.markdown import Markdown, code, escape, table

#: Kinds of peaks, by the names that tables give them.
PEAKS = {
    "peak_allocated_gb": "peak allocated VRAM, GB",
    "peak_reserved_gb": "peak reserved VRAM, GB",
    "peak_rss_gb": "peak memory of the process, GB",
    "peak_device_gb": "peak memory of the device, GB",
}
_PARTS = {"mean": "average", "median": "median", "max": "max"}
#: Longest reason of a failure that a cell repeats.
_REASON_LIMIT = 300

Row = list[object]


def labels(models: Mapping[str, Any]) -> list[str]:
    """Titles of both models' columns."""
    return [str(models[name]["label"]) for name in MODELS]


def benchmark_table(metrics: Mapping[str, Any], vs_bf16: float | None) -> Markdown:
    """Load and generation of both models.

    Args:
        metrics: content of ``benchmark_metrics.json``.
        vs_bf16: reduction against the original in bfloat16, where it is known.
    """
    models = [metrics["models"][name] for name in MODELS]
    rows = [_pair("Load time, seconds", models, "load_time_s")]
    rows += [_pair(f"Load {text}", models, f"load_{key}") for key, text in PEAKS.items()]
    rows.append(_pair("Transformer tensors, GB", models, "transformer_storage_gb"))
    for text, value in (
        ("Transformer against the original as stored", metrics.get("transformer_storage_reduction_percent")),
        ("Transformer against the original in bfloat16", vs_bf16),
    ):
        if value is not None:
            rows.append([text, NOTHING, f"{value:.1f}% smaller"])
    for part in ("mean", "median"):
        rows.append(_pair(f"Time of an image, {_PARTS[part]}, seconds", models, "generation_time_s", part))
    for key, text in PEAKS.items():
        rows += [
            _pair(f"Generation {text}, {_PARTS[part]}", models, f"generation_{key}", part) for part in ("mean", "max")
        ]
    rows += _failures(models)
    return table(["", *labels(metrics["models"])], [row for row in rows if _has_figures(row)])


def offload_table(offload: Mapping[str, Any]) -> Markdown:
    """Set-up, cold and warm generation of both models with weights off the device.

    Args:
        offload: content of ``model_cpu_offload_benchmark.json``, or of the sequential one.
    """
    models = [offload["models"][name] for name in MODELS]
    rows: list[Row] = []
    for part, text in (("setup", "Set-up and load"), ("cold", "Cold image"), ("warm", "Warm images")):
        sides = [model[part] for model in models]
        if any("failed" in side for side in sides):
            rows.append([text, *(_failure(side["failed"]) if "failed" in side else NOTHING for side in sides)])
        for key, label in {"time_s": "time, seconds", **PEAKS}.items():
            kinds = {"warm": ("mean", "median") if key == "time_s" else ("mean", "max")}.get(part, ("",))
            rows += [_pair(f"{text}, {_label(label, kind)}", sides, key, kind) for kind in kinds]
    return table(["", *labels(offload["models"])], [row for row in rows if _has_figures(row)])


def matrix_table(matrix: Mapping[str, Any], titles: Sequence[str]) -> Markdown:
    """A row for each prompt; what failed says why.

    Args:
        matrix: content of ``comparison_matrix.json``.
        titles: names of both models.
    """
    peak = _peak(matrix)
    rows: list[Row] = []
    for row in matrix["prompts"]:
        sides = [row[model] for model in MODELS]
        times = [side.get("time_s") for side in sides]
        delta = row.get("delta_percent", percent_change(*times) if None not in times else None)
        rows.append(
            [
                row["id"],
                row["scenario"],
                row["seed"],
                *(number(side["time_s"]) if "time_s" in side else _failure(side["failed"]) for side in sides),
                signed_percent(delta),
                *([number(side.get(peak)) for side in sides] if peak else []),
            ]
        )
    columns = ["ID", "Scenario", "Seed", *(f"{title}, s" for title in titles), "Delta"]
    columns += [f"{title}, {PEAKS[peak]}" for title in titles] if peak else []
    return table(columns, rows, "ll" + "r" * (len(columns) - 2))


def matrix_figures(matrix: Mapping[str, Any]) -> dict[str, Any]:
    """Statistics of the matrix as text: the slowdown, in words, and how many sides failed."""
    found = matrix_statistics(matrix)
    return {"slowdown": slowdown_figures(found.get("slowdown")), "failed": found["failed"], "rows": len(found["rows"])}


def slowdown_figures(slowdown: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A slowdown as templates show it."""
    if slowdown is None:
        return None
    ratio, seconds = slowdown.get("ratio_of_means_percent_interval"), slowdown.get("mean_difference_s_interval")
    return {
        "percent": signed_percent(slowdown["ratio_of_means_percent"]),
        "is_slower": slowdown["ratio_of_means_percent"] > 0,
        "interval": Markdown(f"{ratio[0]:+.1f}% to {ratio[1]:+.1f}%") if ratio else None,
        "seconds": Markdown(f"{slowdown['mean_difference_s']:+.3f} s"),
        "seconds_interval": Markdown(f"{seconds[0]:+.3f} to {seconds[1]:+.3f} s") if seconds else None,
        "pairs": slowdown["pairs"],
    }


def storage_table(summary: Mapping[str, Any]) -> Markdown:
    """What a summary of a quantization says of both transformers, byte by byte.

    Args:
        summary: content of ``sdnq_quantization_summary.json``.
    """
    sides = ("base", "quant")
    dtypes: list[str] = [key for side in sides for key in summary[f"{side}_transformer_dtypes"]]
    rows: list[Row] = [["Tensors", *(count(summary[f"{side}_transformer_tensors"]) for side in sides)]]
    for dtype in dict.fromkeys(dtypes):
        sizes = (summary[f"{side}_transformer_dtypes"].get(dtype) for side in sides)
        rows.append([Markdown(f"{code(dtype)} bytes"), *(count(size) for size in sizes)])
    for key, text in (("tensor_storage", "Tensors, GB"), ("repo_files", "Files of the transformer, GB")):
        rows.append([text, *(number(summary.get(f"{side}_transformer_{key}_gb")) for side in sides)])
    rows.append(["Smaller than the source", NOTHING, percent(summary["transformer_storage_reduction_percent"])])
    rows.append(["Smaller than it in bfloat16", NOTHING, percent(summary_vs_bf16(summary))])
    for key, text in (
        ("transformer_load_time_s", "Load of the transformer, seconds"),
        ("transformer_load_peak_allocated_gb", "Load of the transformer, peak allocated VRAM, GB"),
        ("transformer_load_peak_reserved_gb", "Load of the transformer, peak reserved VRAM, GB"),
        ("quantization_time_s", "Quantization, seconds"),
        ("quantization_peak_allocated_gb", "Quantization, peak allocated VRAM, GB"),
        ("quantization_peak_reserved_gb", "Quantization, peak reserved VRAM, GB"),
    ):
        rows.append([text, NOTHING, number(summary.get(key))])
    return table(["", "Source", "Quantized"], [row for row in rows if _has_figures(row)])


def summary_vs_bf16(summary: Mapping[str, Any]) -> float | None:
    """Reduction against the source in bfloat16, where its dtypes tell how many parameters it has."""
    sizes = {"FLOAT64": 8, "FLOAT32": 4, "FLOAT16": 2, "BFLOAT16": 2}
    source = summary["base_transformer_dtypes"]
    if not source or not source.keys() <= sizes.keys():
        return None
    loaded = sum(2 * size // sizes[dtype] for dtype, size in source.items())
    return reduction(loaded, sum(summary["quant_transformer_dtypes"].values()))


def _peak(matrix: Mapping[str, Any]) -> str:
    sides = [row[model] for row in matrix["prompts"] for model in MODELS]
    return next((key for key in PEAKS if any(key in side for side in sides)), "")


def _label(label: str, kind: str) -> str:
    return f"{_PARTS[kind]} {label}" if kind else label


def _pair(label: str, models: Sequence[Mapping[str, Any]], key: str, part: str = "") -> Row:
    values = [model.get(key) for model in models]
    if part:
        values = [value.get(part) if value is not None else None for value in values]
    return [label, *(number(value) for value in values)]


def _failures(models: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    """A row for each thing that failed and was not measured later."""
    for place, model in enumerate(models):
        for failed in model.get("failed", ()):
            cells: list[object] = [NOTHING, NOTHING]
            cells[place] = _failure(failed["reason"])
            yield [f"{failed.get('prompt', 'load')}, run {failed.get('repeat', 0) + 1}", *cells]


def _failure(reason: str) -> Markdown:
    shown = reason if len(reason) <= _REASON_LIMIT else reason[: _REASON_LIMIT - 1] + "…"
    return Markdown(f"failed: {escape(shown)}")


def _has_figures(row: Row) -> bool:
    return any(cell is not NOTHING and cell != NOTHING for cell in row[1:])
