"""Where everything stands on a sheet, from the sizes of the cells alone. All lengths are in pixels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from converter.models.lens.resolutions import ASPECT_RATIOS

#: Most pixels a side of a WebP (developers.google.com/speed/webp/faq).
SIDE_LIMIT = 16383
#: Pixels that a preview may be wide; the hub shows a card some 800 wide, and screens of two pixels a point are common.
PREVIEW_WIDTH = 1280
#: How far a ratio may be from one of Lens's to bear its name. The furthest size in upstream's table, 768x1376, is 0.8 %
#: off, and neighbouring ratios lie 12.5 % or more apart.
RATIO_TOLERANCE = 0.03
#: Height of letters to the width of both columns: shown 800 pixels wide, labels are of 13 pixels.
_LABEL_SHARE = 1 / 56
#: Pixels a side of the blocks in which WebP predicts (RFC 6386, section 2: macroblocks).
_BLOCK = 16
#: Letters smaller than this cannot be told apart, however small the cells are.
_LEAST_LABEL = 9


@dataclass(frozen=True)
class Size:
    """Of an image or of a box in its place."""

    width: int
    height: int

    def reduced(self, scale: int) -> Size:
        """What PIL's ``Image.reduce`` leaves: parts of a block at the edge count as one."""
        return Size(-(-self.width // scale), -(-self.height // scale))


#: Cells of one prompt: original and quantized.
Pair = tuple[Size, Size]


@dataclass(frozen=True)
class Box:
    """A rectangle on a sheet; x and y are of its upper left corner."""

    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True)
class Measures:
    """What all sheets of a grid have in common."""

    columns: tuple[int, int]
    """Widths: that of the widest cell."""
    label: int
    """Height of the letters of a label, as fonts count it."""

    @classmethod
    def of(cls, rows: Sequence[Pair]) -> Measures:
        """Of a grid with these cells."""
        first, second = (max(pair[index].width for pair in rows) for index in range(2))
        return cls((first, second), max(_LEAST_LABEL, round((first + second) * _LABEL_SHARE)))

    @property
    def title(self) -> int:
        """Height of the letters of a column title."""
        return round(self.label * 1.25)

    @property
    def margin(self) -> int:
        """Between the content and each edge."""
        return 2 * self.label

    @property
    def columns_at(self) -> tuple[int, int]:
        """Where the columns begin."""
        left = _aligned(self.margin)
        return left, left + _aligned(self.columns[0]) + _aligned(self.label)

    @property
    def head(self) -> int:
        """Height of what stands above the first row: the margin, and the line of column titles."""
        return _aligned(self.margin + self.line(self.title) + self.label)

    @property
    def label_line(self) -> int:
        """Height of the line of a label, with what separates it from its cells."""
        return self.line(self.label) + self.label // 4

    @property
    def row_gap(self) -> int:
        """Between the cells of a row and the label of the next."""
        return _aligned(self.label)

    @property
    def width(self) -> int:
        """Of a sheet."""
        left, right = self.columns_at
        return right + self.columns[1] + left

    @staticmethod
    def line(letters: int) -> int:
        """Height of a line of letters: DejaVu Sans takes 1.164 times its size from top to bottom."""
        return math.ceil(letters * 1.2)

    def row(self, pair: Pair) -> int:
        """Height of a row with its label."""
        return _aligned(self.label_line) + _aligned(max(size.height for size in pair))

    def height(self, rows: Sequence[Pair]) -> int:
        """Of a sheet with these rows."""
        return self.head + sum(map(self.row, rows)) + self.row_gap * (len(rows) - 1) + self.margin


@dataclass(frozen=True)
class RowLayout:
    """Where the parts of one row stand."""

    label: Box
    cells: tuple[Box, Box]


@dataclass(frozen=True)
class SheetLayout:
    """Where everything stands on one sheet."""

    size: Size
    titles: tuple[Box, Box]
    rows: tuple[RowLayout, ...]


def lay_out(measures: Measures, rows: Sequence[Pair]) -> SheetLayout:
    """Lay out one sheet.

    Args:
        measures: of the whole grid.
        rows: the rows of this sheet.
    """
    left, right = measures.columns_at
    titles = (
        Box(left, measures.margin, measures.columns[0], measures.line(measures.title)),
        Box(right, measures.margin, measures.columns[1], measures.line(measures.title)),
    )
    y = measures.head
    placed = []
    for pair in rows:
        top = y + _aligned(measures.label_line)
        label = Box(left, top - measures.label_line, measures.width - 2 * left, measures.line(measures.label))
        original, quantized = (
            Box(x, top, size.width, size.height) for x, size in zip((left, right), pair, strict=True)
        )
        placed.append(RowLayout(label, (original, quantized)))
        y += measures.row(pair) + measures.row_gap
    return SheetLayout(Size(measures.width, measures.height(rows)), titles, tuple(placed))


def split_rows(measures: Measures, rows: Sequence[Pair], limit: int = SIDE_LIMIT) -> list[int] | None:
    """Split rows evenly over as few sheets as their heights allow.

    Args:
        measures: of the whole grid.
        rows: all rows.
        limit: most pixels that a sheet may be high.

    Returns:
        How many rows each sheet has; numbers of rows differ by one at most. None if a single row is too high.
    """
    if any(measures.height([pair]) > limit for pair in rows):
        return None
    sheets = max(1, -(-measures.height(rows) // limit))
    while True:
        counts = [len(rows) // sheets + (index < len(rows) % sheets) for index in range(sheets)]
        starts = [sum(counts[:index]) for index in range(sheets)]
        if all(
            measures.height(rows[start : start + count]) <= limit for start, count in zip(starts, counts, strict=True)
        ):
            return counts
        sheets += 1


def rows_that_fit(measures: Measures, rows: Sequence[Pair], limit: int = SIDE_LIMIT) -> int:
    """How many rows, from the first, a single sheet can hold."""
    height = measures.height([])
    for count, pair in enumerate(rows):
        height += measures.row(pair) + measures.row_gap
        if height > limit:
            return count
    return len(rows)


def preview_scale(rows: Sequence[Pair], width: int, *, least: int = 1) -> int | None:
    """The least whole number by which cells must be reduced for a grid of at most that width.

    Args:
        rows: all rows, in their own pixels.
        width: pixels.
        least: the least number to try.

    Returns:
        The number, 1 if nothing must be reduced; None if no reduction suffices, as labels need some space.
    """
    columns = Measures.of(rows).columns
    scale = max(least, sum(columns) // (width + 1))
    while scale <= max(least, *columns):
        if Measures.of([(first.reduced(scale), second.reduced(scale)) for first, second in rows]).width <= width:
            return scale
        scale += 1
    return None


def _aligned(length: int) -> int:
    """The next multiple of WebP's block, so that a cell is encoded as the image alone would be."""
    return -(-length // _BLOCK) * _BLOCK


def ratio_name(sizes: Iterable[Size]) -> str:
    """The aspect ratio of the cells for a file name, such as ``16to9``; ``mixed`` where they differ."""
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
