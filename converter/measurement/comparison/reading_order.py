"""Put the lines of text that were found in an image into the order in which a person reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: Lines of one sign are at most this many of their heights apart, and differ in height by at most this factor.
_GAP, _HEIGHTS = 1.2, 2.5
#: A line belongs to a row if it is less than this many of its heights below or above the row.
_ROW = 0.5
_RIGHT = np.array([1.0, 0.0])


@dataclass(frozen=True, eq=False)
class Line:
    """A line of text in an image."""

    text: str
    corners: NDArray[np.float64]
    """Of shape (4, 2): x and y in pixels, clockwise from the upper left."""
    direction: NDArray[np.float64]
    """Of shape (2,) and length 1: the direction in which the text runs; (1, 0) for an upright line."""

    @property
    def centre(self) -> NDArray[np.float64]:
        """The middle of the line, of shape (2,)."""
        middle: NDArray[np.float64] = self.corners.mean(axis=0)
        return middle

    @property
    def height(self) -> float:
        """Extent across the direction, in pixels."""
        low, high = self.span(_across(self.direction))
        return high - low

    def span(self, axis: NDArray[np.float64]) -> tuple[float, float]:
        """Where the line begins and ends along an axis of length 1."""
        places = self.corners @ axis
        return float(places.min()), float(places.max())


def in_both_orders(lines: Sequence[Line]) -> tuple[str, str]:
    """Join the lines that are not blank, by rows of the image and by groups."""
    lines = [line for line in lines if line.text.strip()]
    return text_by_rows(lines), text_by_groups(lines)


def text_by_rows(lines: Sequence[Line]) -> str:
    """Join all lines of an image, row by row from the top, each from left to right."""
    return _join(_rows(lines, _RIGHT))


def text_by_groups(lines: Sequence[Line]) -> str:
    """Join the lines of each group of neighbours, such as those of one sign, in the direction of its longest line."""
    order = {line: place for place, line in enumerate(line for row in _rows(lines, _RIGHT) for line in row)}
    groups = sorted(_groups(lines), key=lambda group: min(order[line] for line in group))
    return "\n".join(_join(_rows(group, max(group, key=_length).direction)) for group in groups)


def _join(rows: Sequence[Sequence[Line]]) -> str:
    return "\n".join(" ".join(line.text for line in row) for row in rows)


def _rows(lines: Sequence[Line], direction: NDArray[np.float64]) -> list[list[Line]]:
    down = _across(direction)
    rows: list[list[Line]] = []
    for line in sorted(lines, key=lambda line: float(line.centre @ down)):
        middle = np.mean([other.centre @ down for other in rows[-1]]) if rows else -np.inf
        if line.centre @ down - middle < _ROW * line.height:
            rows[-1].append(line)
        else:
            rows.append([line])
    return [sorted(row, key=lambda line: float(line.centre @ direction)) for row in rows]


def _groups(lines: Sequence[Line]) -> list[list[Line]]:
    """Lines that are joined by a chain of neighbours."""
    groups: list[list[Line]] = []
    for line in lines:
        near = [group for group in groups if any(_are_neighbours(line, other) for other in group)]
        groups = [group for group in groups if group not in near] + [
            [*(other for group in near for other in group), line]
        ]
    return groups


def _are_neighbours(line: Line, other: Line) -> bool:
    low, high = sorted((line.height, other.height))
    if high > _HEIGHTS * low:
        return False
    return all(
        _gap(line.span(axis), other.span(axis)) <= _GAP * high for axis in (line.direction, _across(line.direction))
    )


def _gap(first: tuple[float, float], second: tuple[float, float]) -> float:
    return max(first[0], second[0]) - min(first[1], second[1])


def _across(direction: NDArray[np.float64]) -> NDArray[np.float64]:
    """The direction in which lines follow each other: down, for lines that run to the right."""
    return np.array([-direction[1], direction[0]])


def _length(line: Line) -> float:
    low, high = line.span(line.direction)
    return high - low
