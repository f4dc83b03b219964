"""The chart of an ablation: how many bytes each variant takes, and how large its error is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from converter.measurement.evidence.names import ABLATION_NAME, QUANTIZED
from converter.presentation.charts.chart import MOST_BYTES, MOST_ERROR, Chart, Evidence, LeftOut, check_drawable
from converter.presentation.charts.figures import Unit, choose_unit, exact_size, short_name
from converter.presentation.charts.labels import Box, Label, Point, place_labels
from converter.presentation.charts.page import Heading, Page, draw_text
from converter.presentation.charts.style import GAP, LINE, MARGIN, WIDTH, Theme
from converter.presentation.charts.text import shorten, text_width
from converter.presentation.tables.ablation_variants import ComparedVariant, compare_variants, has_velocity
from converter.presentation.tables.figures import counted

NAME = "ablation"
_TITLE = "Ablation: bytes against {}"
_ERRORS = {True: "velocity error", False: "error of the weights"}
#: Pixels of the plot, and of it those above the largest error, for names, and below the least.
_HEIGHT, _ABOVE, _BELOW = 600, 100, 16
#: Pixels that a name may take.
_NAME_WIDTH = 300
#: Most variants that the description names, of the front and of the others.
_MOST_DESCRIBED = 24
#: Numbers of the scale of errors, times powers of ten.
_STEPS = (1, 2, 5)
#: The largest error over the least, at least, so that the scale has numbers.
_LEAST_RATIO = 5.0
#: Widths of marks.
_DOT, _RING, _DIAMOND = 15, 13, 19


@dataclass(frozen=True)
class _Scale:
    """A logarithmic scale of errors; an error of zero is at its lower end."""

    least: float
    most: float
    has_zero: bool

    @classmethod
    def of(cls, errors: Sequence[float]) -> _Scale:
        """Return a scale on which all these errors are."""
        positive = [error for error in errors if error > 0] or [1.0]
        middle, ratio = math.sqrt(min(positive) * max(positive)), max(positive) / min(positive)
        half = math.sqrt(max(ratio, _LEAST_RATIO))
        has_zero = min(errors) == 0
        return cls(middle / half / (2 if has_zero else 1), middle * half, has_zero)

    def place(self, error: float) -> float:
        """Return pixels from the top of the plot."""
        share = math.log(self.most / max(error, self.least)) / math.log(self.most / self.least)
        return _ABOVE + share * (_HEIGHT - _ABOVE - _BELOW)

    @property
    def numbers(self) -> dict[float, str]:
        """Numbers beside the plot, by their values."""
        exponents = range(math.floor(math.log10(self.least)), math.ceil(math.log10(self.most)) + 1)
        # A larger power than ten would leave too many.
        steps = _STEPS if self.most / self.least < 1000 else (1,)
        found = [step * 10.0**exponent for exponent in exponents for step in steps]
        least = self.least * (1.4 if self.has_zero else 1)
        shown = {value: f"{value:.4g}" for value in found if least <= value <= self.most}
        return {self.least: "0", **shown} if self.has_zero else shown


def ablation_chart(evidence: Evidence) -> Chart | LeftOut:
    """Return bytes and errors of all variants, with the Pareto front.

    Args:
        evidence: contents by file name.

    Raises:
        EvidenceError: a figure is larger than anything that can be measured.
    """
    content = evidence.get(ABLATION_NAME)
    if content is None:
        return LeftOut(NAME, f"{ABLATION_NAME} is missing")
    variants = [variant for variant in compare_variants(content) if variant.error is not None]
    if not variants:
        return LeftOut(NAME, f"{ABLATION_NAME} has no variant with a finite error")
    check_drawable(ABLATION_NAME, "bytes", [variant.bytes for variant in variants], MOST_BYTES)
    check_drawable(ABLATION_NAME, "error", [_error(variant) for variant in variants], MOST_ERROR)
    error = _ERRORS[has_velocity(content)]
    return Chart(NAME, _describe(content, variants, error), partial(_draw, variants, error))


def _error(variant: ComparedVariant) -> float:
    return 0.0 if variant.error is None else variant.error


def _draw(variants: Sequence[ComparedVariant], error: str, theme: Theme) -> Figure:
    page = Page(theme, Heading(_TITLE.format(error), _explain(variants)), _HEIGHT + LINE)
    unit = choose_unit(max(variant.bytes for variant in variants))
    scale = _Scale.of([_error(variant) for variant in variants])
    left = MARGIN + max(map(text_width, scale.numbers.values())) + 2 * GAP
    top = page.plot_top + LINE
    page.write(MARGIN, top - 2 * GAP, f"{error.capitalize()}, relative", color=theme.muted)
    axes = page.add_axes(left, WIDTH - MARGIN, top, _HEIGHT)
    axes.set_ylim(_HEIGHT, 0)
    least, most = _range([unit.of(variant.bytes) for variant in variants])
    page.scale(axes, least, most, f"Stored bytes ({unit.name})")
    for value, name in scale.numbers.items():
        axes.axhline(scale.place(value), color=theme.grid, linewidth=1.5, zorder=1)
        draw_text(axes, least, scale.place(value), name, theme.muted, shift=-GAP, align="right")
    width = WIDTH - MARGIN - left
    places = [
        ((unit.of(variant.bytes) - least) / (most - least) * width, scale.place(_error(variant)))
        for variant in variants
    ]
    _draw_marks(axes, theme, variants, [(least + x / width * (most - least), y) for x, y in places])
    for label in _labels(variants, places, width):
        _draw_label(axes, theme, label, least, (most - least) / width)
    return page.figure


def _range(sizes: Sequence[float]) -> tuple[float, float]:
    """Return the ends of the scale of bytes, with some space around the first and the last point."""
    extent = max(sizes) - min(sizes) or max(sizes)
    return max(min(sizes) - 0.06 * extent, 0.0), max(sizes) + 0.06 * extent


def _draw_marks(
    axes: Axes, theme: Theme, variants: Sequence[ComparedVariant], places: Sequence[tuple[float, float]]
) -> None:
    color = theme.color(QUANTIZED)
    front = sorted({place for variant, place in zip(variants, places, strict=True) if variant.is_on_front})
    axes.plot([x for x, _ in front], [y for _, y in front], color=color, linewidth=3, zorder=2)
    for variant, (x, y) in zip(variants, places, strict=True):
        if variant.is_recipe:
            axes.plot([x], [y], "D", color=theme.ink, markersize=_DIAMOND, markeredgewidth=0, zorder=5)
        if variant.is_on_front:
            axes.plot([x], [y], "o", color=color, markersize=_DOT - 3 * variant.is_recipe, markeredgewidth=0, zorder=6)
        elif not variant.is_recipe:
            face = theme.background
            axes.plot([x], [y], "o", color=color, markersize=_RING, markerfacecolor=face, markeredgewidth=3, zorder=4)


def _labels(variants: Sequence[ComparedVariant], places: Sequence[tuple[float, float]], width: float) -> list[Label]:
    """Return where names are: of the recipe, of the front, and of others where there is space."""
    points = [
        Point((x, y), shorten(variant.name, _NAME_WIDTH), _DIAMOND * 0.75 if variant.is_recipe else _DOT / 2 + 2,
              is_needed=variant.is_recipe or variant.is_on_front)
        for variant, (x, y) in zip(variants, places, strict=True)
    ]  # fmt: skip
    order = sorted(range(len(points)), key=lambda at: (not variants[at].is_recipe, not points[at].is_needed, at))
    front = sorted(place for variant, place in zip(variants, places, strict=True) if variant.is_on_front)
    return place_labels([points[at] for at in order], Box(GAP / 2, 0, width, _HEIGHT), front)


def _draw_label(axes: Axes, theme: Theme, label: Label, start: float, step: float) -> None:
    """Write a name; ``step`` is the length of a pixel on the horizontal scale, which begins at ``start``."""
    if label.is_far:
        (x, y), (end_x, end_y) = label.line
        axes.plot([start + x * step, start + end_x * step], [y, end_y], color=theme.muted, linewidth=1.5, zorder=2.5)
    color = theme.ink if label.point.is_needed else theme.muted
    draw_text(axes, start + label.box.left * step, label.middle, label.point.name, color, shift=GAP / 2)


def _explain(variants: Sequence[ComparedVariant]) -> str:
    others = any(not (variant.is_on_front or variant.is_recipe) for variant in variants)
    recipe = any(variant.is_recipe for variant in variants)
    text = "Further left and lower is better. Dots and line: the Pareto front."
    return f"{text}{' Rings: other variants.' * others}{' Diamond: the examined recipe.' * recipe}"


def _describe(content: Mapping[str, Any], variants: Sequence[ComparedVariant], error: str) -> str:
    unit = choose_unit(max(variant.bytes for variant in variants))
    front = sorted((found for found in variants if found.is_on_front), key=lambda found: found.bytes)
    others = sorted((found for found in variants if not found.is_on_front), key=lambda found: found.bytes)
    parts = [f"{_TITLE.format(error)}, {counted(len(content['variants']), 'variant')}."]
    for title, found in (("Pareto front", front), ("Others", others)):
        shown = "; ".join(_words(variant, unit) for variant in found[:_MOST_DESCRIBED])
        more = f"; {len(found) - _MOST_DESCRIBED} more" if len(found) > _MOST_DESCRIBED else ""
        parts += [f"{title}: {shown}{more}."] if found else []
    return " ".join(parts)


def _words(variant: ComparedVariant, unit: Unit) -> str:
    recipe = " (the examined recipe)" if variant.is_recipe else ""
    return f"{short_name(variant.name)}{recipe} {exact_size(variant.bytes, unit)}, {_error(variant):.3g}"
