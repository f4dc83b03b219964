"""The comparison grid and the charts of a card: only those that were made from its measurements."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from converter.errors import EvidenceError
from converter.measurement.evidence.names import ABLATION_NAME, MATRIX_NAME
from converter.measurement.evidence.origin import ablation_text, grid_text, is_drawn_from
from converter.presentation.card.evidence import CardEvidence, read_beside
from converter.presentation.charts.chart import Chart
from converter.presentation.charts.draw_charts import ABLATION_CHART, CHARTS_FOLDER, prepare_charts
from converter.presentation.charts.style import DARK, LIGHT
from converter.presentation.grid.ablation_sheet import ABLATION_FOLDER, ABLATION_SHEET
from converter.presentation.grid.make_grid import SHEET_PATTERN
from converter.presentation.grid.sheets import FOLDER, PREVIEW_NAME


@dataclass(frozen=True)
class CardChart:
    """A chart that a card shows."""

    description: str
    """The chart in words, with its figures."""
    light: str
    """Path of the picture, with slashes."""
    dark: str
    """Path of the picture for pages in dark colours; empty if there is none."""


@dataclass(frozen=True)
class CardPictures:
    """Pictures by their paths, with slashes."""

    preview: str = ""
    """The grid as cards show it; empty if there is none."""
    sheets: tuple[str, ...] = ()
    """The grid in its full size."""
    charts: tuple[CardChart, ...] = ()
    """All charts but that of the ablation."""
    ablation_chart: CardChart | None = None
    ablation_sheet: str = ""
    """Images of the variants of an ablation; empty if there is none."""
    contents: Mapping[str, bytes] = field(default_factory=dict)
    """Contents of all pictures."""


def find_pictures(evidence: CardEvidence) -> CardPictures:
    """Find the pictures that ``grid`` and ``charts`` made from these measurements.

    Raises:
        EvidenceError: a picture was made from other measurements, or is outside of the folder.
        MissingInput: one cannot be read.
        DependencyError: matplotlib is missing.
    """
    matrix = evidence.files.get(MATRIX_NAME)
    shown_by_grid = grid_text(matrix) if matrix is not None else ""
    contents = {
        path: _read(evidence.folder, path, shown_by_grid, "lensconv grid")
        for path in _files(evidence.folder, FOLDER)
        if path.name == PREVIEW_NAME or SHEET_PATTERN.fullmatch(path.name)
    }
    preview = FOLDER / PREVIEW_NAME
    sheets = tuple(str(path) for path in contents if path != preview)
    ablation = evidence.files.get(ABLATION_NAME)
    sheet = ABLATION_FOLDER / ABLATION_SHEET
    if sheet in _files(evidence.folder, ABLATION_FOLDER):
        shown = ablation_text(ablation) if ablation is not None else ""
        contents[sheet] = _read(evidence.folder, sheet, shown, "lensconv grid")
    charts = {}
    present = _files(evidence.folder, PurePosixPath(CHARTS_FOLDER))
    # Preparing them imports matplotlib.
    for chart in prepare_charts(evidence.as_found) if present else ():
        paths = [PurePosixPath(CHARTS_FOLDER, f"{chart.name}-{theme.name}.png") for theme in (LIGHT, DARK)]
        if paths[0] in present:
            description = chart.description if isinstance(chart, Chart) else ""
            found = [path for path in paths if path in present]
            contents |= {path: _read(evidence.folder, path, description, "lensconv charts") for path in found}
            charts[chart.name] = CardChart(description, *(str(path) if path in found else "" for path in paths))
    return CardPictures(
        preview=str(preview) if preview in contents else "",
        sheets=sheets,
        charts=tuple(made for name, made in charts.items() if name != ABLATION_CHART),
        ablation_chart=charts.get(ABLATION_CHART),
        ablation_sheet=str(sheet) if sheet in contents else "",
        contents={str(path): content for path, content in contents.items()},
    )


def _files(folder: Path, name: PurePosixPath) -> list[PurePosixPath]:
    """Return the paths of the files in a folder below another."""
    return [name / file.name for file in sorted((folder / name).glob("*")) if file.is_file()]


def _read(folder: Path, path: PurePosixPath, shown: str, command: str) -> bytes:
    """Return the content of a picture; refuse it if it does not show this text."""
    content = read_beside(folder, str(path))
    if not shown or not is_drawn_from(content, shown):
        raise EvidenceError(
            folder / path,
            "was made from other measurements than those in its folder",
            f"Make it again with `{command}`.",
        )
    return content
