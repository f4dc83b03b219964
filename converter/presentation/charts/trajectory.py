"""The chart of the trajectory: how much quantization changes in each step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

from converter.measurement.evidence.names import IMAGES_NAME, QUANTIZED
from converter.presentation.charts.chart import MOST_ERROR, MOST_ROWS, Chart, Evidence, LeftOut, check_drawable
from converter.presentation.charts.figures import short_name
from converter.presentation.charts.page import Heading, Key, Page, draw_text, round_steps
from converter.presentation.charts.style import GAP, MARGIN, WIDTH, Theme
from converter.presentation.charts.text import text_width
from converter.presentation.tables.figures import counted

NAME = "trajectory"
TITLE = "Error of each step"
AXIS = "Step"
_HEIGHT = 320
_TICKS = 4
#: Steps that the description names.
_MOST_DESCRIBED = 12
#: Shades of the mean and of a single prompt.
_MEAN, _PROMPT = 0, 2


@dataclass(frozen=True)
class _Errors:
    """Relative errors of the velocity."""

    prompts: Mapping[str, Sequence[float]]
    """Of each step, by prompt."""

    @property
    def mean(self) -> list[float]:
        """Of each step, over the prompts that have it."""
        columns = zip_longest(*self.prompts.values())
        return [fmean(value for value in column if value is not None) for column in columns]

    @property
    def every(self) -> list[float]:
        """All errors."""
        return [error for errors in self.prompts.values() for error in errors]


def trajectory_chart(evidence: Evidence) -> Chart | LeftOut:
    """Return the velocity error of each step, of each prompt and on average.

    Args:
        evidence: contents by file name.

    Raises:
        EvidenceError: an error is larger than anything that can be measured.
    """
    content = evidence.get(IMAGES_NAME)
    if content is None:
        return LeftOut(NAME, f"{IMAGES_NAME} is missing")
    if "trajectory" not in content:
        return LeftOut(NAME, f"{IMAGES_NAME} has no trajectory")
    errors = _Errors({prompt["id"]: _steps(prompt) for prompt in content["trajectory"]["prompts"]})
    check_drawable(IMAGES_NAME, "error", errors.every, MOST_ERROR)
    return Chart(NAME, _describe(errors), partial(_draw, errors))


def _steps(prompt: Mapping[str, Any]) -> list[float]:
    return [step["error"] for step in prompt["steps"]]


def _draw(errors: _Errors, theme: Theme) -> Figure:
    mean = errors.mean
    shows_prompts = 1 < len(errors.prompts) <= MOST_ROWS
    keys = [Key(f"Mean of {counted(len(errors.prompts), 'prompt')}", QUANTIZED, _MEAN)]
    keys += [Key("Each prompt", QUANTIZED, _PROMPT)] if shows_prompts else []
    heading = Heading(TITLE, _explain(errors), tuple(keys))
    page = Page(theme, heading, _HEIGHT)
    ticks = round_steps(0.0, max(errors.every if shows_prompts else mean) or 1.0, _TICKS)
    names = {tick: f"{tick:.10g}" for tick in ticks}
    left = MARGIN + max(map(text_width, names.values())) + 2 * GAP
    axes = page.add_axes(left, WIDTH - 2 * MARGIN, page.plot_top, _HEIGHT)
    axes.set_ylim(0, ticks[-1] * (1 + GAP / _HEIGHT))
    least, most = (1.0, float(len(mean))) if len(mean) > 1 else (0.5, 1.5)
    page.scale(axes, least, most, AXIS, whole=True)
    for tick, name in names.items():
        axes.axhline(tick, color=theme.grid, linewidth=1.5, zorder=1)
        draw_text(axes, least, tick, name, theme.muted, shift=-GAP, align="right")
    for steps in errors.prompts.values() if shows_prompts else ():
        _draw_line(axes, steps, theme.color(QUANTIZED, _PROMPT), 2)
    _draw_line(axes, mean, theme.color(QUANTIZED, _MEAN), 6)
    return page.figure


def _draw_line(axes: Any, steps: Sequence[float], color: str, width: float) -> None:
    # A single step is a point.
    marker = "None" if len(steps) > 1 else "o"
    numbers = range(1, len(steps) + 1)
    axes.plot(numbers, steps, color=color, linewidth=width, marker=marker, markersize=3 * width, clip_on=False)


def _explain(errors: _Errors) -> str:
    if not any(errors.every):
        return "The velocity is equal to the original's in every step."
    return (
        f"Relative error of the velocity, both models at the original's latents: mean {_number(fmean(errors.every))}, "
        f"at most {_number(max(errors.every))}. Errors of earlier steps do not count."
    )


def _describe(errors: _Errors) -> str:
    mean = errors.mean
    every = -(-len(mean) // _MOST_DESCRIBED)
    steps = sorted({*range(0, len(mean), every), len(mean) - 1})
    listed = ", ".join(f"step {step + 1} {_number(mean[step])}" for step in steps)
    largest = max(errors.prompts, key=lambda name: max(errors.prompts[name]))
    where = f"largest in {short_name(largest)}" if len(errors.prompts) > 1 else short_name(largest)
    return f"{TITLE} ({counted(len(errors.prompts), 'prompt')}, {where}). {_explain(errors)} Mean by step: {listed}."


def _number(value: float) -> str:
    return f"{value:.3g}"
