"""The chart of fidelity: how near the quantized weights are to the original ones, by family.

A figure that is null was infinite or not a number when it was measured. If the error is exactly zero, the ratio is
infinite and the cosine is one, up to rounding. Any other family without a figure has no finite one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from matplotlib.figure import Figure

from converter.measurement.evidence.names import WEIGHTS_NAME
from converter.presentation.charts.chart import (
    MOST_DECIBELS,
    MOST_MODULES,
    MOST_ROWS,
    Chart,
    Evidence,
    LeftOut,
    check_drawable,
)
from converter.presentation.charts.figures import exact_number, short_name, short_number
from converter.presentation.charts.footprint import FAMILIES
from converter.presentation.charts.page import Heading, Page, draw_text, round_steps
from converter.presentation.charts.style import GAP, MARGIN, WIDTH, Theme
from converter.presentation.charts.text import shorten, text_width
from converter.presentation.tables.figures import counted

NAME = "fidelity"
TITLE = "Fidelity of the quantized weights"
AXIS = "Signal to quantization noise (dB)"
#: Pixels from one family to the next.
_PITCH = 56
_NAMES_WIDTH = 200
#: How far from one the cosine of equal vectors may be, in float64 sums of billions of terms.
_COSINE_ROUNDING = 1e-9
_EXACT = "equal to the original"
_NOT_FINITE = "without a finite figure"


@dataclass(frozen=True)
class _Family:
    """Measurements of one family, in dB."""

    name: str
    modules: int
    whole: float | None
    """Ratio of the energy of all its weights to that of their errors; None without a finite figure."""
    lowest: float | None
    """The same for its worst module."""
    is_exact: bool

    @property
    def words(self) -> str:
        """Text instead of a dot."""
        return _EXACT if self.is_exact else _NOT_FINITE


def fidelity_chart(evidence: Evidence) -> Chart | LeftOut:
    """Return the signal-to-quantization-noise ratios of families and of their worst modules.

    Args:
        evidence: contents by file name.

    Raises:
        EvidenceError: a figure is larger than anything that can be measured.
    """
    content = evidence.get(WEIGHTS_NAME)
    if content is None:
        return LeftOut(NAME, f"{WEIGHTS_NAME} is missing")
    families = [_family(entry) for entry in content["fidelity"]["families"]]
    if not families:
        return LeftOut(NAME, f"{WEIGHTS_NAME} has no families")
    check_drawable(WEIGHTS_NAME, "sqnr_db", _figures(families), MOST_DECIBELS)
    check_drawable(WEIGHTS_NAME, "modules", [family.modules for family in families], MOST_MODULES)
    families.sort(key=lambda family: (*FAMILIES, family.name).index(family.name))
    return Chart(NAME, _describe(families), partial(_draw, families))


def _family(entry: Mapping[str, Any]) -> _Family:
    cosine = entry["cosine_min"]
    whole, lowest = entry["sqnr_db"], entry["sqnr_db_min"]
    is_exact = whole is None and lowest is None and cosine is not None and cosine >= 1 - _COSINE_ROUNDING
    return _Family(entry["name"], entry["modules"], whole, lowest, is_exact)


def _figures(families: Sequence[_Family]) -> list[float]:
    return [value for family in families for value in (family.whole, family.lowest) if value is not None]


def _shown(families: Sequence[_Family]) -> list[_Family]:
    """Return as many as fit into a chart: those farthest from the original, in their order."""

    def distance(index: int) -> tuple[bool, float]:
        family = families[index]
        return family.is_exact, min(_figures([family]), default=float("-inf"))

    return [families[index] for index in sorted(sorted(range(len(families)), key=distance)[:MOST_ROWS])]


def _draw(families: Sequence[_Family], theme: Theme) -> Figure:
    shown = _shown(families)
    page = Page(theme, Heading(TITLE, _explain(families, shown)), _PITCH * len(shown))
    names = [shorten(family.name, _NAMES_WIDTH) for family in shown]
    counts = [counted(family.modules, "module") for family in shown]
    left = MARGIN + max(map(text_width, names)) + 3 * GAP
    right = WIDTH - MARGIN - max(map(text_width, counts)) - 2 * GAP
    axes = page.add_axes(left, right, page.plot_top, page.plot_height)
    axes.set_ylim(page.plot_height, 0)
    least, most = _range(_figures(shown), right - left)
    page.scale(axes, least, most, AXIS, numbered=bool(_figures(shown)))
    color = theme.color("quantized")
    for number, (name, modules, family) in enumerate(zip(names, counts, shown, strict=True)):
        middle = _PITCH * (number + 0.5)
        draw_text(axes, least, middle, name, theme.ink, align="right", shift=-2 * GAP)
        draw_text(axes, most, middle, modules, theme.muted, shift=2 * GAP)
        if family.whole is None:
            draw_text(axes, least, middle, family.words, theme.ink)
            continue
        start = least if family.lowest is None else family.lowest
        axes.plot((start, family.whole), (middle, middle), color=color, linewidth=5, solid_capstyle="butt")
        end = "<" if family.lowest is None else "|"
        axes.plot([start], [middle], end, color=color, markersize=16, markeredgewidth=4, clip_on=False)
        axes.plot([family.whole], [middle], "o", color=color, markersize=17, markeredgewidth=0, clip_on=False)
        draw_text(axes, max(family.whole, start), middle, short_number(family.whole), theme.ink, shift=2 * GAP)
    return page.figure


def _range(figures: Sequence[float], width: float) -> tuple[float, float]:
    """Return round ends around the figures, with space for marks at both and for a number behind the last."""
    if not figures:
        return 0.0, 1.0
    least, most = min(figures), max(figures)
    extent = max(most - least, 1.0)
    text_space = text_width(short_number(most)) + 4 * GAP
    start = round_steps(least - extent * 0.05, most)[0]
    return start, max(start + (most - start) * width / (width - text_space), most + extent * 0.01)


def _explain(families: Sequence[_Family], shown: Sequence[_Family]) -> str:
    text = "Higher is better. Dot: the whole family; bar: down to its lowest module."
    if any(family.whole is not None and family.lowest is None for family in shown):
        text += " Arrow: a module without a finite figure."
    if len(shown) < len(families):
        text += f" The {len(shown)} lowest of {len(families)} families."
    return text


def _describe(families: Sequence[_Family]) -> str:
    rows = []
    for family in _shown(families):
        text = f"{short_name(family.name)} ({counted(family.modules, 'module')}) "
        if family.whole is None:
            text += family.words
        else:
            lowest = _NOT_FINITE if family.lowest is None else f"{exact_number(family.lowest)} dB"
            text += f"{exact_number(family.whole)} dB, lowest module {lowest}"
        rows.append(text)
    rest = len(families) - len(rows)
    more = f" {counted(rest, 'more family').replace('familys', 'families')} not shown." if rest else ""
    return f"{TITLE}, signal to quantization noise by family: {'; '.join(rows)}.{more}"
