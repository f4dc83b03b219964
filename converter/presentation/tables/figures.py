"""Figures as tables show them: seconds and GB with three digits after the point, percents with one."""

from __future__ import annotations

from converter.measurement.evidence.units import GB
from converter.presentation.tables.table import NOTHING, Figure


def decimal(value: float | None, digits: int) -> Figure:
    """Return a figure with this number of digits after the point."""
    return NOTHING if value is None else Figure(f"{value:.{digits}f}")


def number(value: float | None) -> Figure:
    """Return seconds or GB, with three digits after the point."""
    return decimal(value, 3)


def percent(value: float | None) -> Figure:
    """Return a share, with one digit after the point."""
    return NOTHING if value is None else Figure(f"{value:.1f}%")


def signed_percent(value: float | None) -> Figure:
    """Return a change, with its sign."""
    return NOTHING if value is None else Figure(f"{value:+.1f}%")


def count(value: int | None) -> Figure:
    """Return a number of things or bytes, in groups of three digits."""
    return NOTHING if value is None else Figure(f"{value:,}")


def counted(number: int, noun: str) -> str:
    """Return a number of things in words."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def size(value: int | None) -> Figure:
    """Return bytes in GB with three digits, or in a smaller unit where GB would round to almost nothing."""
    if value is None:
        return NOTHING
    for unit, factor, digits in (("GB", GB, 3), ("MB", 10**6, 1), ("kB", 10**3, 1)):
        if value >= factor:
            return Figure(f"{value / factor:.{digits}f} {unit}")
    return Figure(f"{value} B")


def short(value: int) -> Figure:
    """Return a number of parameters in short form, such as 4.10B."""
    for unit, factor in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if value >= factor:
            return Figure(f"{value / factor:.2f}{unit}")
    return Figure(value)


def reduction(before: float, after: float) -> float | None:
    """Return the decrease from ``before`` to ``after`` in percent; None if ``before`` is 0."""
    return round(100 * (1 - after / before), 1) if before else None
