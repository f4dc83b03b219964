"""The comparison grid and the charts of a card: those that were drawn from its measurements, and no others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from converter.card.evidence import CardEvidence
from converter.charts.chart import Chart
from converter.charts.run import CHARTS_FOLDER, prepare_charts
from converter.charts.style import DARK, LIGHT
from converter.errors import EvidenceError, MissingInput, printable
from converter.evidence.files import MATRIX_NAME
from converter.evidence.origin import grid_text, is_drawn_from
from converter.grid.run import SHEET_PATTERN
from converter.grid.sheets import FOLDER, PREVIEW_NAME


@dataclass(frozen=True)
class CardChart:
    """A chart that a card shows."""

    name: str
    description: str
    """Says the same in words, with its figures."""
    light: str
    """Path of the picture, with slashes."""
    dark: str
    """That for pages in dark colours; empty where there is none."""


@dataclass(frozen=True)
class CardPictures:
    """Pictures by their paths, with slashes."""

    preview: str = ""
    """The grid as cards show it; empty where there is none."""
    sheets: tuple[str, ...] = ()
    """The grid in its full size."""
    charts: tuple[CardChart, ...] = ()

    @property
    def files(self) -> tuple[str, ...]:
        """All of them."""
        charts = (file for chart in self.charts for file in (chart.light, chart.dark))
        return tuple(file for file in (self.preview, *self.sheets, *charts) if file)


def find_pictures(evidence: CardEvidence) -> CardPictures:
    """The pictures that `grid` and `charts` drew from these measurements.

    Raises:
        EvidenceError: a picture was drawn from others.
        MissingInput: one cannot be read.
        DependencyError: matplotlib is missing.
    """
    present = _names(evidence.folder, str(FOLDER))
    preview = f"{FOLDER}/{PREVIEW_NAME}" if PREVIEW_NAME in present else ""
    sheets = tuple(f"{FOLDER}/{name}" for name in present if SHEET_PATTERN.fullmatch(name))
    matrix = evidence.files.get(MATRIX_NAME)
    for path in filter(None, (preview, *sheets)):
        _refuse_stale(evidence.folder / path, grid_text(matrix) if matrix else None, "lensconv grid")
    return CardPictures(preview, sheets, tuple(_charts(evidence)))


def _charts(evidence: CardEvidence) -> Iterator[CardChart]:
    present = _names(evidence.folder, CHARTS_FOLDER)
    # Preparing them takes matplotlib.
    for chart in prepare_charts(evidence.as_found) if present else ():
        light, dark = (f"{chart.name}-{theme.name}.png" for theme in (LIGHT, DARK))
        if light not in present:
            continue
        shown = [f"{CHARTS_FOLDER}/{name}" if name in present else "" for name in (light, dark)]
        description = chart.description if isinstance(chart, Chart) else None
        for path in filter(None, shown):
            _refuse_stale(evidence.folder / path, description, "lensconv charts")
        yield CardChart(chart.name, description or "", *shown)


def _names(folder: Path, place: str) -> list[str]:
    return sorted(file.name for file in (folder / place).glob("*") if file.is_file())


def _refuse_stale(file: Path, text: str | None, command: str) -> None:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise MissingInput(f"{printable(str(file))}: {error.strerror or error}", "Check the file.") from error
    if text is None or not is_drawn_from(content, text):
        raise EvidenceError(
            file, "was drawn from other measurements than those beside it", f"Draw it again with `{command}`."
        )
