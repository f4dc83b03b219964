"""``lensconv ablate``."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from converter.cli.options import (
    LOCAL_PATH,
    PATH,
    dataclass_options,
    output_options,
    own_fields_first,
    pass_console,
    ray_option,
)
from converter.console import Console
from converter.extras import require_extra
from converter.measurement.ablation.options import WEIGHTS, AblateOptions
from converter.measurement.generation.options import GenerateOptions

if TYPE_CHECKING:
    from rich.console import RenderableType

    from converter.measurement.ablation.ablate import AblationReport

#: Options of `generate` that an ablation chooses itself, or cannot use: layers are exchanged while a model is loaded.
_CHOSEN = ("seed", "features", "overwrite", "adapters", "compile", "int8")


@click.command(
    "ablate",
    short_help="Measure which layers must stay unquantized.",
    epilog="Example: lensconv ablate Lens --level velocity --prompts ten-signs --out evidence",
)
@click.argument("original", type=LOCAL_PATH)
@click.option("--out", "output", metavar="DIR", type=PATH, required=True, help="Folder for measurements and images.")
@click.option(
    "--recipe",
    metavar="NAME|FILE",
    help="Recipe that is examined.  [default: that of `convert` for the model's class]",
)
@click.option(
    "--prompts",
    metavar="NAME|FILE",
    default="ten-signs",
    show_default=True,
    help="Suite of prompts for the levels velocity and images.",
)
@dataclass_options(AblateOptions, *own_fields_first(AblateOptions))
@dataclass_options(GenerateOptions, *(field.name for field in fields(GenerateOptions) if field.name not in _CHOSEN))
@ray_option("Measure on the nodes of a cluster.")
@output_options
@pass_console
@click.pass_context
def command(
    context: click.Context,
    console: Console,
    /,
    original: Path,
    output: Path,
    recipe: str | None,
    prompts: str,
    ray: str | None,
    **options: Any,
) -> None:
    """Measure variants of a recipe on the model in ORIGINAL: what does each family of layers cost and save?

    At the level of weights, ORIGINAL is a component folder, a pipeline repo or a .safetensors file, and no model is
    loaded. At the other levels it is a pipeline repo; its denoiser gets the layers of each variant in turn. A run that
    was stopped continues where it stopped. `card` shows ablation.json, `grid` and `charts` draw it.
    """
    require_extra("measure")
    from converter.measurement.prompts.suite import read_suite

    measuring = AblateOptions(**{field.name: options.pop(field.name) for field in fields(AblateOptions)})
    generating = GenerateOptions(**options)
    suite = None if measuring.level == WEIGHTS else read_suite(prompts)
    # Imported late, since it takes seconds; errors in the command line are reported before.
    from converter.libraries import PIPELINE_BYTES, load_library

    ablate = load_library("converter.measurement.ablation.ablate", needed=PIPELINE_BYTES).ablate
    report = ablate(original, output, recipe, suite, measuring, generating, ray=ray, reporter=console)
    console.result(report.to_dict(), *_render(report))
    context.exit(0 if report.ok else 1)


def _render(report: AblationReport) -> list[RenderableType]:
    from converter.cli.evidence import render_contents
    from converter.measurement.evidence.names import ABLATION_NAME

    parts = render_contents({ABLATION_NAME: ("ablation", report.content)})
    parts += [f"failed: {failure}" for failure in report.failures]
    return [*parts, f"{report.summary} Measurements: {report.output}."]
