"""``lensconv plan``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from converter.cli.components import unconverted_lines
from converter.cli.fitting import memory_lines
from converter.cli.options import PATH_OR_ADDRESS, dataclass_options, output_options, pass_console, recipe_options
from converter.console import Console, readable_size, table
from converter.conversion.adapters.choice import AdapterChoice
from converter.conversion.options import ConvertOptions


@click.command(
    "plan",
    short_help="Show what a conversion would produce.",
    epilog="Example: lensconv plan Lens/transformer --set '*.attn.to_out.0=int8'",
)
@click.argument("source", type=PATH_OR_ADDRESS)
@recipe_options
@dataclass_options(ConvertOptions, "variant", "jobs", "memory", "rounding", "calibration", "shard_bytes", "device")
@output_options
@pass_console
def command(
    console: Console,
    /,
    source: Path | str,
    recipe: str | None,
    settings: tuple[str, ...],
    components: tuple[str, ...],
    adapters: tuple[AdapterChoice, ...],
    **options: Any,
) -> None:
    """Show what a conversion of SOURCE would produce: sizes to the byte, dtypes, memory.

    Only headers and small files are read, never weights. SOURCE is a component folder, a pipeline repo, one
    .safetensors file, or hf://OWNER/NAME[@REVISION]. --jobs, --memory and --device only change the predicted peak
    memory.
    """
    from converter.conversion.preview import plan

    report = plan(
        source, recipe, ConvertOptions(components=components, settings=settings, adapters=adapters, **options)
    )
    rows = [
        [
            totals.name,
            readable_size(totals.source_bytes),
            readable_size(totals.output_bytes),
            "quantized" if totals.quantized else "kept",
        ]
        for totals in report.families
    ]
    rows.append(["all", readable_size(report.source_bytes), readable_size(report.output_bytes), ""])
    classes = ", ".join(part.plan.class_name for part in report.components)
    recipes = ", ".join(dict.fromkeys(part.target.recipe.name for part in report.components))
    title = f"{classes}, {report.parameters:,} parameters, recipe {recipes}"
    quantized = sum(len(part.plan.modules) for part in report.components)
    kept = sum(len(part.plan.kept_modules) for part in report.components)
    vs_source, vs_bf16 = (100 * report.reduction(size) for size in (report.source_bytes, 2 * report.parameters))
    several = len(report.components) > 1
    what = f"component{'s' if several else ''}"
    converted = f"Converted {what}: " if report.other_components or several else ""
    lines = [
        *([f"Source: {report.place}."] if report.place else []),
        f"{quantized} modules quantized, {kept} kept.",
        f"{converted}{vs_source:.1f} % smaller than the source, {vs_bf16:.1f} % smaller than the source in bfloat16.",
        *unconverted_lines(report.other_components, report.whole),
        "Files: " + ", ".join(f"{name} ({size:,} bytes)" for name, size in report.files),
        f"Peak memory of the conversion: about {readable_size(report.peak_memory_bytes)}.",
        *(f"Note: {note}." for note in report.notes),
    ]
    shown: list[Any] = [table(["family", "source", "output", ""], rows, title=title), *lines]
    if report.memory is not None:
        shown += memory_lines(report.memory)
    console.result(report.to_dict(), *shown)
