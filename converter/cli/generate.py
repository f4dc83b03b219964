"""``lensconv generate``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from converter.cli.options import PATH, dataclass_options, output_options, pass_console
from converter.console import Console, readable_size
from converter.measurement.generation.options import GenerateOptions


@click.command(
    "generate",
    short_help="Draw an image with an original or quantized repo.",
    epilog='Example: lensconv generate Lens-uint4 --prompt "a red cube on a wooden table" --out cube.png',
)
@click.argument("repo", type=PATH)
@click.option("--prompt", required=True, help="What to draw.")
@click.option("--out", "output", metavar="FILE.png", type=PATH, required=True, help="The image to make.")
@dataclass_options(
    GenerateOptions,
    "negative_prompt",
    "seed",
    "steps",
    "guidance",
    "base_resolution",
    "aspect_ratio",
    "height",
    "width",
    "device",
    "dtype",
    "offload",
    "features",
    "date",
    "overwrite",
)
@output_options
@pass_console
def command(console: Console, /, repo: Path, prompt: str, output: Path, **options: Any) -> None:
    """Draw an image with the Lens pipeline in the folder REPO.

    REPO may hold the original or a quantized transformer. The text encoder is gone before the transformer is loaded;
    what drawing takes is told, and refused if it is not there, before that. The PNG holds its settings.
    """
    # Importing this takes seconds; what is wrong with the command line is said at once.
    from converter.libraries import load_library

    report = load_library("converter.measurement.generation.generate", compiles=True).generate(
        repo, prompt, output, GenerateOptions(**options), reporter=console
    )
    settings = report.settings
    quantization = settings["quantization"]
    kind = f"SDNQ {quantization['weights_dtype']}" if quantization else "not quantized"
    console.result(
        report.to_dict(),
        f"{report.image}: {settings['width']}x{settings['height']}, {settings['steps']} steps, guidance "
        f"{settings['guidance']:g}, seed {settings['seed']}, {settings['dtype']} on {settings['device']}, {kind}, "
        f"{report.elapsed_s:.1f} s, peak memory {readable_size(report.peak_rss_bytes)}.",
    )
