"""``lensconv grid``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from converter.cli.options import PATH, output_options, pass_console
from converter.console import Console, readable_size
from converter.extras import require_extra
from converter.presentation.grid.layout import PREVIEW_WIDTH

if TYPE_CHECKING:
    from converter.presentation.grid.report import AblationSheet, GridReport, Preview


@click.command(
    "grid",
    short_help="Make a grid of the images of both models, and of those of an ablation.",
    epilog="Example: lensconv grid evidence",
)
@click.argument("folder", metavar="DIR", type=PATH)
@click.option(
    "--out",
    "output",
    metavar="FOLDER",
    type=PATH,
    help="Folder in which assets/comparison and assets/ablation are created or replaced.  [default: DIR]",
)
@click.option(
    "--preview-width",
    type=click.IntRange(min=1),
    default=PREVIEW_WIDTH,
    show_default=True,
    help="Maximum width of the preview in pixels. A wider grid is scaled down by a whole number.",
)
@output_options
@pass_console
def command(console: Console, folder: Path, output: Path | None, preview_width: int) -> None:
    """Make a grid of the images of both models, side by side, with a row for each prompt.

    DIR contains comparison_matrix.json and the images that it names. The grid and a preview are written to
    assets/comparison as WebP: the grid in quality 98, the preview lossless if it need not be scaled down. A grid that
    is taller than WebP allows is split into several sheets. The images in it keep their size; a box marks a missing
    image.

    If ablation.json has images, they become assets/ablation/ablation.webp: a row for the original, for a second seed
    and for each variant, and a column for each prompt. They are scaled down by a whole number, so that the sheet is at
    most 2560 pixels wide.
    """
    # Importing this takes a moment, and the help does not need it.
    require_extra("measure")
    from converter.presentation.grid.make_grid import make_grid

    report = make_grid(folder, output=output, preview_width=preview_width, reporter=console)
    console.result(report.to_dict(), *_lines(report))


def _lines(report: GridReport) -> list[str]:
    """Return the report as text."""
    lines = [
        f"{report.output / sheet.file}: {sheet.width}x{sheet.height}, {readable_size(sheet.bytes)}."
        for sheet in report.sheets
    ]
    if report.preview is not None:
        lines.append(_preview_line(report, report.preview))
    missing = [f"{cell.id} {cell.model}" for cell in report.missing]
    if missing:
        names = ", ".join(missing[:5]) + (", …" if len(missing) > 5 else "")
        lines.append(f"{len(missing)} of {len(report.cells)} cells are missing: {names}.")
    if report.ablation is not None:
        lines += _ablation_lines(report, report.ablation)
    return lines


def _preview_line(report: GridReport, preview: Preview) -> str:
    kind = "lossless" if preview.lossless else f"cells scaled down by {preview.scale}"
    shown = f", {report.preview_rows} of {report.rows} rows" if report.preview_rows < report.rows else ""
    return (
        f"{report.output / preview.file}: {preview.width}x{preview.height}, {readable_size(preview.bytes)}, "
        f"{kind}{shown}."
    )


def _ablation_lines(report: GridReport, sheet: AblationSheet) -> list[str]:
    kind = "lossless" if sheet.lossless else f"images scaled down by {sheet.scale}"
    size = f"{sheet.width}x{sheet.height}, {readable_size(sheet.bytes)}"
    rows = f"{len(sheet.rows)} rows of {len(sheet.prompts)} images"
    lines = [f"{report.output / sheet.file}: {size}, {kind}, {rows}."]
    return [*lines, f"{sheet.missing_cells} of these are missing."] if sheet.missing_cells else lines
