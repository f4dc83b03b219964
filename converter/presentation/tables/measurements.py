"""Tables of a benchmark: times, memory and sizes of both models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from converter.checkpoint.dtypes import BITS, LONG_NAMES, WEIGHT_DTYPES
from converter.measurement.evidence.names import MODELS, OFFLOAD_PARTS, PEAKS, SUMMARY_MODELS, peak_key
from converter.measurement.evidence.units import LOADED_BYTES
from converter.measurement.evidence.weights import denoiser_title
from converter.presentation.tables.figures import count, number, percent, reduction
from converter.presentation.tables.table import NOTHING, Figure, Label, Table, keep_measured
from converter.presentation.tables.times import RATIO

#: Statistics of several measurements, as tables call them.
_STATISTICS = {"mean": "average", "median": "median", "max": "max"}
_TIME_STATISTICS, _PEAK_STATISTICS = ("mean", "median"), ("mean", "max")
_OFFLOAD_TITLES = dict(zip(OFFLOAD_PARTS, ("Set-up and load", "Cold image", "Warm images"), strict=True))
#: Longest reason of a failure that a cell repeats, in characters.
_REASON_LIMIT = 300
#: Bytes of a parameter, by the names of dtypes in ``sdnq_quantization_summary.json``.
_DTYPE_BYTES = {LONG_NAMES[dtype]: BITS[dtype] // 8 for dtype in WEIGHT_DTYPES}
#: What a summary of a quantization says of the quantized model alone.
_QUANTIZATION_FIGURES = {
    "transformer_load_time_s": "Load of the transformer, seconds",
    "transformer_load_peak_allocated_gb": "Load of the transformer, peak allocated VRAM, GB",
    "transformer_load_peak_reserved_gb": "Load of the transformer, peak reserved VRAM, GB",
    "quantization_time_s": "Quantization, seconds",
    "quantization_peak_allocated_gb": "Quantization, peak allocated VRAM, GB",
    "quantization_peak_reserved_gb": "Quantization, peak reserved VRAM, GB",
}

Row = list[object]


def labels(content: Mapping[str, Any]) -> list[str]:
    """Return the titles of both models' columns.

    Args:
        content: of ``benchmark_metrics.json``, or of an offload benchmark.
    """
    return [str(content["models"][name]["label"]) for name in MODELS]


def benchmark_table(metrics: Mapping[str, Any], summary: Mapping[str, Any] | None = None) -> Table:
    """Return load and generation of both models.

    Args:
        metrics: content of ``benchmark_metrics.json``.
        summary: content of ``sdnq_quantization_summary.json``, for a figure that the metrics may lack.
    """
    models = [metrics["models"][name] for name in MODELS]
    vs_bf16 = metrics.get("transformer_storage_reduction_vs_bf16_percent")
    if vs_bf16 is None and summary:
        vs_bf16 = _summary_vs_bf16(summary)
    rows = [_row("Load time, seconds", models, "load_time_s")]
    rows += [_row(f"Load {text}", models, f"load_{peak_key(kind)}") for kind, text in PEAKS.items()]
    title = denoiser_title(metrics)
    rows.append(_row(f"{title} tensors, GB", models, "transformer_storage_gb"))
    for text, value in (
        (f"{title} against the original as stored", metrics.get("transformer_storage_reduction_percent")),
        (f"{title} against the original in bfloat16", vs_bf16),
    ):
        if value is not None:
            rows.append([text, NOTHING, Figure(f"{value:.1f}% smaller")])
    for part in _TIME_STATISTICS:
        rows.append(_row(f"Time of an image, {_STATISTICS[part]}, seconds", models, "generation_time_s", part))
    for kind, text in PEAKS.items():
        for part in _PEAK_STATISTICS:
            label = f"Generation {text}, {_STATISTICS[part]}"
            rows.append(_row(label, models, f"generation_{peak_key(kind)}", part))
    return Table(["", *labels(metrics)], keep_measured([*rows, *_failures(models)]))


def offload_table(offload: Mapping[str, Any]) -> Table:
    """Return set-up, cold and warm generation of both models with weights off the device.

    Args:
        offload: content of ``model_cpu_offload_benchmark.json``, or of the sequential one.
    """
    figures = {"time_s": "time, seconds", **{peak_key(kind): text for kind, text in PEAKS.items()}}
    rows: list[Row] = []
    for part, title in _OFFLOAD_TITLES.items():
        sides = [offload["models"][name][part] for name in MODELS]
        rows.append([title, *(_failure(side["failed"]) if "failed" in side else NOTHING for side in sides)])
        for key, text in figures.items():
            if part != "warm":
                rows.append(_row(f"{title}, {text}", sides, key))
                continue
            for kind in _TIME_STATISTICS if key == "time_s" else _PEAK_STATISTICS:
                rows.append(_row(f"{title}, {_STATISTICS[kind]} {text}", sides, key, kind))
    return Table(["", *labels(offload)], keep_measured(rows))


def matrix_table(matrix: Mapping[str, Any], titles: Sequence[str], *, with_scenarios: bool = True) -> Table:
    """Return a row for each prompt; what failed says why.

    Args:
        matrix: content of ``comparison_matrix.json``.
        titles: names of both models.
        with_scenarios: whether to show the title of each prompt, which needs a wide page.
    """
    all_sides = [row[model] for row in matrix["prompts"] for model in MODELS]
    peak = next((kind for kind in PEAKS if any(peak_key(kind) in side for side in all_sides)), None)
    rows = []
    for row in matrix["prompts"]:
        sides = [row[model] for model in MODELS]
        # Times that were taken over are not from a process next to that of the other model.
        times = [None if side.get("taken_over") else side.get("time_s") for side in sides]
        cells: Row = [row["id"], *([row["scenario"]] if with_scenarios else []), row["seed"]]
        cells += [_failure(side["failed"]) if "failed" in side else number(side.get("time_s")) for side in sides]
        cells.append(number(None if None in times or not times[0] else times[1] / times[0]))
        cells += [number(side.get(peak_key(peak))) for side in sides] if peak else []
        rows.append(cells)
    names = ["ID", "Scenario"] if with_scenarios else ["ID"]
    columns = [*names, "Seed", *(f"{title}, s" for title in titles), RATIO]
    columns += [f"{title}, {PEAKS[peak]}" for title in titles] if peak else []
    return Table(columns, rows, "l" * len(names) + "r" * (len(columns) - len(names)))


def storage_table(summary: Mapping[str, Any], noun: str = "transformer") -> Table:
    """Return what a summary of a quantization says of both denoisers, byte by byte.

    Args:
        summary: content of ``sdnq_quantization_summary.json``.
        noun: what to call the denoiser.
    """
    by_dtype = [summary[f"{side}_transformer_dtypes"] for side in SUMMARY_MODELS]
    rows: list[Row] = [["Tensors", *(count(summary[f"{side}_transformer_tensors"]) for side in SUMMARY_MODELS)]]
    rows += [
        [Label(dtype, "bytes"), *(count(sizes.get(dtype)) for sizes in by_dtype)] for dtype in by_dtype[0] | by_dtype[1]
    ]
    for key, text in (("tensor_storage", "Tensors, GB"), ("repo_files", f"Files of the {noun}, GB")):
        rows.append([text, *(number(summary.get(f"{side}_transformer_{key}_gb")) for side in SUMMARY_MODELS)])
    rows.append(["Smaller than the source", NOTHING, percent(summary["transformer_storage_reduction_percent"])])
    rows.append(["Smaller than the source in bfloat16", NOTHING, percent(_summary_vs_bf16(summary))])
    rows += [[text, NOTHING, number(summary.get(key))] for key, text in _QUANTIZATION_FIGURES.items()]
    return Table(["", "Source", "Quantized"], keep_measured(rows))


def _summary_vs_bf16(summary: Mapping[str, Any]) -> float | None:
    """Return the reduction against the source in bfloat16; None where its dtypes do not give its parameters."""
    source = summary["base_transformer_dtypes"]
    if not source or not source.keys() <= _DTYPE_BYTES.keys():
        return None
    loaded = sum(LOADED_BYTES * size // _DTYPE_BYTES[dtype] for dtype, size in source.items())
    return reduction(loaded, sum(summary["quant_transformer_dtypes"].values()))


def _row(label: str, models: Sequence[Mapping[str, Any]], key: str, part: str = "") -> Row:
    """Return a figure of each model, or one of its statistics."""
    values = [model.get(key) for model in models]
    if part:
        values = [(value or {}).get(part) for value in values]
    return [label, *map(number, values)]


def _failures(models: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    """Yield a row for each thing that failed and was not measured later."""
    for position, model in enumerate(models):
        for failed in model.get("failed", ()):
            cells: Row = [NOTHING, NOTHING]
            cells[position] = _failure(failed["reason"])
            yield [f"{failed.get('prompt', 'load')}, pair {failed.get('pair', failed.get('repeat', 0)) + 1}", *cells]


def _failure(reason: str) -> str:
    return f"failed: {reason if len(reason) <= _REASON_LIMIT else reason[: _REASON_LIMIT - 1] + '…'}"
