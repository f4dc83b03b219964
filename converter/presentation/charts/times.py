"""How long each prompt takes."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from matplotlib.figure import Figure

from converter.errors import printable
from converter.measurement.evidence.names import MATRIX_NAME
from converter.measurement.evidence.statistics import slowdown
from converter.presentation.charts.bars import COMPACT, LABELLED, Bar, Group, draw_groups
from converter.presentation.charts.chart import (
    MODELS,
    MOST_SECONDS,
    Chart,
    Evidence,
    LeftOut,
    check_drawable,
    count,
    short_number,
    signed_percent,
)
from converter.presentation.charts.chart import exact_number as exact
from converter.presentation.charts.page import Heading, Key, Page, draw_text, round_steps
from converter.presentation.charts.style import GAP, MARGIN, WIDTH, Theme
from converter.presentation.charts.text import shorten, text_width

NAME = "time"
TITLE = "Time per prompt"
AXIS = "Time (s)"
#: Prompts that get bars of their own; of more a distribution is drawn.
MOST_BARS = 30
#: Prompts whose bars carry their figures, in the chart and in its description.
MOST_LABELS = 5
MOST_DESCRIBED = 12
#: Pixels of one model's distribution, and between both.
_PANEL = 190
_PANEL_GAP = 30
_BINS = 20
_MODE_WIDTH = 400
#: Seconds below which a file, which has three digits, knows no ratio.
_NO_TIME = 0.001


@dataclass(frozen=True)
class _Times:
    """Seconds by prompt; None where the measurement failed."""

    rows: Mapping[str, tuple[float | None, float | None]]
    mode: str

    def measured(self, index: int) -> list[float]:
        """Of one model."""
        return [pair[index] for pair in self.rows.values() if pair[index] is not None]  # type: ignore[misc]

    def failed(self, index: int) -> int:
        """How many measurements of one model failed."""
        return len(self.rows) - len(self.measured(index))

    def mean(self, index: int) -> float | None:
        """Of one model."""
        values = self.measured(index)
        return statistics.fmean(values) if values else None


def time_chart(evidence: Evidence) -> Chart | LeftOut:
    """Times of both models, prompt by prompt.

    Args:
        evidence: contents by file name.

    Raises:
        EvidenceError: a time is beyond everything that exists.
    """
    matrix = evidence.get(MATRIX_NAME)
    if matrix is None:
        return LeftOut(NAME, f"{MATRIX_NAME} is not there")
    rows = {row["id"]: (row["original"].get("time_s"), row["quantized"].get("time_s")) for row in matrix["prompts"]}
    found = _Times(rows, matrix.get("mode", "standard"))
    times = [*found.measured(0), *found.measured(1)]
    if not times:
        return LeftOut(NAME, f"every measurement in {MATRIX_NAME} failed")
    check_drawable(MATRIX_NAME, "time_s", times, MOST_SECONDS)
    draw = _draw_bars if len(rows) <= MOST_BARS else _draw_distributions
    return Chart(NAME, _describe(found), partial(draw, found))


def _draw_bars(found: _Times, theme: Theme) -> Figure:
    labelled = len(found.rows) <= MOST_LABELS
    groups = []
    for name, pair in found.rows.items():
        failed = [model for model, value in zip(MODELS, pair, strict=True) if value is None]
        note = "both failed" if len(failed) == 2 else f"{failed[0]} failed" if failed else ""
        first, second = (_bar(value, labelled) for value in pair)
        groups.append(Group(name, first, second, "" if labelled else note))
    means = [found.mean(index) for index in range(2)]
    return draw_groups(
        theme,
        Heading(TITLE, _summary(found), _keys(found)),
        groups,
        AXIS,
        rows=LABELLED if labelled else COMPACT,
        lines=means if len(groups) > 1 else (),
    )


def _bar(value: float | None, labelled: bool) -> Bar:
    if value is None:
        return Bar((), "failed" if labelled else "")
    return Bar((value,), short_number(value) if labelled else "")


def _draw_distributions(found: _Times, theme: Theme) -> Figure:
    """Draw how many prompts took how long, one model above the other on the same scale."""
    page = Page(theme, Heading(TITLE, _summary(found), _keys(found)), 2 * _PANEL + _PANEL_GAP)
    both = np.asarray([*found.measured(0), *found.measured(1)])
    least, most = float(both.min()), float(both.max())
    if most - least < max(_NO_TIME, most / 1000):
        # Almost equal; bins between them would have numbers of many digits.
        least, most = least * 0.95, most * 1.05 + _NO_TIME
    edges = round_steps(least, most, _BINS)
    counts = [np.histogram(found.measured(index), edges)[0] for index in range(2)]
    highest = int(max(part.max() for part in counts))
    left = MARGIN + text_width(count(highest, "prompt")) + GAP
    for index, model in enumerate(MODELS):
        top = page.plot_top + index * (_PANEL + _PANEL_GAP)
        axes = page.add_axes(left, WIDTH - MARGIN, top, _PANEL)
        axes.set_ylim(0, highest * 1.02)
        axes.bar(edges[:-1], counts[index], np.diff(edges) * 0.94, align="edge", color=theme.color(model), linewidth=0)
        axes.axhline(0, color=theme.muted, linewidth=2)
        mean = found.mean(index)
        if mean is not None:
            axes.axvline(mean, color=theme.background, linewidth=6)
            axes.axvline(mean, color=theme.ink, linewidth=3)
        # Zero stands a little above its place, clear of a number below the axis.
        for place, name in ((highest * GAP / _PANEL, "0"), (highest, count(highest, "prompt"))):
            draw_text(axes, edges[0], place, name, theme.muted, shift=-GAP, align="right")
        page.scale(axes, edges[0], edges[-1], AXIS, numbered=index == 1)
    return page.figure


def _keys(found: _Times) -> tuple[Key, ...]:
    keys = []
    for index, (model, word) in enumerate(zip(MODELS, ("Original", "Quantized"), strict=True)):
        mean = found.mean(index)
        text = f"{word}, mean {short_number(mean)} s" if mean is not None else word
        if found.failed(index):
            text += f", {found.failed(index)} of {len(found.rows)} failed"
        keys.append(Key(text, model))
    return tuple(keys)


def _summary(found: _Times) -> str:
    pairs = [(first, second) for first, second in found.rows.values() if first is not None and second is not None]
    mode = "" if found.mode == "standard" else f" Mode: {shorten(found.mode, _MODE_WIDTH)}."
    if not pairs:
        return f"No prompt was measured with both models.{mode}"
    first, second = ([pair[index] for pair in pairs] for index in range(2))
    if min(first) < _NO_TIME:
        return f"A time of 0 s leaves no slowdown.{mode}"
    result = slowdown(first, second)
    interval = result.ratio_of_means_percent_interval
    limits = f"95 % interval {' to '.join(map(signed_percent, interval))}, " if interval is not None else ""
    slower = signed_percent(result.ratio_of_means_percent)
    return f"Quantized against original: {slower} time ({limits}{count(len(pairs), 'prompt')}).{mode}"


def _describe(found: _Times) -> str:
    sides = []
    for index, model in enumerate(MODELS):
        values = found.measured(index)
        text = f"{model} mean {exact(statistics.fmean(values))} s" if values else f"{model} not measured"
        if len(values) > 1:
            text += f" ({exact(min(values))} to {exact(max(values))} s)"
        if found.failed(index):
            text += f", {found.failed(index)} failed"
        sides.append(text)
    text = f"{TITLE}: {'; '.join(sides)}. {_summary(found)}"
    return f"{text} {_describe_rows(found.rows)}" if len(found.rows) <= MOST_DESCRIBED else text


def _describe_rows(rows: Mapping[str, Sequence[float | None]]) -> str:
    parts = []
    for name, pair in rows.items():
        shown = [
            f"{model} {'failed' if value is None else f'{exact(value)} s'}"
            for model, value in zip(MODELS, pair, strict=True)
        ]
        parts.append(f"{printable(name, 40)}: {', '.join(shown)}")
    return "; ".join(parts) + "."
