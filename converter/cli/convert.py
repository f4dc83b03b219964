"""``lensconv convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from converter.cli.components import unconverted_lines
from converter.cli.options import (
    PATH,
    PATH_OR_ADDRESS,
    dataclass_options,
    output_options,
    pass_console,
    ray_option,
    recipe_options,
)
from converter.console import Console, readable_size, table
from converter.conversion.adapters.choice import AdapterChoice
from converter.conversion.options import ConvertOptions
from converter.errors import Interrupted


@click.command(
    "convert",
    short_help="Quantize a checkpoint.",
    epilog="Example: lensconv convert Lens/transformer Lens-uint4 --memory 512MB",
)
@click.argument("source", type=PATH_OR_ADDRESS)
@click.argument("output", metavar="OUT", type=PATH)
@recipe_options
@dataclass_options(
    ConvertOptions,
    "component_only",
    "variant",
    "jobs",
    "connections",
    "memory",
    "quantize_from",
    "rounding",
    "calibration",
    "shard_bytes",
    "device",
    "allow_nonfinite",
    "force",
    "cache",
    "overwrite",
    "restart",
)
@ray_option("Convert weight files on nodes of a cluster.")
@output_options
@pass_console
def command(
    console: Console,
    /,
    source: Path | str,
    output: Path,
    recipe: str | None,
    settings: tuple[str, ...],
    components: tuple[str, ...],
    adapters: tuple[AdapterChoice, ...],
    ray: str | None,
    **options: Any,
) -> None:
    """Quantize SOURCE into the folder OUT, byte for byte as SDNQ itself would, unless --rounding says otherwise.

    SOURCE is a component folder, a pipeline repo, one .safetensors file, or hf://OWNER/NAME[@REVISION]. Weights on the
    Hub are converted while they arrive, and are never on disk. OUT appears as a whole or not at all. After an
    interruption, the same command continues where it stopped.
    """
    from converter.conversion.convert import convert

    try:
        report = convert(
            source,
            output,
            recipe,
            ConvertOptions(components=components, settings=settings, adapters=adapters, **options),
            reporter=console,
            ray=ray,
        )
    except KeyboardInterrupt as error:
        raise Interrupted("interrupted", "Run the same command again to continue.") from error
    rows = [[file.name, readable_size(file.bytes), file.sha256[:16]] for file in report.files]
    dtypes = ", ".join(f"{dtype} {readable_size(size)}" for dtype, size in report.bytes_by_dtype.items())
    recipes = ", ".join(dict.fromkeys(component.recipe for component in report.components))
    summary = (
        f"{report.output}: {report.tensors} tensors, {dtypes}. Recipe {recipes}. "
        f"{report.elapsed_s:.1f} s, {readable_size(int(report.bytes_read_per_s))}/s, "
        f"peak memory {readable_size(report.peak_rss_bytes)}."
    )
    lines = unconverted_lines(report.other_components, report.whole)
    if report.hub:
        lines = [f"{report.hub['place']}: {readable_size(report.hub['received_bytes'])} received.", *lines]
    console.result(report.to_dict(), table(["file", "size", "sha256"], rows), summary, *lines)
    if report.resumed_tensors:
        console.note(f"{report.resumed_tensors} tensors from the earlier run were reused.")
    if report.nonfinite:
        console.warn(f"{sum(report.nonfinite.values())} numbers in {len(report.nonfinite)} tensors are not finite.")
