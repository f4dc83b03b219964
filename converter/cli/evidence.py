"""``lensconv evidence``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from converter.cli.compare import render_summary as render_images
from converter.cli.options import PATH, output_options, pass_console
from converter.cli.verify import render_fidelity
from converter.console import Console, table
from converter.errors import printable

if TYPE_CHECKING:
    from rich.console import RenderableType

_MODELS = ("original", "quantized")
#: Kinds of peaks, by the names that tables give them.
_PEAKS = {
    "peak_allocated_gb": "peak allocated, GB",
    "peak_reserved_gb": "peak reserved, GB",
    "peak_rss_gb": "peak RSS, GB",
    "peak_device_gb": "peak on device, GB",
}


@click.command(
    "evidence",
    short_help="Check files of measurements and show what they say.",
    epilog="Example: lensconv evidence evidence/comparison_matrix.json",
)
@click.argument("path", type=PATH)
@output_options
@pass_console
def command(console: Console, /, path: Path) -> None:
    """Check the files of measurements in the folder PATH, or the one at PATH, and show them with their statistics.

    Files of another schema, and figures that contradict each other, are refused.
    """
    from converter.measurement.evidence.summary import summarise

    summary = summarise(path)
    checked = [f"{name}: fits its schema, figures agree" for name in summary.contents]
    console.result(summary.to_dict(), *checked, *render_contents(summary.contents))


def render_contents(contents: Mapping[str, tuple[str, Mapping[str, Any]]]) -> list[RenderableType]:
    """Tables of files of measurements.

    Args:
        contents: name of the schema, and content, by file name.
    """
    renderers: dict[str, Callable[[Mapping[str, Any]], list[RenderableType]]] = {
        "benchmark_metrics": _render_metrics,
        "comparison_matrix": _render_matrix,
        "model_cpu_offload_benchmark": _render_offload,
        "image_fidelity": render_images,
        "weight_fidelity": _render_weights,
    }
    parts: list[RenderableType] = []
    for schema, content in contents.values():
        if schema in renderers:
            parts += renderers[schema](content)
    return parts


def _render_metrics(metrics: Mapping[str, Any]) -> list[RenderableType]:
    models = [metrics["models"][name] for name in _MODELS]
    rows = [_figures("load time, s", models, "load_time_s")]
    rows += [_figures(f"load {text}", models, f"load_{key}") for key, text in _PEAKS.items()]
    rows.append(_figures("transformer, GB", models, "transformer_storage_gb"))
    for part in ("mean", "median"):
        rows.append(_figures(f"generation time, s, {part}", models, "generation_time_s", part))
    for key, text in _PEAKS.items():
        rows += [_figures(f"generation {text}, {part}", models, f"generation_{key}", part) for part in ("mean", "max")]
    titles = ["benchmark", *(printable(model["label"]) for model in models)]
    parts: list[RenderableType] = [table(titles, [row for row in rows if any(row[1:])])]
    reduction = metrics.get("transformer_storage_reduction_percent")
    if reduction is not None:
        text = f"The quantized transformer is {reduction:g} % smaller than the original"
        against = metrics.get("transformer_storage_reduction_vs_bf16_percent")
        parts.append(text + (f", and {against:g} % smaller than that in bfloat16." if against is not None else "."))
    return parts


def _render_matrix(matrix: Mapping[str, Any]) -> list[RenderableType]:
    from converter.measurement.evidence.summary import matrix_statistics

    statistics = matrix_statistics(matrix)
    peak = next((key for key in _PEAKS if any(key in row[model] for row in matrix["prompts"] for model in _MODELS)), "")
    rows = []
    for row in matrix["prompts"]:
        sides = [row[model] for model in _MODELS]
        delta = next((item["delta_percent"] for item in statistics["rows"] if item["id"] == row["id"]), None)
        rows.append(
            [
                printable(row["id"]),
                str(row["seed"]),
                *(_number(side.get("time_s")) or "failed" for side in sides),
                f"{delta:+.1f} %" if delta is not None else "",
                *(_number(side.get(peak)) for side in sides),
            ]
        )
    titles = ["prompt", "seed", "original s", "quantized s", "delta", "original GB", "quantized GB"]
    parts: list[RenderableType] = [table(titles, rows, title=f"time, and {_PEAKS.get(peak, 'memory')}")]
    for model in _MODELS:
        if model in statistics:
            spread = statistics[model]
            middle = f"mean {spread['mean']:.3f} s, median {spread['median']:.3f} s"
            parts.append(f"{model}: {middle}, {spread['count']} images")
    if "slowdown" in statistics:
        parts.append(_slowdown(statistics["slowdown"], "of the quantized model"))
    return parts


def _render_offload(offload: Mapping[str, Any]) -> list[RenderableType]:
    models = [offload["models"][name] for name in _MODELS]
    rows = []
    for part, text in (("setup", "set-up"), ("cold", "cold generation"), ("warm", "warm generation")):
        sides = [model[part] for model in models]
        if any("failed" in side for side in sides):
            rows.append([text, *("failed" if "failed" in side else "" for side in sides)])
        for key, label in {"time_s": "time, s", **_PEAKS}.items():
            kinds = ("mean", "median") if part == "warm" and key == "time_s" else ("mean", "max")
            if part != "warm":
                rows.append(_figures(f"{text} {label}", sides, key))
            else:
                rows += [_figures(f"{text} {label}, {kind}", sides, key, kind) for kind in kinds]
    titles = [printable(offload["method"]), *(printable(model["label"]) for model in models)]
    parts: list[RenderableType] = [table(titles, [row for row in rows if any(row[1:])])]
    if "warm_slowdown" in offload:
        parts.append(_slowdown(offload["warm_slowdown"], "of warm generations"))
    return parts


def _render_weights(weights: Mapping[str, Any]) -> list[RenderableType]:
    families, _ = render_fidelity(weights["fidelity"])
    return [families]


def _slowdown(found: Mapping[str, Any], what: str) -> str:
    text = (
        f"Slowdown {what}: {found['ratio_of_means_percent']:+.1f} % by the means, "
        f"{found['mean_difference_s']:+.3f} s an image, {found['pairs']} pairs"
    )
    interval, seconds = found.get("ratio_of_means_percent_interval"), found.get("mean_difference_s_interval")
    if interval and seconds:
        text += (
            f"; 95 % intervals {interval[0]:+.1f} to {interval[1]:+.1f} % and {seconds[0]:+.3f} to {seconds[1]:+.3f} s"
        )
    return text + "."


def _figures(label: str, models: list[Mapping[str, Any]], key: str, part: str = "") -> list[str]:
    values = [model.get(key) for model in models]
    if part:
        values = [value.get(part) if value is not None else None for value in values]
    return [label, *(_number(value) for value in values)]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
