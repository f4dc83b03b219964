"""The page of every chart: title, summary in words, key, plot, axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import IdentityTransform

from converter.presentation.charts.style import GAP, LINE, MARGIN, TEXT_SIZE, TITLE_SIZE, WIDTH, Theme
from converter.presentation.charts.text import font, text_width, wrap

#: Side of the square in front of an entry of the key.
_SQUARE = 18
#: Between two entries of the key.
_KEY_GAP = 28
#: Below a plot, for the numbers at its ticks and what they count.
_AXIS_HEIGHT = 2 * LINE
_PLOT_GAP = 18


@dataclass(frozen=True)
class Key:
    """What a color means."""

    text: str
    model: str
    """``original`` or ``quantized``."""
    shade: int = 0


@dataclass(frozen=True)
class Heading:
    """The text above a plot."""

    title: str
    text: str
    keys: tuple[Key, ...] = ()


class Page:
    """A figure with its heading, and space for a plot below it.

    Args:
        theme: its colors.
        heading: the text above the plot.
        plot_height: pixels of the plot, without its axis.
    """

    def __init__(self, theme: Theme, heading: Heading, plot_height: float) -> None:
        self.theme = theme
        inner = WIDTH - 2 * MARGIN
        titles = wrap(heading.title, inner, TITLE_SIZE, bold=True)
        lines = wrap(heading.text.replace(" %", "\N{NO-BREAK SPACE}%"), inner)
        rows = _key_rows(heading.keys, inner)
        key_top = MARGIN + len(titles) * (LINE + 6) + len(lines) * LINE + (GAP if rows else 0)
        self.plot_top = key_top + len(rows) * LINE + _PLOT_GAP
        """Pixels from the top of the page to the plot."""
        self.plot_height = plot_height
        self.height = math.ceil(self.plot_top + plot_height + _AXIS_HEIGHT + MARGIN)
        # At 72 dots an inch a point is a pixel.
        self.figure = Figure(figsize=(WIDTH / 72, self.height / 72), dpi=72, facecolor=theme.background)
        top = float(MARGIN)
        for line in titles:
            top += LINE + 6
            self.write(MARGIN, top - 14, line, size=TITLE_SIZE, bold=True)
        for line in lines:
            top += LINE
            self.write(MARGIN, top - 8, line, color=theme.muted)
        for number, row in enumerate(rows):
            self._draw_keys(row, key_top + number * LINE)

    def write(
        self,
        left: float,
        baseline: float,
        text: str,
        *,
        size: float = TEXT_SIZE,
        bold: bool = False,
        color: str = "",
        align: str = "left",
    ) -> None:
        """Write a line; its position is in pixels from the left and from the top of the page."""
        self.figure.text(
            left / WIDTH,
            1 - baseline / self.height,
            text,
            fontproperties=font(size, bold=bold),
            color=color or self.theme.ink,
            horizontalalignment=align,
            verticalalignment="baseline",
            parse_math=False,
        )

    def add_axes(self, left: float, right: float, top: float, height: float) -> Axes:
        """Return axes without lines and numbers.

        Args:
            left: pixels from the left of the page to their left edge.
            right: pixels from the left of the page to their right edge.
            top: pixels from the top of the page.
            height: in pixels.
        """
        axes = self.figure.add_axes(
            (left / WIDTH, 1 - (top + height) / self.height, (right - left) / WIDTH, height / self.height)
        )
        axes.set_facecolor(self.theme.background)
        axes.set_axisbelow(True)
        axes.tick_params(length=0, pad=GAP)
        axes.spines[:].set_visible(False)
        axes.set(xticks=[], yticks=[])
        return axes

    def scale(
        self, axes: Axes, least: float, most: float, label: str, *, numbered: bool = True, whole: bool = False
    ) -> None:
        """Give axes a horizontal scale with a few round numbers, and write below the plot what they count.

        Args:
            axes: made by ``add_axes``.
            least: value at their left edge.
            most: value at their right edge.
            label: the quantity on the scale, with its unit.
            numbered: whether the numbers are shown; the grid is, in any case.
            whole: whether there is nothing between whole numbers.
        """
        axes.set_xlim(least, most)
        width = float(axes.bbox.width)
        names = _numbers(least, most, width)
        if whole:
            names = {tick: name for tick, name in names.items() if tick.is_integer()}
        available = WIDTH - axes.bbox.x0
        for tick, name in names.items():
            # A number under the right edge could reach beyond the page.
            if not numbered or (tick - least) / (most - least) * width + text_width(name) / 2 > available:
                names[tick] = ""
        axes.set_xticks(list(names), list(names.values()))
        for text in axes.get_xticklabels():
            text.set(fontproperties=font(), color=self.theme.muted)
        axes.grid(axis="x", color=self.theme.grid, linewidth=1.5)
        if numbered:
            self.write(WIDTH - MARGIN, self.height - MARGIN - 6, label, color=self.theme.muted, align="right")

    def _draw_keys(self, row: Sequence[Key], top: float) -> None:
        left = float(MARGIN)
        for key in row:
            corner = left, self.height - top - LINE / 2 - _SQUARE / 2 + 1
            color = self.theme.color(key.model, key.shade)
            square = Rectangle(corner, _SQUARE, _SQUARE, facecolor=color, transform=IdentityTransform(), linewidth=0)
            self.figure.add_artist(square)
            self.write(left + _SQUARE + GAP, top + LINE - 8, key.text)
            left += _key_width(key) + _KEY_GAP


def _numbers(least: float, most: float, width: float) -> dict[float, str]:
    """Return round numbers with their texts for a scale ``width`` pixels wide, as many as fit side by side."""
    slack = 1e-9 * (most - least)
    for bins in range(5, 0, -1):
        ticks = [tick for tick in round_steps(least, most, bins) if least - slack <= tick <= most + slack]
        names = {tick: f"{tick:.10g}" for tick in ticks}
        if sum(text_width(name) + 3 * GAP for name in names.values()) <= width:
            break
    return names


def round_steps(least: float, most: float, bins: int = 5) -> list[float]:
    """Return round numbers in equal steps, from at or below the least to at or above the most."""
    return list(map(float, MaxNLocator(nbins=bins, steps=[1, 2, 5, 10]).tick_values(least, most)))


def draw_text(
    axes: Axes, x: float, y: float, text: str, color: str, *, shift: float = GAP, align: str = "left"
) -> None:
    """Write a line into a plot, next to a point of its scales.

    Args:
        axes: the plot.
        x: of the point.
        y: of the point, and of the middle of the line.
        text: the line, which is written as it is.
        color: of the text.
        shift: pixels from the point to the end of the line, to the right.
        align: which end of the line is there.
    """
    axes.annotate(
        text,
        (x, y),
        xytext=(shift, 0),
        textcoords="offset points",
        fontproperties=font(),
        color=color,
        horizontalalignment=align,
        verticalalignment="center_baseline",
        parse_math=False,
        annotation_clip=False,
        # Lines end before it, and do not go through it.
        bbox={"facecolor": axes.get_facecolor(), "linewidth": 0, "pad": 1},
    )


def _key_width(key: Key) -> float:
    return _SQUARE + GAP + text_width(key.text)


def _key_rows(keys: Sequence[Key], width: float) -> list[list[Key]]:
    """Split the entries of a key into rows that fit; if they need several, each model begins a new row."""
    total = sum(_key_width(key) + _KEY_GAP for key in keys) - _KEY_GAP
    if total <= width:
        return [list(keys)] if keys else []
    rows: list[list[Key]] = []
    used = 0.0
    for key in keys:
        if not rows or used + _key_width(key) > width or rows[-1][-1].model != key.model:
            rows.append([])
            used = 0.0
        rows[-1].append(key)
        used += _key_width(key) + _KEY_GAP
    return rows
