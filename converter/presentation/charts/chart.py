"""Charts before they are drawn, and the limits of their figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from converter.errors import EvidenceError
from converter.presentation.charts.style import Theme

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Contents of files of measurements by file name.
Evidence = Mapping[str, Mapping[str, Any]]
#: Most rows of one chart; more would be hard to read.
MOST_ROWS = 14
#: Upper limits of sizes, times, ratios, numbers of modules and errors. No measurement exceeds them, and nothing larger
#: fits on an axis.
MOST_BYTES = 1e18
MOST_SECONDS = 1e9
MOST_DECIBELS = 1e4
MOST_MODULES = 1e9
MOST_ERROR = 1e6


@dataclass(frozen=True)
class Chart:
    """One chart, ready to be drawn."""

    name: str
    description: str
    """The chart in words, with its figures."""
    draw: Callable[[Theme], Figure]


@dataclass(frozen=True)
class LeftOut:
    """A chart for which the measurements are missing."""

    name: str
    reason: str


def check_drawable(file: str, what: str, values: Sequence[float], most: float) -> None:
    """Refuse figures that cannot come from a measurement.

    Args:
        file: the file that contains them.
        what: the name of the figures.
        values: the figures.
        most: the largest absolute value that is accepted.

    Raises:
        EvidenceError: a figure is larger.
    """
    if any(abs(value) > most for value in values):
        raise EvidenceError(file, f"{what} is larger than anything that can be measured")
