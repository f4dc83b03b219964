"""``lensconv synth``."""

from __future__ import annotations

from pathlib import Path

import click

from converter.checkpoint.layout import DEFAULT_SHARD_BYTES
from converter.cli.options import PATH, SIZE, output_options, pass_console
from converter.console import Console, readable_size

#: As in ``converter.synthesis``, which is imported only where it is needed.
PRESETS = (
    "lens",
    "tiny",
    "signs",
    "tiny-sdxl",
    "tiny-sd3",
    "tiny-flux",
    "tiny-flux2",
    "tiny-qwen-image",
    "tiny-z-image",
    "tiny-sana",
    "tiny-wan",
)


@click.command(
    "synth",
    short_help="Write a model with random weights, for tests and demos.",
    epilog="Example: lensconv synth Lens --preset tiny",
)
@click.argument("output", metavar="OUT", type=PATH)
@click.option(
    "--preset",
    type=click.Choice(PRESETS),
    default="lens",
    show_default=True,
    help="lens: the transformer of microsoft/Lens; tiny: a complete pipeline that generates on a CPU in seconds; "
    "signs: one with trained weights, which draws signs that can be read; the others: complete pipelines of other "
    "models, as small as tiny.",
)
@click.option(
    "--component",
    type=click.Choice(["transformer"]),
    help="Write only this component; the preset lens contains no other. Only with lens, tiny and signs.",
)
@click.option(
    "--layers",
    type=click.IntRange(min=1),
    help="Number of transformer blocks; with lens and tiny.  [default: 48; 4 for tiny and signs]",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the random numbers.")
@click.option(
    "--max-shard-size",
    "shard_bytes",
    type=SIZE,
    default=DEFAULT_SHARD_BYTES,
    help="Maximum size of the tensors in one file.  [default: 5GB]",
)
@click.option("--overwrite", is_flag=True, help="Replace an existing checkpoint at OUT.")
@output_options
@pass_console
def command(
    console: Console,
    output: Path,
    preset: str,
    component: str | None,
    layers: int | None,
    seed: int,
    shard_bytes: int,
    overwrite: bool,
) -> None:
    """Write a model with random weights into the folder OUT.

    The preset lens has the exact layout of microsoft/Lens in F32; at full depth it takes 16.4 GB. The preset tiny
    has the same structure with smaller sizes, and takes 26 MB; `lensconv generate` works with it. The preset signs is
    as small, and its weights are trained: it draws coloured signs with short words, 128 pixels wide. The other
    presets are pipelines of other models, with the real components and classes of diffusers in small sizes, F32
    denoisers and random weights; tiny-wan draws videos.
    """
    from converter.synthesis.synthesize import synthesize

    report = synthesize(
        output,
        preset=preset,
        component=component,
        layers=layers,
        seed=seed,
        shard_bytes=shard_bytes,
        overwrite=overwrite,
        reporter=console,
    )
    console.result(
        report.to_dict(),
        f"{report.output}: {report.tensors} tensors, {report.parameters:,} parameters, "
        f"{readable_size(report.total_bytes)} in {len(report.files)} files, seed {report.seed}, "
        f"{report.elapsed_s:.1f} s.",
    )
