"""The layout of a sheet, computed from the sizes of the cells. All lengths are in pixels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

from converter.models.lens.resolutions import ASPECT_RATIOS

#: Most pixels per side of a WebP (developers.google.com/speed/webp/faq).
SIDE_LIMIT = 16383
#: Default width of a preview; the Hub shows cards about 800 wide, and screens of two pixels per point are common.
PREVIEW_WIDTH = 1280
#: How far a ratio may be from one of Lens's ratios to get its name. The farthest size in Lens's own table, 768x1376, is
#: 0.8 % off, and neighbouring ratios are at least 12.5 % apart.
RATIO_TOLERANCE = 0.03
#: Height of letters as a share of the width of both columns: if a sheet is shown 800 wide, labels are 13 high.
_LABEL_SHARE = 1 / 56
#: Pixels per side of the blocks in which WebP predicts (RFC 6386, section 2: macroblocks).
_BLOCK = 16
#: Least height of letters that can be read, for small cells.
_LEAST_LABEL = 9


@dataclass(frozen=True)
class Size:
    """Size of an image, or of the box for a missing one."""

    width: int
    height: int

    def reduced(self, scale: int) -> Size:
        """Return the size after PIL's ``Image.reduce``: parts of a block at the edge count as one."""
        return Size(-(-self.width // scale), -(-self.height // scale))


#: Cells of one prompt: original and quantized.
Pair = tuple[Size, Size]


@dataclass(frozen=True)
class Box:
    """A rectangle on a sheet; x and y are those of its upper left corner."""

    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True)
class Measures:
    """Lengths that are the same on all sheets of a grid."""

    columns: tuple[int, int]
    """Widths of the widest cells."""
    label: int
    """Font size of a label."""

    @classmethod
    def of(cls, rows: Sequence[Pair]) -> Measures:
        """Return the measures of a grid with these cells."""
        first, second = (max(pair[index].width for pair in rows) for index in range(2))
        return cls((first, second), max(_LEAST_LABEL, round((first + second) * _LABEL_SHARE)))

    @property
    def title(self) -> int:
        """Font size of a column title."""
        return round(self.label * 1.25)

    @property
    def margin(self) -> int:
        """Distance between the content and each edge."""
        return 2 * self.label

    @property
    def columns_at(self) -> tuple[int, int]:
        """Left edges of the columns."""
        left = _aligned(self.margin)
        return left, left + _aligned(self.columns[0]) + _aligned(self.label)

    @property
    def head(self) -> int:
        """Height above the first row: the margin, and the line of column titles."""
        return _aligned(self.margin + self.line(self.title) + self.label)

    @property
    def label_line(self) -> int:
        """Height of the line of a label, with the space below it."""
        return self.line(self.label) + self.label // 4

    @property
    def row_gap(self) -> int:
        """Distance between the cells of a row and the label of the next."""
        return _aligned(self.label)

    @property
    def width(self) -> int:
        """Width of a sheet."""
        left, right = self.columns_at
        return right + self.columns[1] + left

    @staticmethod
    def line(letters: int) -> int:
        """Return the height of a line: DejaVu Sans takes 1.164 times its font size from top to bottom."""
        return math.ceil(letters * 1.2)

    def row(self, pair: Pair) -> int:
        """Return the height of a row with its label."""
        return _aligned(self.label_line) + _aligned(max(size.height for size in pair))

    def height(self, rows: Sequence[Pair]) -> int:
        """Return the height of a sheet with these rows."""
        return self.head + sum(map(self.row, rows)) + self.row_gap * (len(rows) - 1) + self.margin


@dataclass(frozen=True)
class RowLayout:
    """Positions of the parts of one row."""

    label: Box
    cells: Sequence[Box]


@dataclass(frozen=True)
class SheetLayout:
    """Positions of all parts of one sheet."""

    size: Size
    titles: Sequence[Box]
    rows: Sequence[RowLayout]


def lay_out(measures: Measures, rows: Sequence[Pair]) -> SheetLayout:
    """Lay out one sheet.

    Args:
        measures: the measures of the whole grid.
        rows: the rows of this sheet.
    """
    lefts, title_height = measures.columns_at, measures.line(measures.title)
    titles = [Box(x, measures.margin, width, title_height) for x, width in zip(lefts, measures.columns, strict=True)]
    y = measures.head
    placed = []
    for pair in rows:
        top = y + _aligned(measures.label_line)
        width = measures.width - 2 * lefts[0]
        label = Box(lefts[0], top - measures.label_line, width, measures.line(measures.label))
        cells = [Box(x, top, size.width, size.height) for x, size in zip(lefts, pair, strict=True)]
        placed.append(RowLayout(label, cells))
        y += measures.row(pair) + measures.row_gap
    return SheetLayout(Size(measures.width, measures.height(rows)), titles, placed)


def split_rows(measures: Measures, rows: Sequence[Pair], limit: int = SIDE_LIMIT) -> list[int] | None:
    """Split rows evenly over as few sheets as their heights allow.

    Args:
        measures: the measures of the whole grid.
        rows: all rows.
        limit: most pixels that a sheet may be high.

    Returns:
        How many rows each sheet has; these numbers differ by at most one. None if a single row is too high.
    """
    if any(measures.height([pair]) > limit for pair in rows):
        return None
    sheets = max(1, -(-measures.height(rows) // limit))
    while True:
        counts = [len(rows) // sheets + (index < len(rows) % sheets) for index in range(sheets)]
        left = iter(rows)
        if all(measures.height(list(islice(left, count))) <= limit for count in counts):
            return counts
        sheets += 1


def rows_that_fit(measures: Measures, rows: Sequence[Pair], limit: int = SIDE_LIMIT) -> int:
    """Return how many rows, from the first, fit on a single sheet."""
    height = measures.height([])
    for count, pair in enumerate(rows):
        height += measures.row(pair) + measures.row_gap
        if height > limit:
            return count
    return len(rows)


def preview_scale(rows: Sequence[Pair], width: int, *, least: int = 1) -> int | None:
    """Return the least whole number by which cells must be reduced for a grid of at most that width.

    Args:
        rows: all rows, in their own pixels.
        width: most pixels that the grid may be wide.
        least: the least number to try.

    Returns:
        The number, 1 if no reduction is needed; None if no reduction suffices, as labels need some space.
    """
    columns = Measures.of(rows).columns
    scales = range(max(least, sum(columns) // (width + 1)), max(least, *columns) + 1)
    return next((scale for scale in scales if Measures.of(reduce_rows(rows, scale)).width <= width), None)


def reduce_rows(rows: Sequence[Pair], scale: int) -> list[Pair]:
    """Return the sizes of reduced cells."""
    return [(first.reduced(scale), second.reduced(scale)) for first, second in rows]


def _aligned(length: int) -> int:
    """Return the next multiple of WebP's block, so that a cell is encoded in the same way as the image alone."""
    return -(-length // _BLOCK) * _BLOCK


def ratio_name(sizes: Iterable[Size]) -> str:
    """Return the aspect ratio of the cells for a file name, such as ``16to9``; ``mixed`` if they differ."""
    names = {_ratio_name(size) for size in sizes}
    return names.pop() if len(names) == 1 else "mixed"


def _ratio_name(size: Size) -> str:
    def distance(ratio: str) -> float:
        width, height = map(int, ratio.split(":"))
        return abs(size.width * height / (size.height * width) - 1)

    nearest = min(ASPECT_RATIOS, key=distance)
    if distance(nearest) <= RATIO_TOLERANCE:
        return nearest.replace(":", "to")
    divisor = math.gcd(size.width, size.height)
    return f"{size.width // divisor}to{size.height // divisor}"
