"""Horizontal bars in pairs, one for each model, from zero."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from converter.measurement.evidence.names import MODELS
from converter.presentation.charts.page import Heading, Page, draw_text
from converter.presentation.charts.style import GAP, MARGIN, WIDTH, Theme
from converter.presentation.charts.text import shorten, text_width

#: Pixels that the names at the left take at most.
NAMES_WIDTH = 230
#: Lengths below this, in any unit, count as zero.
_NOTHING = 1e-6


@dataclass(frozen=True)
class Bar:
    """A measurement of one model."""

    parts: Sequence[float]
    """Lengths of the stacked parts, each in its own shade; empty where nothing was measured."""
    label: str = ""
    """Text at its end."""

    @property
    def length(self) -> float:
        """Length of all parts."""
        return sum(self.parts)


@dataclass(frozen=True)
class Group:
    """The bars of both models, the original's above."""

    name: str
    bars: Sequence[Bar]
    note: str = ""
    """Text to the right of both bars."""

    @property
    def length(self) -> float:
        """Length of the longer bar."""
        return max(bar.length for bar in self.bars)


@dataclass(frozen=True)
class Rows:
    """Thickness of a bar, and distance from one pair to the next, in pixels."""

    thickness: float
    pitch: float


#: Bars that have a line of text at their end.
LABELLED = Rows(26, 70)
#: Bars of many rows without.
COMPACT = Rows(13, 36)


def draw_groups(
    theme: Theme,
    heading: Heading,
    groups: Sequence[Group],
    label: str,
    *,
    rows: Rows = LABELLED,
    lines: Sequence[float | None] = (None, None),
) -> Figure:
    """Draw pairs of bars.

    Args:
        theme: the colors.
        heading: the text above the bars.
        groups: from the top down, at least one.
        label: the quantity that the bars show, with its unit.
        rows: how thick they are.
        lines: a value of each model to mark across all bars, such as its mean; None for no mark.
    """
    page = Page(theme, heading, rows.pitch * len(groups))
    names = [shorten(group.name, NAMES_WIDTH) for group in groups]
    left = MARGIN + max(map(text_width, names)) + GAP + 4
    axes = page.add_axes(left, WIDTH - MARGIN, page.plot_top, page.plot_height)
    axes.set_ylim(page.plot_height, 0)
    for number, (name, group) in enumerate(zip(names, groups, strict=True)):
        middle = rows.pitch * (number + 0.5)
        draw_text(axes, 0, middle, name, theme.ink, shift=-GAP - 2, align="right")
        for model, bar, side in zip(MODELS, group.bars, (-0.5, 0.5), strict=True):
            _draw_bar(axes, theme, model, bar, middle + side * (rows.thickness + 1), rows.thickness)
        if group.note:
            draw_text(axes, group.length, middle, group.note, theme.ink)
    axes.axvline(0, color=theme.muted, linewidth=2)
    for model, value in zip(MODELS, lines, strict=True):
        if value is not None:
            # Behind the bars, so that none of their ends is hidden.
            axes.axvline(value, color=theme.color(model), linewidth=3, zorder=0.9)
    page.scale(axes, 0, _extent(groups, WIDTH - MARGIN - left), label)
    return page.figure


def _draw_bar(axes: Axes, theme: Theme, model: str, bar: Bar, middle: float, thickness: float) -> None:
    start = 0.0
    for shade, part in enumerate(bar.parts):
        # Above the boxes around text.
        axes.barh(middle, part, thickness, left=start, color=theme.color(model, shade), linewidth=0, zorder=4)
        start += part
    if bar.label:
        draw_text(axes, start, middle, bar.label, theme.ink)


def _extent(groups: Sequence[Group], width: float) -> float:
    """Return the value at the right edge: every bar fits, and so does the text at its end."""
    needed = [_NOTHING]
    for group in groups:
        for length, text in [(group.length, group.note), *((bar.length, bar.label) for bar in group.bars)]:
            text_space = text_width(text) + 2 * GAP if text else 2.0
            needed.append(length * width / (width - text_space))
    most = max(needed)
    return most if most > _NOTHING else 1.0
