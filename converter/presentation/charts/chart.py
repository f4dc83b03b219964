"""What every chart is made of, and figures as it states them."""

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
MODELS = ("original", "quantized")
#: Rows of one chart; more than that is no overview.
MOST_ROWS = 14
#: Above these no size, time, ratio or number of modules was measured, and none could be drawn.
MOST_BYTES = 1e18
MOST_SECONDS = 1e9
MOST_DECIBELS = 1e4
MOST_MODULES = 1e9
#: Bytes by unit.
_UNITS = {"GB": 10**9, "MB": 10**6, "kB": 10**3}


@dataclass(frozen=True)
class Chart:
    """One chart, ready to be drawn."""

    name: str
    description: str
    """Says the same in words, with its figures."""
    draw: Callable[[Theme], Figure]


@dataclass(frozen=True)
class LeftOut:
    """A chart that the evidence does not suffice for."""

    name: str
    reason: str


@dataclass(frozen=True)
class Unit:
    """What bytes are shown in."""

    name: str
    bytes: int

    def of(self, size: float) -> float:
        """Bytes in this unit."""
        return size / self.bytes

    def show(self, size: float) -> str:
        """Bytes as a short number, without the unit."""
        return short_number(self.of(size)) if not 0 < self.of(size) < 0.01 else "<0.01"


def choose_unit(largest: float) -> Unit:
    """GB of 10^9 bytes, or a smaller unit where the largest size is not one."""
    return next((Unit(name, size) for name, size in _UNITS.items() if largest >= size), Unit("kB", 10**3))


def exact_size(size: float) -> str:
    """Bytes in the unit that suits them, with up to three digits behind the point."""
    unit = choose_unit(size)
    return f"{exact_number(unit.of(size))} {unit.name}"


def short_number(value: float) -> str:
    """Three digits, and no more than two behind the point."""
    return f"{value:.{0 if abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2}f}"


def exact_number(value: float) -> str:
    """As files have it: up to three digits behind the point."""
    return f"{value:.3f}".rstrip("0").rstrip(".")


def signed_percent(value: float) -> str:
    """With its sign, so that more and less are told apart."""
    return f"{value:+.1f} %"


def count(number: int, noun: str) -> str:
    """A number of things."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def check_drawable(file: str, what: str, values: Sequence[float], most: float) -> None:
    """Refuse figures that nothing measured.

    Args:
        file: where they stand.
        what: they are.
        values: to look at.
        most: that a figure may be, whatever its sign.

    Raises:
        EvidenceError: one is beyond everything that exists.
    """
    if any(abs(value) > most for value in values):
        raise EvidenceError(file, f"{what} is beyond everything that exists")
