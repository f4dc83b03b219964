"""What may be said of the times of two models, in words and as a table of pairs.

A difference is claimed only where an interval over pairs of processes excludes zero. Otherwise ratios are listed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from converter.measurement.evidence.names import MODELS
from converter.measurement.evidence.pairs import TimedPair
from converter.measurement.evidence.statistics import FEWEST_PAIRS
from converter.measurement.evidence.time_comparison import PromptRatio, TimeComparison
from converter.presentation.tables.figures import counted, number
from converter.presentation.tables.table import NOTHING, Figure, Table

#: The title of a column of ratios.
RATIO = "Quantized / original"


@dataclass(frozen=True)
class TimeWords:
    """What may be said of times; all texts are whole sentences, or empty."""

    finding: Figure
    disturbance: Figure
    """How many pairs were measured once more, and how many stayed disturbed."""
    costs_time: bool
    """Whether the quantized model takes more time, as far as can be told."""


def describe_times(found: TimeComparison, image: str = "an image") -> TimeWords:
    """Return what may be said of a comparison of times.

    Args:
        found: the comparison.
        image: what took the time, with its article.
    """
    interval = found.slowdown["percent_interval"] if found.slowdown else (0, 0)
    return TimeWords(Figure(_finding(found, image)), Figure(_disturbance(found)), costs_time=min(interval) > 0)


def pairs_table(found: TimeComparison) -> Table | None:
    """Return a row for each pair of processes and each attempt; None where there are none."""
    if not found.pairs:
        return None
    rows = [
        [
            Figure(f"{pair.pair + 1}{', once more' * (pair.attempt > 0)}"),
            Figure(pair.first),
            number(pair.original_s),
            number(pair.quantized_s),
            NOTHING if pair.log_ratio is None else number(math.exp(pair.log_ratio)),
            "; ".join(_remarks(pair)) or NOTHING,
        ]
        for pair in found.pairs
    ]
    return Table(["Pair", "First", *(f"{model.title()}, s" for model in MODELS), RATIO, "Remarks"], rows, "llrrrl")


def _finding(found: TimeComparison, image: str) -> str:
    subject = f"Time of {image}, quantized / original"
    if found.over_prompts is not None:
        return f"{subject}: {_over_prompts(found.over_prompts)}"
    over = f"over {counted(len(found.used), 'pair')} of processes and {counted(len(found.prompts), 'prompt')}"
    if found.slowdown is not None:
        return _claim(found.slowdown["percent_interval"], f"95% interval {over}", image)
    if not found.used:
        return ""
    too_few = f"Fewer than {FEWEST_PAIRS} pairs are too few for a comparison."
    return f"{subject}: {', '.join(map(number, found.ratios))}, {over}. {too_few}"


def _over_prompts(found: PromptRatio) -> str:
    runs = "one run" if found.runs == 1 else f"{found.runs} runs"
    said = f"{number(found.ratio)}, over {counted(found.prompts, 'prompt')} of {runs} of each model"
    if found.interval is None:
        return f"{said}. No interval was measured."
    ends = " to ".join(map(number, found.interval))
    return f"{said}. The interval over these prompts is {ends}; differences between runs are not in it."


def _claim(interval: tuple[float, float], over: str, image: str) -> str:
    # An interval of less than a percent needs more digits.
    digits = 1 if max(map(abs, interval)) >= 1 else 3
    least, most = interval
    if least <= 0 <= most:
        ends = f"{least:+.{digits}f}% to {most:+.{digits}f}%"
        return f"No difference in time was found at this precision: {ends} for {image} ({over})."
    nearer, farther = sorted(map(abs, interval))
    amount = f"between {nearer:.{digits}f} and {farther:.{digits}f}% {'more' if least > 0 else 'less'} time"
    return f"With the quantized model, {image} takes {amount} than with the original ({over})."


def _disturbance(found: TimeComparison) -> str:
    again, disturbed = found.measured_again, found.disturbed
    said = []
    if again:
        said.append(f"{counted(again, 'pair')} {'was' if again == 1 else 'were'} measured once more")
    if disturbed:
        be = "stayed" if again else "was" if disturbed == 1 else "were"
        said.append(f"{disturbed} of {counted(len(found.used), 'pair')} {be} disturbed")
    return f"{'; '.join(said)}." if said else ""


def _remarks(pair: TimedPair) -> Iterator[str]:
    if not pair.used:
        yield "not counted"
    if pair.interrupted:
        yield "interrupted"
    for model in MODELS:
        if pair.disturbed[model]:
            yield f"{model}: {', '.join(pair.disturbed[model])}"
