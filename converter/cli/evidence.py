"""``lensconv evidence``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from converter.cli.compare import render_summary as render_images
from converter.cli.options import PATH, output_options, pass_console
from converter.console import Console, table
from converter.extras import require_extra

if TYPE_CHECKING:
    from rich.console import RenderableType

    from converter.measurement.evidence.time_comparison import TimeComparison
    from converter.presentation.tables.table import Table


@click.command(
    "evidence",
    short_help="Check measurement files and show their figures.",
    epilog="Example: lensconv evidence evidence/comparison_matrix.json",
)
@click.argument("path", type=PATH)
@output_options
@pass_console
def command(console: Console, /, path: Path) -> None:
    """Check the measurement files in the folder PATH, or the one file PATH, and show their statistics.

    Files of an unknown format, and files whose figures contradict each other, are refused.
    """
    require_extra("measure")
    from converter.measurement.evidence.summary import summarise

    summary = summarise(path)
    checked = [f"{name}: matches its schema, and its figures agree" for name in summary.contents]
    console.result(summary.to_dict(), *checked, *render_contents(summary.contents))


def render_contents(contents: Mapping[str, tuple[str, Mapping[str, Any]]]) -> list[RenderableType]:
    """Return tables and lines for files of measurements.

    Args:
        contents: name of the schema, and content, by file name.
    """
    return [part for schema, content in contents.values() for part in _render(schema, content)]


def _render(schema: str, content: Mapping[str, Any]) -> list[RenderableType]:
    # Importing these takes a moment; errors in the command line are reported before.
    from converter.measurement.evidence.names import MODEL_TITLES, MODELS
    from converter.measurement.evidence.summary import matrix_statistics
    from converter.measurement.evidence.time_comparison import compare_matrix, compare_offload
    from converter.presentation.tables import conditions, fidelity, measurements
    from converter.presentation.tables.adapters import describe_original

    if schema == "benchmark_metrics":
        machine = "; ".join(f"{label}: {text}" for label, text in conditions.environment(content["environment"]))
        return [_show(measurements.benchmark_table(content), "Benchmark"), f"Measured with {machine}."]
    if schema == "comparison_matrix":
        found = matrix_statistics(content)
        shown = measurements.matrix_table(content, MODEL_TITLES, with_scenarios=False)
        spreads = [_spread(model, found[model]) for model in MODELS if model in found]
        return [_show(shown, "Prompt by prompt"), *spreads, *_times(compare_matrix(content))]
    if schema == "model_cpu_offload_benchmark":
        shown = measurements.offload_table(content)
        return [_show(shown, content["method"]), *_times(compare_offload(content), "a warm image")]
    about_original = [text] if (text := describe_original(content.get("sources", {}))) else []
    if schema == "image_fidelity":
        return [*render_images(content), *about_original]
    if schema == "sweep":
        return render_sweep(content)
    if schema == "ablation":
        return render_ablation(content)
    return [_show(fidelity.weights_table(content)), *about_original] if schema == "weight_fidelity" else []


def render_ablation(content: Mapping[str, Any]) -> list[RenderableType]:
    """Return the table of an ablation, and what may be concluded from it."""
    from converter.presentation.tables.ablation import ablation_table, describe_table, list_failures
    from converter.presentation.tables.ablation_findings import describe_findings

    shown = ablation_table(content, is_narrow=True)
    lines = [*list_failures(content), describe_table(content), *describe_findings(content)]
    return [_show(shown, "Ablation"), *lines]


def render_sweep(content: Mapping[str, Any]) -> list[RenderableType]:
    """Return the table of a sweep, and what its columns mean."""
    from converter.presentation.tables.sweep import describe_sweep_table, list_sweep_failures, sweep_table

    return [
        _show(sweep_table(content, is_narrow=True), "Sweep"),
        *list_sweep_failures(content),
        describe_sweep_table(content),
    ]


def _spread(model: str, spread: Mapping[str, Any]) -> str:
    return f"{model}: mean {spread['mean']:.3f} s, median {spread['median']:.3f} s, {spread['count']} images"


def _times(found: TimeComparison, image: str = "an image") -> list[RenderableType]:
    """Return what may be said of times, and the pairs of processes."""
    from converter.presentation.tables.times import describe_times, pairs_table

    words, pairs = describe_times(found, image), pairs_table(found)
    shown = [_show(pairs, "Pair by pair")] if pairs else []
    return [*shown, *(text for text in (words.finding, words.disturbance) if text)]


def _show(content: Table, title: str = "") -> RenderableType:
    return table(content.columns, [[str(cell) for cell in row] for row in content.rows], title=title)
