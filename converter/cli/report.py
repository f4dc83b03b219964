"""``lensconv report``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from converter.cli.options import PATH, output_options, pass_console
from converter.console import Console, readable_size
from converter.extras import require_extra

if TYPE_CHECKING:
    from converter.presentation.report.make_report import ReportPage

#: Names of missing images that the text shows.
_SHOWN = 5


@click.command(
    "report",
    short_help="Make a page to compare the images and figures of both models.",
    epilog="Example: lensconv report evidence --out report.html",
)
@click.argument("folder", metavar="DIR", type=PATH)
@click.option("--out", "output", metavar="FILE", type=PATH, help="The page.  [default: DIR/report.html]")
@click.option("--overwrite", is_flag=True, help="Replace a file that is not a report. An earlier report is replaced.")
@output_options
@pass_console
def command(console: Console, folder: Path, output: Path | None, overwrite: bool) -> None:
    """Make an HTML page of the measurements in the folder DIR, which any browser opens without a network.

    The page shows the images of both models over each other, with a slider, blinking and zoom, next to the figures of
    their prompt; below are tables, charts, and the machine and versions. The images keep every pixel. They are inside
    the page up to 32 MB; otherwise they are written into a folder beside it. A missing or changed image is named.
    """
    # Importing this takes a moment, and the help does not need it.
    require_extra("measure")
    from converter.presentation.report.make_report import make_report

    report = make_report(folder, output=output, overwrite=overwrite, reporter=console)
    console.result(report.to_dict(), *_lines(report))


def _lines(report: ReportPage) -> list[str]:
    """Return the report as text."""
    place = "in it" if report.image_folder is None else f"in {report.image_folder}"
    # Images of the empty prompt are among them.
    images = f"{report.prompts} prompts, {report.images} images, {readable_size(report.image_bytes)}, {place}"
    lines = [f"{report.report}: {readable_size(report.bytes)}; {images}."]
    if report.missing:
        names = ", ".join(f"{image.id} {image.model}" for image in report.missing[:_SHOWN])
        more = ", …" if len(report.missing) > _SHOWN else ""
        lines.append(f"Images that are missing or were changed: {names}{more}.")
    return lines
