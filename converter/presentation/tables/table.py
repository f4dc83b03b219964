"""A table as a plain value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class Figure(str):
    """A cell that lensconv formatted itself: it contains nothing that a renderer must escape."""

    __slots__ = ()


class Code(str):
    """A cell with an identifier or a checksum, which Markdown shows as code."""

    __slots__ = ()


@dataclass(frozen=True)
class Label:
    """A cell with an identifier, which Markdown shows as code, and words that follow it."""

    identifier: str
    words: str

    def __str__(self) -> str:
        return f"{self.identifier} {self.words}"


#: Text of a cell for which nothing was measured.
NOTHING = Figure("–")  # noqa: RUF001 - a dash


@dataclass(frozen=True)
class Table:
    """Titles of columns, and rows of cells. A cell of another type than those above is text from a file."""

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    align: str = ""
    """``l`` or ``r`` for each column; by default the first is aligned left and the others right."""


def keep_measured(rows: Sequence[Sequence[object]]) -> list[Sequence[object]]:
    """Return the rows in which anything was measured; the first cell of each is its label."""
    return [row for row in rows if any(cell != NOTHING for cell in row[1:])]
