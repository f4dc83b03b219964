"""``lensconv charts``."""

from __future__ import annotations

from pathlib import Path

import click

from converter.cli.options import PATH, output_options, pass_console
from converter.console import Console
from converter.extras import require_extra


@click.command(
    "charts",
    short_help="Draw charts of measurements.",
    epilog="Example: lensconv charts evidence",
)
@click.argument("directory", metavar="DIR", type=PATH)
@click.option(
    "--out", "output", metavar="FOLDER", type=PATH, help="Folder in which assets/charts is created.  [default: DIR]"
)
@output_options
@pass_console
def command(console: Console, /, directory: Path, output: Path | None) -> None:
    """Draw charts of the measurements in the folder DIR.

    The charts show footprint, time, memory, fidelity, the error of each step and the variants of an ablation, each as
    SVG and PNG for light and dark pages. Charts without measurements are left out. The same measurements give the same
    bytes.
    """
    # Importing this takes a moment; errors in the command line are reported before.
    require_extra("measure")
    from converter.presentation.charts.draw_charts import CHARTS_FOLDER, draw_charts

    report = draw_charts(directory, output=output, reporter=console)
    names = ", ".join(chart.name for chart in report.charts)
    files = sum(len(chart.files) for chart in report.charts)
    console.result(report.to_dict(), f"{(output or directory) / CHARTS_FOLDER}: {names}, {files} files.")
