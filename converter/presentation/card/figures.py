"""Figures as cards show them: seconds and GB with three digits behind the point, percents with one."""

from __future__ import annotations

from converter.presentation.card.markdown import Markdown

GB = 10**9
#: What stands where nothing was measured.
NOTHING = Markdown("–")  # noqa: RUF001 - a dash
#: Bytes of a weight as everybody loads it, in bfloat16.
LOADED_BYTES = 2


def number(value: float | None) -> Markdown:
    """Seconds or GB, with three digits behind the point."""
    return NOTHING if value is None else Markdown(f"{value:.3f}")


def percent(value: float | None) -> Markdown:
    """A share, with one digit behind the point."""
    return NOTHING if value is None else Markdown(f"{value:.1f}%")


def signed_percent(value: float | None) -> Markdown:
    """A change, with its sign."""
    return NOTHING if value is None else Markdown(f"{value:+.1f}%")


def count(value: int | None) -> Markdown:
    """A number of things or bytes, in groups of three digits."""
    return NOTHING if value is None else Markdown(f"{value:,}")


def size(value: int | None) -> Markdown:
    """Bytes in GB with three digits, or in a smaller unit where that would be next to nothing."""
    if value is None:
        return NOTHING
    for unit, factor, digits in (("GB", GB, 3), ("MB", 10**6, 1), ("kB", 10**3, 1)):
        if value >= factor:
            return Markdown(f"{value / factor:.{digits}f} {unit}")
    return Markdown(f"{value} B")


def short(value: int) -> Markdown:
    """A number of parameters in words of its size, as pages show it: 4.10B."""
    for unit, factor in (("B", GB), ("M", 10**6), ("K", 10**3)):
        if value >= factor:
            return Markdown(f"{value / factor:.2f}{unit}")
    return Markdown(str(value))


def decimal(value: float | None, digits: int) -> Markdown:
    """A figure with so many digits behind the point."""
    return NOTHING if value is None else Markdown(f"{value:.{digits}f}")


def reduction(before: float, after: float) -> float | None:
    """By how many percent ``after`` is less; None where there was nothing."""
    return round(100 * (1 - after / before), 1) if before else None
