"""``lensconv compare``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from converter.cli.options import PATH, output_options, pass_console
from converter.cli.thresholds import payload, render_verdicts, threshold_option
from converter.console import Console, table
from converter.errors import MissingFigure, printable
from converter.extras import require_extra
from converter.measurement.evidence.names import IMAGES_NAME
from converter.measurement.evidence.thresholds import Threshold, exit_code, judge

if TYPE_CHECKING:
    from rich.console import RenderableType

    from converter.measurement.comparison.report import FidelityReport, ImageFidelity

#: Name in the report, heading, unit and decimals of each figure of a pair of images.
_FIGURES = (
    ("psnr_db", "PSNR", " dB", 2),
    ("ssim", "SSIM", "", 4),
    ("lpips", "LPIPS", "", 4),
    ("periodic_grid_added", "added pattern", " grey levels", 2),
)


@click.command(
    "compare",
    short_help="Compare images of the original and the quantized model.",
    epilog="Example: lensconv compare images/original images/quantized",
)
@click.argument("original", type=PATH)
@click.argument("quantized", type=PATH)
@click.option(
    "--baseline",
    metavar="FOLDER",
    type=PATH,
    help="Images of the original with another seed, to compare the drift with.",
)
@click.option(
    "--prompts",
    metavar="SUITE",
    help="Suite that the images were generated from; its required texts are looked for in the images.",
)
@click.option(
    "--steps",
    metavar="N",
    type=click.IntRange(1, 1000),
    help="Number of denoising steps of the images, if the files do not contain it.",
)
@click.option("--no-text", is_flag=True, help="Do not read the texts in the images.")
@click.option("--lpips/--no-lpips", default=True, show_default=True, help="Measure LPIPS, if it is installed.")
@threshold_option("lpips (mean), psnr (mean, in dB), cer (mean character error rate of the quantized model)")
@output_options
@pass_console
@click.pass_context
def command(
    context: click.Context,
    console: Console,
    /,
    original: Path,
    quantized: Path,
    baseline: Path | None,
    prompts: str | None,
    steps: int | None,
    no_text: bool,
    lpips: bool,
    thresholds: Sequence[Threshold],
) -> None:
    """Compare the images in the folder QUANTIZED with those in ORIGINAL, from the same prompts and seeds.

    Images are PNG or lossless WebP, named ID-SEED.png; -original, -quantized or -baseline may follow the seed. PSNR,
    SSIM and LPIPS measure how far the quantized model's images drifted from the original's, not how good they are.
    """
    _refuse_unmeasured(thresholds)
    # Imported late, since it takes a second or more; errors in the command line are reported before.
    require_extra("measure")
    from converter.measurement.comparison.compare import compare

    required: dict[str, tuple[str, ...]] = {}
    if prompts is not None:
        from converter.measurement.prompts.suite import read_suite

        required = {prompt.id: tuple(prompt.required_text) for prompt in read_suite(prompts).prompts}
    report = compare(
        original,
        quantized,
        baseline=baseline,
        required=required,
        steps=steps,
        lpips=lpips,
        text=not no_text,
        reporter=console,
    )
    content = report.to_dict()
    verdicts = judge(thresholds, {IMAGES_NAME: content})
    console.result({**content, **payload(verdicts)}, *_render(report), *render_verdicts(verdicts))
    context.exit(exit_code(verdicts))


def _refuse_unmeasured(thresholds: Sequence[Threshold]) -> None:
    """Refuse thresholds for what only a benchmark measures.

    Raises:
        MissingFigure: there is one.
    """
    for threshold in thresholds:
        if threshold.metric in ("slowdown", "trajectory"):
            raise MissingFigure(f"compare does not measure {threshold.metric}", "`lensconv bench` measures it.")


def _render(report: FidelityReport) -> list[RenderableType]:
    lines = [["image", "seed", "PSNR dB", "SSIM", "LPIPS", "added pattern", "text error, original → quantized"]]
    for pair in report.pairs:
        means = [sum(rates) / len(rates) for rates in zip(*pair.text_rates, strict=True)]
        error = " → ".join(f"{mean:.2f}" for mean in means)
        lines.append([printable(pair.id), _number(pair.seed, 0), *_cells(pair.quantized), error])
        if pair.baseline is not None:
            lines.append(["  other seed", _number(pair.baseline_seed, 0), *_cells(pair.baseline), ""])
    if all(pair.quantized.lpips is None for pair in report.pairs):
        for cells in lines:
            del cells[4]
    return [table(lines[0], lines[1:]), *render_summary(report.to_dict())]


def render_summary(fidelity: Mapping[str, Any]) -> list[RenderableType]:
    """Render the summary in ``image_fidelity.json``."""
    from rich.text import Text

    steps = fidelity["num_inference_steps"]
    counted = f"{steps} steps" if steps else "Unknown number of steps"
    lines = [*_summary_lines(fidelity["summary"]), *_probe_lines(fidelity)]
    lines += [f"not measured: {name}: {printable(reason)}" for name, reason in fidelity["not_measured"].items()]
    return [
        Text(f"  {counted}. These figures measure drift at the same seed, not quality.", style="bold"),
        *(Text(f"  {line}") for line in lines),
    ]


def _cells(image: ImageFidelity) -> list[str]:
    psnr = "identical" if image.identical else _number(image.psnr_db, 2)
    return [psnr, _number(image.ssim, 4), _number(image.lpips, 4), _number(image.periodic_grid.added, 2)]


def _summary_lines(summary: dict[str, Any]) -> list[str]:
    lines = []
    for name, title, unit, digits in _FIGURES:
        figures, other = summary[name], (summary["baseline"] or {}).get(name)
        if figures is None:
            continue
        least, most = _number(figures["min"], digits), _number(figures["max"], digits)
        line = f"{title}: median {_number(figures['median'], digits)}{unit}, {least} to {most}"
        if other is not None:
            line += f"; between seeds of the original: median {_number(other['median'], digits)}{unit}"
        lines.append(line)
    text = summary["text"]
    if text is not None:
        lines.append(
            f"text: {text['original_legible']:.0%} of {text['required_strings']} required strings legible in the "
            f"original's images, {text['quantized_legible']:.0%} in the quantized model's; mean character error rate "
            f"{text['original_cer_mean']:.2f} and {text['quantized_cer_mean']:.2f}"
        )
    return lines


def _probe_lines(fidelity: Mapping[str, Any]) -> Iterator[str]:
    """Yield what `bench` measures in addition: the error of each step, and the image of an empty prompt."""
    from converter.presentation.tables.figures import counted

    trajectory, flat = fidelity.get("trajectory"), fidelity.get("flat_field")
    if trajectory is not None:
        yield (
            f"velocity error of a step, both models at the original's latents: mean {trajectory['mean_error']:.4f}, "
            f"largest {trajectory['max_error']:.4f}, {counted(len(trajectory['prompts']), 'prompt')}"
        )
    if flat is not None and flat["periodic_grid"]["added"] is not None:
        grid = flat["periodic_grid"]
        yield (
            f"empty prompt: added pattern {grid['added']:.2f} grey levels; own patterns {grid['original']:.2f} in the "
            f"original's image, {grid['quantized']:.2f} in the quantized model's"
        )


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
