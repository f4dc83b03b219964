"""``lensconv bench``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from converter.cli.evidence import render_contents
from converter.cli.options import (
    PATH,
    PATH_OR_ADDRESS,
    adapter_option,
    dataclass_options,
    output_options,
    pass_console,
    ray_option,
)
from converter.cli.thresholds import payload, render_verdicts, threshold_option
from converter.console import Console
from converter.errors import MissingFigure
from converter.extras import require_extra
from converter.measurement.benchmark.options import BenchOptions
from converter.measurement.evidence.names import SWEEP_NAME
from converter.measurement.evidence.statistics import FEWEST_PAIRS
from converter.measurement.evidence.thresholds import Threshold, exit_code, judge
from converter.measurement.generation.options import GenerateOptions
from converter.measurement.generation.places import is_another_pipeline

if TYPE_CHECKING:
    from rich.console import RenderableType

    from converter.measurement.benchmark.report import BenchReport
    from converter.measurement.benchmark.sweep import SweepReport

#: Options of `generate` that a benchmark chooses itself, or that mean something else here.
_CHOSEN = ("seed", "offload", "features", "overwrite", "adapters")


@click.command(
    "bench",
    short_help="Measure the original and the quantized repos.",
    epilog="Example: lensconv bench Lens Lens-uint4 --prompts ten-signs --out evidence",
)
@click.argument("original", type=PATH_OR_ADDRESS)
@click.argument("quantized", type=PATH_OR_ADDRESS, nargs=-1, required=True)
@click.option(
    "--prompts",
    metavar="NAME|FILE",
    default="ten-signs",
    show_default=True,
    help="Suite of prompts: a built-in one, or a TOML file, for example from `lensconv prompts import`.",
)
@click.option("--out", "output", metavar="DIR", type=PATH, required=True, help="Folder for measurements and images.")
@dataclass_options(BenchOptions, *(field.name for field in fields(BenchOptions)))
@dataclass_options(GenerateOptions, *(field.name for field in fields(GenerateOptions) if field.name not in _CHOSEN))
@adapter_option(
    "LoRA adapter to add to the weights of ORIGINAL, for a release that was converted with it. Repeatable; file, scale "
    "and order must be those in the manifest of each QUANTIZED."
)
@ray_option(
    "Measure on the nodes of a cluster: each pair of processes whose times are compared alone on a node, all other "
    "images at the same time and without a time."
)
@threshold_option(
    "lpips (mean), psnr (mean, in dB), cer (mean character error rate of the quantized model), trajectory (mean "
    "velocity error), slowdown (lower end of the interval, in percent)"
)
@output_options
@pass_console
@click.pass_context
def command(
    context: click.Context,
    console: Console,
    /,
    original: Path | str,
    quantized: Sequence[Path | str],
    prompts: str,
    output: Path,
    ray: str | None,
    thresholds: Sequence[Threshold],
    **options: Any,
) -> None:
    """Measure the pipelines ORIGINAL and QUANTIZED: times, memory, images and weights.

    Both are folders, or addresses hf://OWNER/NAME[@REVISION] whose files are downloaded into the cache of
    huggingface_hub. Each model and mode runs in new processes. A failure is recorded as a failed row, and the rest is
    still measured. A run that was stopped continues where it stopped. `report`, `grid`, `charts` and `card` read the
    files in DIR.

    With several QUANTIZED, each gets such a folder, DIR/NAME, with the name of its repo. The original generates each
    image once, except those whose times are compared. DIR/sweep.json and DIR/sweep.md compare all models.

    Compare a release that was converted with --lora with the original that has the same adapters: give them again. The
    figures otherwise include the effect of LoRA, not only that of quantization.
    """
    require_extra("measure")
    from converter.measurement.prompts.suite import read_suite

    suite = read_suite(prompts)
    measuring = BenchOptions(**{field.name: options.pop(field.name) for field in fields(BenchOptions)})
    generating = GenerateOptions(**options)
    _refuse_unmeasured(thresholds, measuring, original)
    # Imported late, since it takes seconds; errors in the command line are reported before.
    from converter.libraries import PIPELINE_BYTES, load_library

    if len(quantized) == 1:
        bench = load_library("converter.measurement.benchmark.bench", needed=PIPELINE_BYTES).bench
        report = bench(original, quantized[0], output, suite, measuring, generating, ray=ray, reporter=console)
        verdicts = judge(thresholds, report.evidence)
        console.result({**report.to_dict(), **payload(verdicts)}, *_render(report), *render_verdicts(verdicts))
        context.exit(exit_code(verdicts, ok=report.ok))
    sweep = load_library("converter.measurement.benchmark.sweep", needed=PIPELINE_BYTES).sweep
    _show_sweep(
        context,
        console,
        sweep(original, quantized, output, suite, measuring, generating, ray=ray, reporter=console),
        thresholds,
    )


def _show_sweep(context: click.Context, console: Console, report: SweepReport, thresholds: Sequence[Threshold]) -> None:
    """Write the table of several models, show it with their verdicts, and exit with 1 if one of them fails."""
    from converter.presentation.card.sweep import write_sweep_table

    table = write_sweep_table(report.output)
    verdicts = {name: judge(thresholds, found.evidence) for name, found in report.models.items()}
    shown = report.to_dict()
    shown["files"].append(table.name)
    for model in shown["models"]:
        model |= payload(verdicts[model["name"]])
    lines = [line for name, found in verdicts.items() for line in render_verdicts(found, name)]
    console.result(shown, *_render_sweep(report), *lines)
    every = [verdict for found in verdicts.values() for verdict in found]
    context.exit(exit_code(every, ok=report.ok))


def _refuse_unmeasured(thresholds: Sequence[Threshold], options: BenchOptions, original: Path | str) -> None:
    """Refuse thresholds for what is not measured with these options, or of this pipeline.

    Raises:
        MissingFigure: there is one.
    """
    metrics = {threshold.metric for threshold in thresholds}
    if "slowdown" in metrics and options.pairs < FEWEST_PAIRS:
        reason = f"--fail-over slowdown: times are not compared with --pairs {options.pairs}"
        raise MissingFigure(reason, f"Use --pairs {FEWEST_PAIRS} or more.")
    if "trajectory" in metrics and not options.trajectory_prompts:
        raise MissingFigure("--fail-over trajectory: --trajectory-prompts 0 skips it", "Use --trajectory-prompts 1.")
    if "trajectory" in metrics and is_another_pipeline(original):
        raise MissingFigure("--fail-over trajectory: it is measured for Lens only")


def _render(report: BenchReport) -> list[RenderableType]:
    from converter.measurement.evidence.files import FORMATS

    parts = render_contents({name: (FORMATS[name].schema, content) for name, content in report.evidence.items()})
    parts += [_failure(row) for row in report.failed]
    return [*parts, f"{_count(report)}. Measurements: {report.output}. Next: lensconv report {report.output}"]


def _render_sweep(report: SweepReport) -> list[RenderableType]:
    parts = render_contents({SWEEP_NAME: ("sweep", report.content)})
    parts += [f"{name}: {_failure(row)}" for name, found in report.models.items() for row in found.failed]
    parts += [f"{name}: {_count(found)}" for name, found in report.models.items()]
    first = next(iter(report.models.values())).output
    return [*parts, f"{report.elapsed_s:.0f} s. Measurements: {report.output}. Next: lensconv report {first}"]


def _failure(row: Mapping[str, Any]) -> str:
    return f"failed: {row['model']}, {row['mode']}, pair {row['pair'] + 1}, {row['prompt']}: {row['reason']}"


def _count(report: BenchReport) -> str:
    taken = f", {report.taken_over} of them taken over" if report.taken_over else ""
    count = f"{report.images} images{taken} in {report.elapsed_s:.0f} s"
    if report.failed:
        count += f", {len(report.failed)} failed; run the same command to try these again"
    return count
