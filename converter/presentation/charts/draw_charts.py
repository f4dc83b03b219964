"""Drawing all charts that the measurements in a folder suffice for."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.checkpoint.writer import folder_inside, replace_file, write_error
from converter.console import SILENT, Reporter
from converter.errors import MissingInput
from converter.measurement.evidence.files import read_evidence_folder
from converter.measurement.evidence.origin import origin_note
from converter.presentation.charts.chart import Chart, Evidence, LeftOut
from converter.presentation.charts.library import fixed_settings, traceless_import
from converter.presentation.charts.style import THEMES, Theme

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Where charts stand in a release, from its root.
CHARTS_FOLDER = "assets/charts"
#: What would tell when a file was made, and with which version.
_METADATA: dict[str, dict[str, str | None]] = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}


@dataclass(frozen=True)
class DrawnChart:
    """A chart and its files."""

    name: str
    files: tuple[str, ...]
    """Paths from the folder that holds ``assets``, with slashes."""
    description: str
    """Says the same in words, with its figures."""


@dataclass(frozen=True)
class ChartsReport:
    """What was drawn and what was not."""

    charts: tuple[DrawnChart, ...]
    left_out: tuple[LeftOut, ...]

    def to_dict(self) -> dict[str, Any]:
        """As ``--json`` prints it."""
        return {
            "charts": [
                {"name": chart.name, "files": list(chart.files), "description": chart.description}
                for chart in self.charts
            ],
            "left_out": [{"name": chart.name, "reason": chart.reason} for chart in self.left_out],
        }


def draw_charts(folder: Path, *, output: Path | None = None, reporter: Reporter = SILENT) -> ChartsReport:
    """Draw the charts of a folder of measurements as SVG and PNG, each in light and dark.

    Nothing is written before all of them are drawn; each file is then written whole or not at all.

    Args:
        folder: holds the measurements.
        output: where ``assets/charts`` is made; by default the same folder.
        note: is told which charts are left out, and why.

    Raises:
        MissingInput: the folder is not there, or has no measurements that a chart could show.
        EvidenceError: a file of measurements cannot be used.
        OutputError: a file cannot be written, or a link leads out of the folder.
        DiskError: there is no space.
        DependencyError: matplotlib is missing.
    """
    evidence = read_evidence_folder(folder)
    target = folder_inside(folder if output is None else output, CHARTS_FOLDER)
    charts = prepare_charts(evidence)
    ready = [chart for chart in charts if isinstance(chart, Chart)]
    left_out = tuple(chart for chart in charts if isinstance(chart, LeftOut))
    if not ready:
        reasons = "; ".join(f"{chart.name}: {chart.reason}" for chart in left_out)
        raise MissingInput(
            folder,
            f"holds nothing that a chart could show: {reasons}",
            "Measure with `lensconv bench --out`.",
        )
    for chart in left_out:
        reporter.note(f"left out {chart.name}: {chart.reason}")
    files = {
        f"{chart.name}-{theme.name}.{kind}": content
        for chart in ready
        for theme in THEMES
        for kind, content in render(chart, theme).items()
    }
    _write(target, files)
    # Of an earlier run, with measurements that are gone.
    _remove(
        target, [f"{chart.name}-{theme.name}.{kind}" for chart in left_out for theme in THEMES for kind in _METADATA]
    )
    drawn = (
        DrawnChart(
            chart.name,
            tuple(f"{CHARTS_FOLDER}/{name}" for name in files if name.startswith(f"{chart.name}-")),
            chart.description,
        )
        for chart in ready
    )
    return ChartsReport(tuple(drawn), left_out)


def prepare_charts(evidence: Evidence) -> list[Chart | LeftOut]:
    """All charts in their order, ready to be drawn, or left out.

    Args:
        evidence: contents of files of measurements, by file name.

    Raises:
        EvidenceError: a figure is beyond everything that exists.
        DependencyError: matplotlib is missing.
    """
    with traceless_import():
        from converter.presentation.charts.fidelity import fidelity_chart
        from converter.presentation.charts.footprint import footprint_chart
        from converter.presentation.charts.memory import memory_chart
        from converter.presentation.charts.times import time_chart
    return [make(evidence) for make in (footprint_chart, time_chart, memory_chart, fidelity_chart)]


def render(chart: Chart, theme: Theme) -> dict[str, bytes]:
    """The files of a chart in one theme, by the ending of their names."""
    with fixed_settings():
        figure = chart.draw(theme)
        return {kind: _save(figure, kind, chart.description) for kind in _METADATA}


def _save(figure: Figure, kind: str, description: str) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format=kind, metadata=_METADATA[kind])
    return _shrink(stream, description) if kind == "png" else stream.getvalue()


def _shrink(stream: io.BytesIO, description: str) -> bytes:
    """A PNG with a palette, which takes a third of the space; edges of letters lose shades that nobody sees."""
    from PIL import Image

    shrunk = io.BytesIO()
    with Image.open(stream) as image:
        image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(
            shrunk, "png", optimize=True, exif=origin_note(description)
        )
    return shrunk.getvalue()


def _write(target: Path, files: dict[str, bytes]) -> None:
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(target, error) from error
    for name, content in files.items():
        replace_file(target / name, content)


def _remove(target: Path, names: Sequence[str]) -> None:
    for name in names:
        try:
            (target / name).unlink(missing_ok=True)
        except OSError as error:
            raise write_error(target / name, error) from error
