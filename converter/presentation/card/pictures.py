"""The comparison grid and the charts of a card: those that were drawn from its measurements, and no others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from converter.errors import EvidenceError
from converter.measurement.evidence.names import MATRIX_NAME
from converter.measurement.evidence.origin import grid_text, is_drawn_from
from converter.presentation.card.evidence import CardEvidence, read_beside
from converter.presentation.charts.chart import Chart
from converter.presentation.charts.draw_charts import CHARTS_FOLDER, prepare_charts
from converter.presentation.charts.style import DARK, LIGHT
from converter.presentation.grid.make_grid import SHEET_PATTERN
from converter.presentation.grid.sheets import FOLDER, PREVIEW_NAME


@dataclass(frozen=True)
class CardChart:
    """A chart that a card shows."""

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
    contents: Mapping[str, bytes] = field(default_factory=dict)
    """Of all of them."""


def find_pictures(evidence: CardEvidence) -> CardPictures:
    """The pictures that `grid` and `charts` drew from these measurements.

    Raises:
        EvidenceError: a picture was drawn from others, or leads out of the folder.
        MissingInput: one cannot be read.
        DependencyError: matplotlib is missing.
    """
    contents: dict[str, bytes] = {}

    def take(path: str, text: str | None, command: str) -> str:
        content = read_beside(evidence.folder, path)
        if text is None or not is_drawn_from(content, text):
            raise EvidenceError(
                evidence.folder / path,
                "was drawn from other measurements than those beside it",
                f"Draw it again with `{command}`.",
            )
        contents[path] = content
        return path

    matrix = evidence.files.get(MATRIX_NAME)
    text = grid_text(matrix) if matrix is not None else None
    names = _names_in(evidence.folder / FOLDER)
    grid = [
        take(f"{FOLDER}/{name}", text, "lensconv grid")
        for name in names
        if name == PREVIEW_NAME or SHEET_PATTERN.fullmatch(name)
    ]
    preview = f"{FOLDER}/{PREVIEW_NAME}"
    names = _names_in(evidence.folder / CHARTS_FOLDER)
    charts = []
    # Preparing them takes matplotlib.
    for chart in prepare_charts(evidence.as_found) if names else ():
        light, dark = (f"{chart.name}-{theme.name}.png" for theme in (LIGHT, DARK))
        if light in names:
            description = chart.description if isinstance(chart, Chart) else None
            shown = [
                take(f"{CHARTS_FOLDER}/{name}", description, "lensconv charts") if name in names else ""
                for name in (light, dark)
            ]
            charts.append(CardChart(description or "", *shown))
    return CardPictures(
        preview if preview in grid else "",
        tuple(path for path in grid if path != preview),
        tuple(charts),
        contents,
    )


def _names_in(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.glob("*") if file.is_file())
