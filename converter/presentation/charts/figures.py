"""Figures and rows as charts and their descriptions show them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from converter.errors import printable
from converter.measurement.evidence.names import MODELS

#: Bytes by unit.
_UNITS = {"GB": 10**9, "MB": 10**6, "kB": 10**3}
#: Characters of a name in a description.
_NAME_LIMIT = 40


@dataclass(frozen=True)
class Unit:
    """The unit in which bytes are shown."""

    name: str
    bytes: int

    def of(self, size: float) -> float:
        """Return bytes in this unit."""
        return size / self.bytes

    def show(self, size: float) -> str:
        """Return bytes as a short number, without the unit."""
        return short_number(self.of(size)) if not 0 < self.of(size) < 0.01 else "<0.01"


def choose_unit(largest: float) -> Unit:
    """Return GB of 10^9 bytes, or a smaller unit if the largest size is less than one GB."""
    return next((Unit(name, size) for name, size in _UNITS.items() if largest >= size), Unit("kB", 10**3))


def exact_size(size: float, unit: Unit | None = None) -> str:
    """Return bytes with up to three digits after the point, by default in the unit that suits them."""
    unit = unit or choose_unit(size)
    return f"{exact_number(unit.of(size))} {unit.name}"


def short_number(value: float) -> str:
    """Return three digits, and no more than two after the point."""
    return f"{value:.{0 if abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2}f}"


def exact_number(value: float) -> str:
    """Return a figure as files contain it: with up to three digits after the point."""
    return f"{value:.3f}".rstrip("0").rstrip(".")


def describe_rows(rows: Mapping[str, Iterable[str]]) -> str:
    """Return rows as one sentence.

    Args:
        rows: what was measured of the original and of the quantized model, by the name of the row.
    """
    shown = (
        f"{short_name(name)}: {', '.join(f'{model} {text}' for model, text in zip(MODELS, texts, strict=True))}"
        for name, texts in rows.items()
    )
    return f"{'; '.join(shown)}."


def short_name(name: str) -> str:
    """Return a name from a file as descriptions show it."""
    return printable(name, _NAME_LIMIT)
