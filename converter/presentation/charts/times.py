"""The chart of times: how long each prompt takes."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from converter.measurement.evidence.names import MATRIX_NAME, MODEL_TITLES, MODELS, STANDARD
from converter.measurement.evidence.time_comparison import compare_matrix
from converter.presentation.charts.bars import COMPACT, LABELLED, Bar, Group, draw_groups
from converter.presentation.charts.chart import MOST_SECONDS, Chart, Evidence, LeftOut, check_drawable
from converter.presentation.charts.figures import describe_rows, exact_number, short_number
from converter.presentation.charts.page import Heading, Key, Page, draw_text, round_steps
from converter.presentation.charts.style import GAP, MARGIN, WIDTH, Theme
from converter.presentation.charts.text import shorten, text_width
from converter.presentation.tables.figures import counted
from converter.presentation.tables.times import describe_times

NAME = "time"
TITLE = "Time per prompt"
AXIS = "Time (s)"
#: Prompts that get bars of their own; for more, the chart shows a distribution.
MOST_BARS = 30
#: Prompts whose bars carry their figures, in the chart and in its description.
MOST_LABELS = 5
MOST_DESCRIBED = 12
#: Pixels of one model's distribution, and between both.
_PANEL = 190
_PANEL_GAP = 30
_BINS = 20
_MODE_WIDTH = 400
#: Shortest time, in seconds, that gives a ratio: files have three digits.
_NO_TIME = 0.001


@dataclass(frozen=True)
class _Model:
    """Times of one model."""

    name: str
    times: Sequence[float | None]
    """Seconds of each prompt; None where the measurement failed."""

    @property
    def measured(self) -> list[float]:
        """Times of the prompts that did not fail."""
        return [time for time in self.times if time is not None]

    @property
    def failed(self) -> int:
        """Number of measurements that failed."""
        return self.times.count(None)

    @property
    def mean(self) -> float | None:
        """Mean of what was measured."""
        return statistics.fmean(self.measured) if self.measured else None


def time_chart(evidence: Evidence) -> Chart | LeftOut:
    """Return the times of both models, prompt by prompt.

    Args:
        evidence: contents by file name.

    Raises:
        EvidenceError: a time is larger than anything that can be measured.
    """
    matrix = evidence.get(MATRIX_NAME)
    if matrix is None:
        return LeftOut(NAME, f"{MATRIX_NAME} is missing")
    # An image that was not generated alone has no time.
    timed = [row for row in matrix["prompts"] if all({"time_s", "failed"} & row[name].keys() for name in MODELS)]
    rows = {row["id"]: [row[name].get("time_s") for name in MODELS] for row in timed}
    models = [_Model(name, [times[index] for times in rows.values()]) for index, name in enumerate(MODELS)]
    measured = [time for model in models for time in model.measured]
    if not measured:
        return LeftOut(NAME, f"every measurement in {MATRIX_NAME} failed")
    check_drawable(MATRIX_NAME, "time_s", measured, MOST_SECONDS)
    summary = _summarise(matrix)
    heading = Heading(TITLE, summary, tuple(map(_key, MODEL_TITLES, models)))
    description = f"{TITLE}: {'; '.join(map(_describe, models))}. {summary}"
    if len(rows) <= MOST_DESCRIBED:
        description += f" {describe_rows({name: map(_shown, times) for name, times in rows.items()})}"
    if len(rows) > MOST_BARS:
        return Chart(NAME, description, partial(_draw_distributions, heading=heading, models=models))
    labelled = len(rows) <= MOST_LABELS
    draw = partial(
        draw_groups,
        heading=heading,
        groups=[_group(name, times, labelled=labelled) for name, times in rows.items()],
        label=AXIS,
        rows=LABELLED if labelled else COMPACT,
        lines=[model.mean if len(rows) > 1 else None for model in models],
    )
    return Chart(NAME, description, draw)


def _shown(time: float | None) -> str:
    return "failed" if time is None else f"{exact_number(time)} s"


def _group(name: str, times: Sequence[float | None], *, labelled: bool) -> Group:
    """Return the bars of a prompt; where they have no labels, a note says which failed."""
    if labelled:
        return Group(name, [Bar((), "failed") if time is None else Bar((time,), short_number(time)) for time in times])
    failed = [model for model, time in zip(MODELS, times, strict=True) if time is None]
    note = "both failed" if len(failed) == len(MODELS) else f"{failed[0]} failed" if failed else ""
    return Group(name, [Bar(() if time is None else (time,)) for time in times], note)


def _draw_distributions(theme: Theme, heading: Heading, models: Sequence[_Model]) -> Figure:
    """Draw how many prompts took how long, one model above the other on the same scale."""
    page = Page(theme, heading, 2 * _PANEL + _PANEL_GAP)
    times = [time for model in models for time in model.measured]
    least, most = min(times), max(times)
    if most - least < max(_NO_TIME, most / 1000):
        # Almost equal; bins between them would have numbers of many digits.
        least, most = least * 0.95, most * 1.05 + _NO_TIME
    edges = round_steps(least, most, _BINS)
    counts = [np.histogram(model.measured, edges)[0] for model in models]
    highest = int(np.max(counts))
    highest_text = counted(highest, "prompt")
    left = MARGIN + text_width(highest_text) + GAP
    for index, model in enumerate(models):
        top = page.plot_top + index * (_PANEL + _PANEL_GAP)
        axes = page.add_axes(left, WIDTH - MARGIN, top, _PANEL)
        axes.set_ylim(0, highest * 1.02)
        color = theme.color(model.name)
        axes.bar(edges[:-1], counts[index], np.diff(edges) * 0.94, align="edge", color=color, linewidth=0)
        axes.axhline(0, color=theme.muted, linewidth=2)
        if model.mean is not None:
            axes.axvline(model.mean, color=theme.background, linewidth=6)
            axes.axvline(model.mean, color=theme.ink, linewidth=3)
        # Zero is written a little higher, clear of a number below the axis.
        for height, text in ((highest * GAP / _PANEL, "0"), (highest, highest_text)):
            draw_text(axes, edges[0], height, text, theme.muted, shift=-GAP, align="right")
        page.scale(axes, edges[0], edges[-1], AXIS, numbered=index == 1)
    return page.figure


def _key(title: str, model: _Model) -> Key:
    text = title if model.mean is None else f"{title}, mean {short_number(model.mean)} s"
    if model.failed:
        text += f", {model.failed} of {len(model.times)} failed"
    return Key(text, model.name)


def _describe(model: _Model) -> str:
    values = model.measured
    text = f"{model.name} not measured" if model.mean is None else f"{model.name} mean {exact_number(model.mean)} s"
    if len(values) > 1:
        text += f" ({exact_number(min(values))} to {exact_number(max(values))} s)"
    return f"{text}, {model.failed} failed" if model.failed else text


def _summarise(matrix: Mapping[str, Any]) -> str:
    mode = matrix.get("mode", STANDARD)
    suffix = "" if mode == STANDARD else f" Mode: {shorten(mode, _MODE_WIDTH)}."
    words = describe_times(compare_matrix(matrix))
    # Other charts have a space in front of the sign, too.
    finding = " ".join(text.replace("%", " %") for text in (words.finding, words.disturbance) if text)
    return f"{finding or 'The times of both models were not compared.'}{suffix}"
