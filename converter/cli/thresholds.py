"""The option ``--fail-over`` of ``compare`` and ``bench``, and what they say about it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from converter.console import verdict
from converter.errors import printable
from converter.measurement.evidence.thresholds import METRICS, Threshold, Verdict, parse_threshold

if TYPE_CHECKING:
    from rich.console import RenderableType


def threshold_option(metrics: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add the option.

    Args:
        metrics: what the help says about the metrics.
    """
    return click.option(
        "--fail-over",
        "thresholds",
        metavar="METRIC=VALUE",
        multiple=True,
        callback=_parse,
        help=f"Exit with 1 if a figure is worse than VALUE, and with 3 if it was not measured. Metrics: {metrics}. "
        "Repeatable.",
    )


def payload(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Return what ``--json`` adds; nothing if no threshold was given."""
    return {"thresholds": [found.to_dict() for found in verdicts]} if verdicts else {}


def render_verdicts(verdicts: Sequence[Verdict], model: str = "") -> list[RenderableType]:
    """Return a line for each threshold.

    Args:
        verdicts: what was found.
        model: name of the model that they are about, for the lines of several; empty if there is one.
    """
    return [verdict(f"{model}: {_line(found)}" if model else _line(found), ok=found.ok) for found in verdicts]


def _parse(_context: click.Context, _parameter: click.Parameter, texts: Sequence[str]) -> tuple[Threshold, ...]:
    thresholds = tuple(parse_threshold(text) for text in texts)
    names = [threshold.metric for threshold in thresholds]
    for name in names:
        if names.count(name) > 1:
            raise click.BadParameter(f"{name} is given twice")
    return thresholds


def _line(found: Verdict) -> str:
    metric = METRICS[found.metric]
    figure, limit = "infinite" if found.ok else "not measured", f"{found.value:g}"
    if found.measured is not None:
        figure, limit = _distinct(found.measured, found.value)
        figure += metric.unit
    allowed = f"{'at least' if metric.is_similarity else 'at most'} {limit}{metric.unit} allowed"
    return f"{metric.title}: {figure}, {allowed}" + (f" ({printable(found.reason)})" if found.reason else "")


def _distinct(measured: float, value: float) -> tuple[str, str]:
    """Both with six digits, or with as many as tell them apart."""
    short = f"{measured:g}", f"{value:g}"
    return short if measured == value or len({*short}) == 2 else (f"{measured!r}", f"{value!r}")
