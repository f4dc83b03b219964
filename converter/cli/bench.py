"""``lensconv bench``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from converter.cli.evidence import render_contents
from converter.cli.options import PATH, dataclass_options, output_options, pass_console
from converter.console import Console
from converter.measurement.benchmark.options import BenchOptions
from converter.measurement.generation.options import GenerateOptions

#: How images are drawn; the rest of generate's options is not for a benchmark.
_DRAWING = (
    "steps",
    "guidance",
    "negative_prompt",
    "base_resolution",
    "aspect_ratio",
    "height",
    "width",
    "device",
    "dtype",
    "date",
)


@click.command(
    "bench",
    short_help="Measure the original against the quantized repo.",
    epilog="Example: lensconv bench Lens Lens-uint4 --prompts ten-signs --out evidence",
)
@click.argument("original", type=PATH)
@click.argument("quantized", type=PATH)
@click.option(
    "--prompts",
    metavar="NAME|FILE",
    default="ten-signs",
    show_default=True,
    help="Suite of prompts: built in, or a TOML file such as `lensconv prompts import` makes.",
)
@click.option("--out", "output", metavar="DIR", type=PATH, required=True, help="Folder for measurements and images.")
@dataclass_options(BenchOptions, *(field.name for field in fields(BenchOptions)))
@dataclass_options(GenerateOptions, *_DRAWING)
@output_options
@pass_console
@click.pass_context
def command(
    context: click.Context,
    console: Console,
    /,
    original: Path,
    quantized: Path,
    prompts: str,
    output: Path,
    **options: Any,
) -> None:
    """Measure the pipeline in the folder ORIGINAL against that in QUANTIZED: times, memory, images and weights.

    Each model and mode runs in new processes. What fails becomes a failed row, and the rest goes on; a run that was
    stopped goes on where it was. The files in DIR are what `grid`, `charts` and the model card are made from.
    """
    from converter.measurement.prompts.suite import read_suite

    suite = read_suite(prompts)
    measuring = BenchOptions(**{field.name: options.pop(field.name) for field in fields(BenchOptions)})
    drawing = GenerateOptions(**options)
    # Importing this takes seconds; what is wrong with the command line is said at once.
    from converter.libraries import load_library

    report = load_library("converter.measurement.benchmark.bench").bench(
        original,
        quantized,
        output,
        suite,
        measuring,
        drawing,
        reporter=console,
    )
    console.result(report.to_dict(), *_render(report.evidence, report))
    context.exit(0 if report.ok else 1)


def _render(evidence: Mapping[str, Mapping[str, Any]], report: Any) -> list[Any]:
    from converter.measurement.evidence.files import FORMATS

    parts = render_contents({name: (FORMATS[name].schema, content) for name, content in evidence.items()})
    parts += [
        f"failed: {row['model']}, {row['mode']}, repeat {row['repeat']}, {row['prompt']}: {row['reason']}"
        for row in report.failed
    ]
    count = f"{report.images} images in {report.elapsed_s:.0f} s"
    if report.failed:
        count += f", {len(report.failed)} failed; the same command tries those again"
    return [*parts, f"{count}. Measurements: {report.output}. Next: lensconv grid {report.output}"]
