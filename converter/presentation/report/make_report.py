"""Make the report of a bench: one page with the images of both models, the tables and the charts."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from converter.checkpoint.writer import refuse_taken_place, replace_file
from converter.console import SILENT, Reporter
from converter.errors import OutputError, unreadable
from converter.measurement.evidence.files import read_evidence_folder
from converter.measurement.evidence.names import MATRIX_NAME, MODEL_TITLES
from converter.presentation.charts.chart import Chart, LeftOut
from converter.presentation.charts.draw_charts import prepare_charts, render
from converter.presentation.charts.style import THEMES
from converter.presentation.report.context import Evidence, model_labels, rows_with_images, shown_prompts
from converter.presentation.report.highlights import find_highlights
from converter.presentation.report.images import Pictures, read_pictures
from converter.presentation.report.page import BEGINNING, render_report
from converter.presentation.report.sections import find_provenance, find_sections
from converter.presentation.report.store import EMBEDDED_BYTES, ImageStore, data_address

#: Name of the page in the folder of the measurements.
REPORT_NAME = "report.html"


@dataclass(frozen=True)
class MissingImage:
    """An image that a report does not show."""

    id: str
    model: str
    """``original``, ``quantized`` or ``baseline``."""
    reason: str


@dataclass(frozen=True)
class ReportPage:
    """A report that was written."""

    report: Path
    bytes: int
    """Size of the page."""
    prompts: int
    images: int
    image_bytes: int
    """Size of all images, each counted once."""
    image_folder: Path | None
    """Folder beside the page that contains its images; None where they are inside the page."""
    missing: tuple[MissingImage, ...]
    charts: tuple[str, ...]
    left_out: tuple[LeftOut, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return it as ``lensconv report --json`` prints it."""
        folder = None if self.image_folder is None else str(self.image_folder)
        return {**asdict(self), "report": str(self.report), "image_folder": folder}


@dataclass(frozen=True)
class DrawnChart:
    """A chart in the page."""

    description: str
    light: str
    dark: str


def make_report(
    folder: Path,
    *,
    output: Path | None = None,
    overwrite: bool = False,
    embedded_bytes: int = EMBEDDED_BYTES,
    reporter: Reporter = SILENT,
) -> ReportPage:
    """Write the report of a folder of measurements. The same measurements give the same bytes.

    Args:
        folder: contains the measurements and their images.
        output: the page; by default ``report.html`` in the folder.
        overwrite: whether to replace a file that is not a report.
        embedded_bytes: most bytes of all images inside the page; more are written into a folder beside it.
        reporter: shows progress and notes.

    Raises:
        MissingInput: the folder does not exist, or contains no measurements.
        EvidenceError: a file of measurements cannot be used.
        OutputError: the page cannot be written, or would replace another file.
        DiskError: the disk is full.
        DependencyError: matplotlib is missing.
    """
    output = output or folder / REPORT_NAME
    evidence = read_evidence_folder(folder, check_images=False)
    _refuse_other_file(output, overwrite=overwrite)
    store = ImageStore(output, embedded_bytes)
    rows = rows_with_images(evidence)
    pictures = _read_all(folder, rows, store, reporter)
    prepared = prepare_charts(evidence)
    charts = [chart for chart in prepared if isinstance(chart, Chart)]
    page = render_report(_context(evidence, pictures, charts, store)).encode()
    replace_file(output, page)
    store.remove_others()
    missing = tuple(_missing(rows, pictures))
    return ReportPage(
        report=output,
        bytes=len(page),
        prompts=len(evidence.get(MATRIX_NAME, {"prompts": []})["prompts"]),
        images=sum(len(found.found) for found in pictures) - len(missing),
        image_bytes=store.bytes,
        image_folder=store.folder if store.is_beside else None,
        missing=missing,
        charts=tuple(chart.name for chart in charts),
        left_out=tuple(chart for chart in prepared if isinstance(chart, LeftOut)),
    )


def _refuse_other_file(output: Path, *, overwrite: bool) -> None:
    """Refuse a path where no page can be written, or where something other than a report is."""
    refuse_taken_place(output, overwrite=True)
    if overwrite or not os.path.lexists(output):
        return
    beginning = b""
    if output.is_file() and not output.is_symlink():
        try:
            with output.open("rb") as stream:
                beginning = stream.read(len(BEGINNING))
        except OSError as error:
            raise unreadable(output, error, "Check the file.") from error
    if beginning != BEGINNING.encode():
        raise OutputError(
            f"{output}: is not a report of lensconv", "Choose another name, or replace it with --overwrite."
        )


def _read_all(folder: Path, rows: Sequence[Mapping[str, Any]], store: ImageStore, reporter: Reporter) -> list[Pictures]:
    found = []
    with reporter.progress("encoding images", len(rows), "prompts") as display:
        for row in rows:
            found.append(read_pictures(folder, row, store))
            display.advance(1)
            display.refresh()
    return found


def _context(
    evidence: Evidence, pictures: Sequence[Pictures], charts: Sequence[Chart], store: ImageStore
) -> dict[str, Any]:
    titles = model_labels(evidence) or MODEL_TITLES
    sections = [*find_sections(evidence, titles), find_provenance(evidence)]
    anchors = [*(section.anchor for section in sections), "prompts", "charts"]
    return {
        "titles": titles,
        "highlights": find_highlights(evidence),
        "prompts": shown_prompts(evidence, pictures, anchors),
        "sections": sections[:-1],
        "provenance": sections[-1],
        "charts": [_draw(chart) for chart in charts],
        "folder": store.folder.name if store.is_beside else None,
        "address": store.address,
    }


def _draw(chart: Chart) -> DrawnChart:
    light, dark = (data_address(render(chart, theme, ["png"])["png"], "image/png") for theme in THEMES)
    return DrawnChart(chart.description, light, dark)


def _missing(rows: Sequence[Mapping[str, Any]], pictures: Sequence[Pictures]) -> Iterator[MissingImage]:
    for row, found in zip(rows, pictures, strict=True):
        for picture in found.missing:
            yield MissingImage(row["id"], picture.model, picture.missing)
