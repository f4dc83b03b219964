"""Make the comparison grid of a bench: sheets in native pixels, and a preview for the model card.

Sheets are drawn one after the other, and only one image is decoded at a time. Files are written when all sheets are
complete, so that a failure does not change the files of an earlier run.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from converter.checkpoint.writer import folder_inside
from converter.console import SILENT, Reporter
from converter.errors import EvidenceError, MissingInput, UsageError
from converter.measurement.evidence.files import read_evidence
from converter.measurement.evidence.names import ABLATION_NAME, MATRIX_NAME, METRICS_NAME, MODEL_TITLES, MODELS
from converter.measurement.evidence.origin import grid_text, origin_note
from converter.presentation.grid.ablation_sheet import ABLATION_FOLDER, ABLATION_SHEET, draw_ablation, has_images
from converter.presentation.grid.cells import Row, find_rows
from converter.presentation.grid.layout import (
    PREVIEW_WIDTH,
    SIDE_LIMIT,
    Measures,
    Pair,
    preview_scale,
    ratio_name,
    split_rows,
)
from converter.presentation.grid.report import GridReport
from converter.presentation.grid.sheets import FOLDER, PREVIEW_NAME, SHEET_QUALITY, Drawing
from converter.presentation.output import replace_pictures

#: Names of sheets, of this run and of earlier ones.
SHEET_PATTERN = re.compile(rf"comparison_grid_(\d+to\d+|mixed)_q{SHEET_QUALITY}(-\d+of\d+)?\.webp")


def make_grid(
    folder: Path,
    *,
    output: Path | None = None,
    preview_width: int = PREVIEW_WIDTH,
    reporter: Reporter = SILENT,
) -> GridReport:
    """Draw the images of a bench side by side, pixel for pixel, and write the sheets and the preview.

    The images of an ablation become a sheet of their own.

    Args:
        folder: contains ``comparison_matrix.json`` or an ``ablation.json`` with images, and the images that they name.
        output: the folder in which ``assets/comparison`` and ``assets/ablation`` are created; by default the same
            folder.
        preview_width: most pixels that the preview may be wide.
        reporter: shows progress and notes.

    Raises:
        MissingInput: the folder does not exist, or contains no matrix.
        EvidenceError: a file has another format; an image is outside of the folder, is broken, or is not the image
            that was measured.
        UsageError: a single row, or the sheet of an ablation, is larger than WebP allows, or the preview is too narrow.
        OutputError: the pictures cannot be written.
        DiskError: the disk is full.
        DependencyError: the font is missing.
    """
    output = output or folder
    if not folder.is_dir():
        raise MissingInput(folder, "no such folder", "Check the path; `lensconv bench` creates such a folder.")
    ablation = _read_ablation(folder)
    targets = [folder_inside(output, str(name)) for name in (FOLDER, ABLATION_FOLDER)]
    contents: dict[str, bytes] = {}
    report = GridReport(output, (), None)
    if ablation is None or os.path.lexists(folder / MATRIX_NAME):
        report, contents = _draw_comparison(folder, output, preview_width, reporter)
    if ablation is not None:
        sheet, content = draw_ablation(folder, ablation, reporter)
        report = replace(report, ablation=sheet)
        replace_pictures(targets[1], {ABLATION_SHEET: content}, re.compile(re.escape(ABLATION_SHEET)))
    if contents:
        replace_pictures(targets[0], contents, SHEET_PATTERN)
    return report


def _read_ablation(folder: Path) -> dict[str, Any] | None:
    """Return the content of ``ablation.json``; None if there is none, or it has no images."""
    if not os.path.lexists(folder / ABLATION_NAME):
        return None
    content = read_evidence(folder / ABLATION_NAME)[1]
    return content if has_images(content) else None


def _draw_comparison(
    folder: Path, output: Path, preview_width: int, reporter: Reporter
) -> tuple[GridReport, dict[str, bytes]]:
    """Return the report of a comparison grid, and the contents of its files by name."""
    matrix = read_evidence(folder / MATRIX_NAME)[1]
    rows = find_rows(folder, matrix)
    titles = _titles(folder, reporter)
    sizes = [row.sizes for row in rows]
    counts = _split(sizes)
    scale = preview_scale(sizes, preview_width, least=1 if len(counts) == 1 else 2)
    if scale is None:
        raise UsageError(f"--preview-width {preview_width}: too narrow for two columns", "Use a larger number.")
    if len(counts) > 1:
        reporter.note(f"WebP allows {SIDE_LIMIT} pixels per side: {len(rows)} rows are split into {len(counts)} sheets")
    with reporter.progress("drawing the grid", len(rows) + len(counts) + 1, "steps") as display:
        drawing = Drawing(rows, titles, scale, origin_note(grid_text(matrix)), display)
        drawn = [drawing.draw_sheet(name, count) for name, count in zip(_names(rows, counts), counts, strict=True)]
        preview, content = drawing.draw_preview()
    report = GridReport(output, tuple(sheet for sheet, _ in drawn), preview)
    if report.preview_rows < report.rows:
        reporter.note(
            f"the preview shows the first {report.preview_rows} of {report.rows} rows, as many as WebP allows"
        )
    return report, {**{Path(sheet.file).name: content for sheet, content in drawn}, PREVIEW_NAME: content}


def _titles(folder: Path, reporter: Reporter) -> tuple[str, str]:
    """Return the names of the models from ``benchmark_metrics.json``, or default names."""
    if not os.path.lexists(folder / METRICS_NAME):
        return MODEL_TITLES
    try:
        models = read_evidence(folder / METRICS_NAME)[1]["models"]
    except (EvidenceError, MissingInput) as error:
        reporter.note(f"{error.message}; it is ignored, and the columns are called {' and '.join(MODEL_TITLES)}")
        return MODEL_TITLES
    original, quantized = (str(models[model]["label"]) for model in MODELS)
    return original, quantized


def _split(sizes: Sequence[Pair]) -> list[int]:
    """Return how many rows each sheet has."""
    measures = Measures.of(sizes)
    counts = split_rows(measures, sizes) if measures.width <= SIDE_LIMIT else None
    if counts is None:
        row = max(sizes, key=lambda pair: (sum(size.width for size in pair), max(size.height for size in pair)))
        shown = " and ".join(f"{size.width}x{size.height}" for size in row)
        raise UsageError(
            f"a row of the grid, with images such as {shown} side by side, is larger than the {SIDE_LIMIT} pixels per "
            "side that WebP allows",
            "Compare smaller images; the grid does not resample them.",
        )
    return counts


def _names(rows: Sequence[Row], counts: Sequence[int]) -> list[str]:
    """Return the names of the sheets."""
    name = f"comparison_grid_{ratio_name(cell.size for row in rows for cell in row.cells)}_q{SHEET_QUALITY}"
    if len(counts) == 1:
        return [f"{name}.webp"]
    return [f"{name}-{number}of{len(counts)}.webp" for number in range(1, len(counts) + 1)]
