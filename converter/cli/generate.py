"""``lensconv generate``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from converter.cli.options import PATH, PATH_OR_ADDRESS, adapter_option, dataclass_options, output_options, pass_console
from converter.console import Console, readable_size
from converter.measurement.generation.options import GenerateOptions


@click.command(
    "generate",
    short_help="Generate an image with an original or quantized repo.",
    epilog='Example: lensconv generate Lens-uint4 --prompt "a red cube on a wooden table" --out cube.png',
)
@click.argument("repo", type=PATH_OR_ADDRESS)
@click.option("--prompt", required=True, help="What the image shows.")
@click.option("--out", "output", metavar="FILE.png", type=PATH, required=True, help="Path of the image.")
@dataclass_options(GenerateOptions, *(field.name for field in fields(GenerateOptions) if field.name != "adapters"))
@adapter_option(
    "LoRA adapter to add to the weights of an original, by default with scale 1. Repeatable; added in this order."
)
@output_options
@pass_console
def command(console: Console, /, repo: Path | str, prompt: str, output: Path, **options: Any) -> None:
    """Generate an image with the pipeline REPO, a folder or hf://OWNER/NAME[@REVISION].

    REPO may be an original or a quantized one, of Lens or of any pipeline of the installed diffusers that makes an
    image of a prompt. Of a repo on the Hub, the files that are needed are downloaded into the cache of huggingface_hub,
    which keeps them. Code in a repo is never run. For Lens, the text encoder is freed before the transformer is loaded,
    to save memory. If the machine does not have enough memory, the command stops before it loads anything. The PNG
    contains the settings.

    With --lora, adapters are added to the weights of an original first, as `convert` adds them before it quantizes.
    """
    # Imported late, since it takes seconds; errors in the command line are reported before.
    from converter.libraries import PIPELINE_BYTES, load_library

    module = load_library("converter.measurement.generation.generate", generates=True, needed=PIPELINE_BYTES)
    report = module.generate(repo, prompt, output, GenerateOptions(**options), reporter=console)
    settings = report.settings
    kind = _quantization_text(settings["quantization"])
    if "adapters" in settings:
        kind += f", with LoRA in {', '.join(settings['adapters'])}"
    memory = f"peak memory {readable_size(report.peak_rss_bytes)}"
    if report.peak_device_bytes is not None:
        predicted = readable_size(report.predicted_device_memory_bytes)
        memory += f", peak GPU memory {readable_size(report.peak_device_bytes)} ({predicted} predicted)"
    console.result(
        report.to_dict(),
        f"{report.image}: {settings['width']}x{settings['height']}, {_schedule_text(settings)}"
        f"seed {settings['seed']}, {settings['dtype']} on {settings['device']}, {kind}, "
        f"{report.elapsed_s:.1f} s, {memory}.",
    )


def _schedule_text(settings: Mapping[str, Any]) -> str:
    """Steps and guidance, as far as the pipeline takes them."""
    steps, guidance = settings["steps"], settings["guidance"]
    return f"{steps} steps, " * (steps is not None) + (f"guidance {guidance:g}, " if guidance is not None else "")


def _quantization_text(quantization: Mapping[str, Any] | None) -> str:
    """How the model of Lens is quantized, or the components of another pipeline."""
    if not quantization:
        return "not quantized"
    if "weights_dtype" in quantization:
        return f"SDNQ {quantization['weights_dtype']}"
    return "SDNQ " + ", ".join(f"{value['weights_dtype']} ({name})" for name, value in quantization.items())
