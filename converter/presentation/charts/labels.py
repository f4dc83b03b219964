"""Names beside points: each where it covers no other name and no point, as far as there is space.

All lengths are in pixels, from the left and from the top of the plot.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, pairwise

from converter.presentation.charts.style import GAP, TEXT_SIZE
from converter.presentation.charts.text import text_width

#: Height of a line with the space around it.
_HEIGHT = TEXT_SIZE + 5
#: Most names in a chart: more have no space, and it takes long to place them.
MOST_LABELS = 30
#: How far a needed name, and any other, may be from its point, in lines.
_FARTHEST, _FAR = 10, 4
#: What it costs, in pixels of distance, if a name hides a part of the chart's line, and if the line from a name to its
#: point crosses the chart's line.
_HIDES, _CROSSES = 150, 15
#: How much nearer a name without a line is to its point than to any other.
_APART = 4
#: How often names are placed.
_MOST_MOVES = 120

Place = tuple[float, float]


@dataclass(frozen=True)
class Box:
    """A rectangle."""

    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: Box) -> bool:
        """Whether they have an area in common."""
        is_beside = self.right <= other.left or other.right <= self.left
        return not (is_beside or self.bottom <= other.top or other.bottom <= self.top)

    def is_inside(self, other: Box) -> bool:
        """Whether it reaches nowhere beyond another."""
        is_between = other.left <= self.left and self.right <= other.right
        return is_between and other.top <= self.top and self.bottom <= other.bottom

    def nearest(self, place: Place) -> Place:
        """The place in it that is nearest to another."""
        return min(max(place[0], self.left), self.right), min(max(place[1], self.top), self.bottom)

    def distance(self, place: Place) -> float:
        """How far a place is from it."""
        return math.dist(place, self.nearest(place))

    def is_crossed(self, start: Place, end: Place) -> bool:
        """Whether a straight line goes through it, by the part of the line between its sides (Liang and Barsky)."""
        low, high = 0.0, 1.0
        for axis, (least, most) in enumerate(((self.left, self.right), (self.top, self.bottom))):
            extent = end[axis] - start[axis]
            if extent == 0:
                if not least < start[axis] < most:
                    return False
                continue
            near, far = sorted(((least - start[axis]) / extent, (most - start[axis]) / extent))
            low, high = max(low, near), min(high, far)
        return low < high


@dataclass(frozen=True)
class Point:
    """A point that has a name."""

    place: Place
    name: str
    radius: float
    """Of its mark."""
    is_needed: bool
    """Whether its name may take the space of others, and hide the line of the chart."""

    @property
    def box(self) -> Box:
        """The rectangle around its mark."""
        (x, y), radius = self.place, self.radius
        return Box(x - radius, y - radius, x + radius, y + radius)


@dataclass(frozen=True)
class Label:
    """A name that has a place."""

    point: Point
    box: Box
    """Of its text, with half a ``GAP`` at both ends."""
    is_far: bool
    """Whether a line must connect it with its point."""

    @property
    def middle(self) -> float:
        """Its height in the plot."""
        return (self.box.top + self.box.bottom) / 2

    @cached_property
    def line(self) -> tuple[Place, Place]:
        """The ends of that line."""
        return self.point.place, self.box.nearest(self.point.place)


def place_labels(
    points: Sequence[Point], page: Box, chart_line: Sequence[Place] = (), *, most: int = MOST_LABELS
) -> list[Label]:
    """Return places for the names of points; names without space are left out.

    A needed name without space takes that of others, which are then placed again.

    Args:
        points: names of the first ones are placed first.
        page: where names may be.
        chart_line: corners of a line that names rather do not hide.
        most: number of points that get a name at most.
    """
    choices = {
        point: sorted(
            (label for label in _candidates(point) if _is_allowed(label, page, points, chart_line)),
            key=lambda label: _cost(label, chart_line),
        )
        for point in points[:most]
    }
    placed = _place_needed([point for point in choices if point.is_needed and choices[point]], choices)
    for point in choices:
        if not any(label.point is point for label in placed):
            free = (label for label in choices[point] if not any(_conflict(label, other) for other in placed))
            placed += islice(free, 1)
    return placed


def _place_needed(points: Sequence[Point], choices: Mapping[Point, Sequence[Label]]) -> list[Label]:
    """Return as many labels as were placed together at any time."""
    placed, best = list[Label](), list[Label]()
    waiting, moved = deque(points), Counter[Point]()
    for _ in range(_MOST_MOVES):
        if not waiting:
            break
        point = waiting.popleft()
        label, others = _choose(choices[point], placed, moved)
        placed = [other for other in placed if other not in others] + [label]
        waiting += (other.point for other in others)
        moved.update(other.point for other in others)
        best = placed if len(placed) > len(best) else best
    return [*best]


def _choose(choices: Sequence[Label], placed: Sequence[Label], moved: Counter[Point]) -> tuple[Label, list[Label]]:
    """Return the best place, and the labels that must be moved for it: few, and such that were not moved before."""

    def effort(label: Label) -> int:
        return sum(1 + moved[other.point] for other in placed if _conflict(label, other))

    free = next((label for label in choices if not any(_conflict(label, other) for other in placed)), None)
    label = min(choices, key=effort) if free is None else free
    return label, [other for other in placed if _conflict(label, other)]


def _candidates(point: Point) -> Iterator[Label]:
    """Yield places beside a point, above and below it, and farther away."""
    (x, y), width = point.place, text_width(point.name) + GAP
    most = _FARTHEST if point.is_needed else _FAR
    beside = point.radius
    for lines in range(-most, most + 1):
        # A name that is not beside its point begins above or below its mark.
        shift = (abs(lines) - 1) * _HEIGHT + point.radius + _HEIGHT / 2 + 2 if lines else 0.0
        middle = y + math.copysign(shift, lines)
        lefts = [x - beside - width, x + beside]
        if lines:
            # The line to a name may end in its middle or at its ends, so that names can be steps of stairs.
            lefts += [x - width / 2, x - GAP, x - width + GAP, x - width / 4, x - 3 * width / 4, x + 3 * GAP]
        for left in lefts:
            box = Box(left, middle - _HEIGHT / 2, left + width, middle + _HEIGHT / 2)
            yield Label(point, box, is_far=box.distance(point.place) > point.radius + _HEIGHT / 2)


def _is_allowed(label: Label, page: Box, points: Sequence[Point], chart_line: Sequence[Place]) -> bool:
    """Whether a label covers no point, and cannot be taken for that of another."""
    box, (start, end) = label.box, label.line
    if not box.is_inside(page) or (not label.point.is_needed and _count_hidden(box, chart_line)):
        return False
    own = box.distance(start)
    for point in points:
        if box.overlaps(point.box):
            return False
        is_other = point.place != start
        is_nearer = box.distance(point.place) < own + _APART
        if is_other and (point.box.is_crossed(start, end) if label.is_far else is_nearer):
            return False
    return True


def _conflict(label: Label, other: Label) -> bool:
    """Whether two labels, or the lines to their points, cover each other."""
    if label.box.overlaps(other.box):
        return True
    if label.is_far and other.box.is_crossed(*label.line):
        return True
    return other.is_far and (label.box.is_crossed(*other.line) or (label.is_far and _cross(label.line, other.line)))


def _cost(label: Label, chart_line: Sequence[Place]) -> float:
    """Distance from the point, in pixels, and more if the chart's line is hidden or crossed."""
    (x, y), box = label.point.place, label.box
    crossed = sum(_cross(label.line, ends) for ends in pairwise(chart_line)) if label.is_far else 0
    # A name beside its point is easier to read than one above or below it.
    return (
        2 * box.distance((x, y)) + abs(label.middle - y) + _HIDES * _count_hidden(box, chart_line) + _CROSSES * crossed
    )


def _count_hidden(box: Box, chart_line: Sequence[Place]) -> int:
    return sum(box.is_crossed(*ends) for ends in pairwise(chart_line))


def _cross(first: tuple[Place, Place], second: tuple[Place, Place]) -> bool:
    """Whether two straight lines cross; lines that only touch do not."""
    return _sides(first, second) < 0 and _sides(second, first) < 0


def _sides(line: tuple[Place, Place], other: tuple[Place, Place]) -> float:
    """Return a product that is negative if both ends of another line are on different sides of a line."""
    (x, y), (end_x, end_y) = line
    first, second = ((end_x - x) * (place[1] - y) - (end_y - y) * (place[0] - x) for place in other)
    return first * second
