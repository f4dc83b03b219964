"""``lensconv search``."""

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
from converter.console import Console, table
from converter.extras import require_extra
from converter.measurement.generation.options import GenerateOptions
from converter.measurement.search.options import SearchOptions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

    from converter.measurement.search.search import SearchReport
    from converter.measurement.search.verdicts import Found

#: Options of `generate` that a search chooses itself, or cannot use: layers are exchanged while a model is loaded.
_CHOSEN = ("seed", "features", "overwrite", "adapters", "compile", "int8")
_OPTIONS = [name for name in own_fields_first(SearchOptions) if name != "rules"]


@click.command(
    "search",
    short_help="Find the best recipe for a number of bytes.",
    epilog="Example: lensconv search Lens --budget 3GB --prompts ten-signs --out recipe.toml --check",
)
@click.argument("original", type=LOCAL_PATH)
@click.option(
    "--out",
    "output",
    metavar="FILE",
    type=PATH,
    required=True,
    help="File of the recipe, .toml; with --front, names get a number. Measurements are in NAME-evidence beside it.",
)
@click.option(
    "--recipe",
    metavar="NAME|FILE",
    help="Recipe that gives all options that candidates do not have; its rules do not count.  [default: that of "
    "`convert` for the model's class]",
)
@click.option(
    "--prompts",
    metavar="NAME|FILE",
    default="ten-signs",
    show_default=True,
    help="Suite of prompts; the first ones are for the harms, the others for --check.",
)
@click.option(
    "--rule",
    "rules",
    metavar="RULE",
    multiple=True,
    help="Rule, repeatable: 'GLOB=keep' (not quantized), 'GLOB>=DTYPE' (at least so many bits), 'GLOB,GLOB=same' (the "
    "same candidate), 'GLOB=include' (also what SDNQ skips).",
)
@dataclass_options(SearchOptions, *_OPTIONS)
@dataclass_options(GenerateOptions, *(field.name for field in fields(GenerateOptions) if field.name not in _CHOSEN))
@ray_option("Measure on the nodes of a cluster.")
@output_options
@pass_console
def command(
    console: Console,
    /,
    original: Path,
    output: Path,
    recipe: str | None,
    prompts: str,
    ray: str | None,
    **options: Any,
) -> None:
    """Choose for each module of ORIGINAL how it is stored, so that the whole does the least harm.

    The harm of each candidate is measured for each module by itself. Of all combinations within the budget, the one
    with the least sum is found exactly. The result is a recipe for `convert`. ORIGINAL is a pipeline repo; for scores
    by weights, also a component folder or a .safetensors file. A run that was stopped continues where it stopped.
    """
    require_extra("measure")
    from converter.measurement.prompts.suite import read_suite

    searching = SearchOptions(**{field.name: options.pop(field.name) for field in fields(SearchOptions)})
    generating = GenerateOptions(**options)
    suite = read_suite(prompts)
    # Imported late, since it takes seconds; errors in the command line are reported before.
    from converter.libraries import PIPELINE_BYTES, load_library

    search = load_library("converter.measurement.search.search", needed=PIPELINE_BYTES).search
    report = search(original, output, searching, recipe, suite, generating, ray=ray, reporter=console)
    treatment = "" if searching.quantize_from == "bfloat16" else f" --quantize-from {searching.quantize_from}"
    use = f"lensconv convert {original} OUT --recipe {report.found[0].file}{treatment}"
    console.result(report.to_dict(), *_render(report), f"To use it: {use}")


def _render(report: SearchReport) -> Iterator[RenderableType]:
    from converter.presentation.tables.figures import counted, decimal, size

    titles = ["Recipe", "Bytes", "Predicted error", "Stored as"]
    rows = [
        [one.recipe.name, size(one.selection.bytes), _predicted(report, one.selection.error), _stored(one)]
        for one in report.found
    ]
    yield table(titles, [[str(cell) for cell in row] for row in rows], title="Found")
    if report.check is not None:
        of_check = [*report.check.found, *report.check.uniform]
        measured = [
            [
                one.name,
                size(one.bytes),
                _predicted(report, one.predicted),
                decimal(one.root_mean_square, 4),
                decimal(one.error, 4),
            ]
            for one in of_check
        ]
        columns = ["Recipe", "Bytes", "Predicted error", "Root mean square", "Mean error"]
        yield table(columns, [[str(cell) for cell in row] for row in measured], title="Measured with other prompts")
        yield from report.check.sentences
    files = ", ".join(str(one.file) for one in report.found)
    yield f"Wrote {files}. Possible footprints: {size(report.smallest)} to {size(report.largest)}."
    yield f"Measurements: {report.evidence}. {counted(len(report.found), 'recipe')} in {report.elapsed_s:.0f} s."


def _predicted(report: SearchReport, error: float | None) -> str:
    from converter.presentation.tables.figures import decimal

    return str(decimal(error if report.predicts else None, 4))


def _stored(found: Found) -> str:
    return ", ".join(f"{count} {name}" for name, count in found.modules.items())
