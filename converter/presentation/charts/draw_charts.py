"""Draw all charts for which a folder contains measurements."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.checkpoint.writer import folder_inside
from converter.console import SILENT, Reporter
from converter.errors import MissingInput
from converter.measurement.evidence.files import MEASURE_HINT, read_evidence_folder
from converter.measurement.evidence.origin import origin_note
from converter.presentation.charts.chart import Chart, Evidence, LeftOut
from converter.presentation.charts.library import fixed_settings, traceless_import
from converter.presentation.charts.style import THEMES, Theme
from converter.presentation.output import replace_pictures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Folder of the charts in a release.
CHARTS_FOLDER = "assets/charts"
#: Name of the chart of an ablation.
ABLATION_CHART = "ablation"
#: Names of the files of all charts, of this run and of earlier ones.
_FILE_NAMES = re.compile(r"(footprint|time|memory|fidelity|trajectory|ablation)-(light|dark)\.(svg|png)")
#: Fields that matplotlib leaves out: when and with which version a file was made. A PNG loses them with its palette.
_METADATA: dict[str, dict[str, str | None]] = {"svg": {"Date": None, "Creator": None}, "png": {}}


@dataclass(frozen=True)
class DrawnChart:
    """A chart and its files."""

    name: str
    files: tuple[str, ...]
    """Paths from the folder that contains ``assets``, with slashes."""
    description: str
    """The chart in words, with its figures."""


@dataclass(frozen=True)
class ChartsReport:
    """Charts that were drawn, and charts that were left out."""

    charts: tuple[DrawnChart, ...]
    left_out: tuple[LeftOut, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return it as ``--json`` prints it."""
        return {
            "charts": [{**asdict(chart), "files": list(chart.files)} for chart in self.charts],
            "left_out": [asdict(chart) for chart in self.left_out],
        }


def draw_charts(folder: Path, *, output: Path | None = None, reporter: Reporter = SILENT) -> ChartsReport:
    """Draw the charts of a folder of measurements as SVG and PNG, each in light and dark.

    All charts are drawn before the first file is written; each file is then written as a whole or not at all.

    Args:
        folder: contains the measurements.
        output: the folder in which ``assets/charts`` is created; by default the same folder.
        reporter: is told which charts are left out, and why.

    Raises:
        MissingInput: the folder does not exist, or contains no measurements for any chart.
        EvidenceError: a file of measurements cannot be used.
        OutputError: a file cannot be written, or a link leads out of the folder.
        DiskError: the disk is full.
        DependencyError: matplotlib is missing.
    """
    evidence = read_evidence_folder(folder)
    target = folder_inside(folder if output is None else output, CHARTS_FOLDER)
    charts = prepare_charts(evidence)
    ready = [chart for chart in charts if isinstance(chart, Chart)]
    left_out = tuple(chart for chart in charts if isinstance(chart, LeftOut))
    if not ready:
        reasons = "; ".join(f"{chart.name}: {chart.reason}" for chart in left_out)
        raise MissingInput(folder, f"contains no measurements for a chart: {reasons}", MEASURE_HINT)
    for chart in left_out:
        reporter.note(f"left out {chart.name}: {chart.reason}")
    contents: dict[str, bytes] = {}
    drawn = []
    for made in ready:
        files = {
            f"{made.name}-{theme.name}.{kind}": content
            for theme in THEMES
            for kind, content in render(made, theme).items()
        }
        contents |= files
        drawn.append(DrawnChart(made.name, tuple(f"{CHARTS_FOLDER}/{name}" for name in files), made.description))
    replace_pictures(target, contents, _FILE_NAMES)
    return ChartsReport(tuple(drawn), left_out)


def prepare_charts(evidence: Evidence) -> list[Chart | LeftOut]:
    """Return all charts in their order, ready to be drawn, or left out.

    Args:
        evidence: contents of files of measurements, by file name.

    Raises:
        EvidenceError: a figure is larger than anything that can be measured.
        DependencyError: matplotlib is missing.
    """
    with traceless_import():
        from converter.presentation.charts.ablation import ablation_chart
        from converter.presentation.charts.fidelity import fidelity_chart
        from converter.presentation.charts.footprint import footprint_chart
        from converter.presentation.charts.memory import memory_chart
        from converter.presentation.charts.times import time_chart
        from converter.presentation.charts.trajectory import trajectory_chart
    charts = (footprint_chart, time_chart, memory_chart, fidelity_chart, trajectory_chart, ablation_chart)
    return [make(evidence) for make in charts]


def render(chart: Chart, theme: Theme, kinds: Sequence[str] = tuple(_METADATA)) -> dict[str, bytes]:
    """Return the files of a chart in one theme, by their formats: ``svg`` and ``png``."""
    with fixed_settings():
        figure = chart.draw(theme)
        return {kind: _save(figure, kind, chart.description) for kind in kinds}


def _save(figure: Figure, kind: str, description: str) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format=kind, metadata=_METADATA[kind])
    return _shrink(stream, description) if kind == "png" else stream.getvalue()


def _shrink(stream: io.BytesIO, description: str) -> bytes:
    """Return a PNG with a palette, which takes a third of the space; the loss of shades is not visible."""
    from PIL import Image

    shrunk = io.BytesIO()
    with Image.open(stream) as image:
        image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(
            shrunk, "png", optimize=True, exif=origin_note(description)
        )
    return shrunk.getvalue()
