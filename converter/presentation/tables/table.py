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


#: Text of a cell for which nothing was measured.
NOTHING = Figure("–")  # noqa: RUF001 - a dash


@dataclass(frozen=True)
class Table:
    """Titles of columns, and rows of cells. A cell that is neither a ``Figure`` nor ``Code`` is text from a file."""

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    align: str = ""
    """``l`` or ``r`` for each column; by default the first is aligned left and the others right."""


def keep_measured(rows: Sequence[Sequence[object]]) -> list[Sequence[object]]:
    """Return the rows in which anything was measured; the first cell of each is its label."""
    return [row for row in rows if any(cell != NOTHING for cell in row[1:])]
