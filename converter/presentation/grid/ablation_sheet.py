"""The sheet of an ablation: images of the original, of a second seed and of each variant, a column for each prompt.

It is one picture for cards, so images are reduced until it is narrow enough. As in a comparison grid, images are read
only from inside the folder, and only if they are those that were measured; one is decoded at a time.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image, ImageDraw

from converter.console import Reporter
from converter.errors import UsageError, printable
from converter.measurement.evidence.names import ABLATION_NAME
from converter.measurement.evidence.origin import ablation_text, origin_note
from converter.presentation.grid.cells import Cell, find_cell, read_pixels
from converter.presentation.grid.drawing import Typography, draw_missing, encode, new_canvas, shorten, write_line
from converter.presentation.grid.layout import SIDE_LIMIT, Box, Measures, Size
from converter.presentation.grid.report import AblationSheet
from converter.presentation.tables.figures import decimal, size

ABLATION_FOLDER = PurePosixPath("assets/ablation")
ABLATION_SHEET = "ablation.webp"
#: Most pixels of its width: a card shows it 800 wide, and readers open it.
_WIDTH = 2560
#: WebP quality of reduced images; others are stored without loss.
_QUALITY = 90
#: Least height of letters.
_LEAST_LABEL = 12
#: Least height of letters of the reason why an image is missing, and how many fit side by side in its box.
_LEAST_REASON, _REASON_LETTERS = 9, 16
#: Height of letters as a share of the width of all columns: 14 pixels where the sheet is shown 800 wide.
_LABEL_SHARE = 1 / 56
#: Pixels per side of a box whose size is in no image.
_DEFAULT_SIDE = 512
#: Most characters of a label.
_LABEL_LIMIT = 200


@dataclass(frozen=True)
class _Row:
    """The images of one variant."""

    name: str
    note: str
    """What else stands above the images."""
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class _Layout:
    """Lengths of the sheet, in pixels."""

    columns: tuple[int, ...]
    """Widths of the columns."""
    heights: tuple[int, ...]
    """Heights of the rows, without their labels."""
    measures: Measures

    @classmethod
    def of(cls, rows: Sequence[_Row], scale: int) -> _Layout:
        """Return the lengths for images that are reduced by a whole number."""
        sizes = [[cell.size.reduced(scale) for cell in row.cells] for row in rows]
        columns = tuple(max(found.width for found in column) for column in zip(*sizes, strict=True))
        label = max(_LEAST_LABEL, round(sum(columns) * _LABEL_SHARE))
        heights = tuple(max(found.height for found in row) for row in sizes)
        return cls(columns, heights, Measures((sum(columns), 0), label))

    @property
    def gap(self) -> int:
        """Between two columns, and below a row."""
        return self.measures.label // 2

    @property
    def lefts(self) -> list[int]:
        """Left edges of the columns."""
        widths = [width + self.gap for width in self.columns]
        return [self.measures.margin + sum(widths[:number]) for number in range(len(widths))]

    @property
    def head(self) -> int:
        """Height above the first row."""
        return self.measures.margin + self.measures.label_line + self.gap

    @property
    def tops(self) -> list[int]:
        """Upper edges of the labels of the rows."""
        pitches = [self.measures.label_line + height + 2 * self.gap for height in self.heights]
        return [self.head + sum(pitches[:number]) for number in range(len(pitches))]

    @property
    def size(self) -> Size:
        """Size of the sheet."""
        bottom = self.tops[-1] + self.measures.label_line + self.heights[-1]
        return Size(self.lefts[-1] + self.columns[-1] + self.measures.margin, bottom + self.measures.margin)


def has_images(ablation: Mapping[str, Any]) -> bool:
    """Return whether there is anything to draw.

    Args:
        ablation: content of ``ablation.json``.
    """
    return bool(ablation.get("original_images")) and any("images" in variant for variant in ablation["variants"])


def draw_ablation(folder: Path, ablation: Mapping[str, Any], reporter: Reporter) -> tuple[AblationSheet, bytes]:
    """Draw the sheet.

    Args:
        folder: contains ``ablation.json`` and the images that it names.
        ablation: its content, which is valid and has images.
        reporter: shows progress.

    Returns:
        The sheet, and the content of its file.

    Raises:
        EvidenceError: an image is outside of the folder, is broken, or is not the image that was measured.
        UsageError: there are too many variants or prompts for a picture.
        OutputError: the picture cannot be encoded.
        DependencyError: the font is missing.
    """
    prompts = ablation["original_images"]
    rows = _fill(list(_find_rows(folder, ablation)))
    scale, layout = _scale(rows)
    canvas = new_canvas(layout.size)
    typography = Typography(layout.measures)
    titles = [(str(row["id"]), f" · seed {row['seed']}") for row in prompts]
    with reporter.progress("drawing the ablation", len(rows) * len(prompts) + 1, "images") as display:
        _write_texts(canvas, layout, typography, titles, rows)
        for row, top in zip(rows, layout.tops, strict=True):
            for cell, left in zip(row.cells, layout.lefts, strict=True):
                place = left, top + layout.measures.label_line
                canvas.paste(_draw_cell(cell, scale), place)
                display.advance(1)
                display.refresh()
        content = encode(canvas, origin_note(ablation_text(ablation)), quality=None if scale == 1 else _QUALITY)
    sheet = AblationSheet(
        file=str(ABLATION_FOLDER / ABLATION_SHEET),
        width=layout.size.width,
        height=layout.size.height,
        bytes=len(content),
        scale=scale,
        lossless=scale == 1,
        rows=tuple(row.name for row in rows),
        prompts=tuple(name for name, _ in titles),
        missing_cells=sum(cell.file is None for row in rows for cell in row.cells),
    )
    return sheet, content


def _find_rows(folder: Path, ablation: Mapping[str, Any]) -> Iterator[_Row]:
    """Yield a row of the original, of a second seed if it was drawn, and of each variant with images."""
    originals = ablation["original_images"]
    ids = [str(row["id"]) for row in originals]
    yield _row(folder, ids, "Original", size(ablation["unquantized_bytes"]), originals)
    if "baseline" in ablation:
        yield _row(folder, ids, "Original, second seed", "", ablation["baseline"]["prompts"])
    for variant in ablation["variants"]:
        figures = [str(size(variant["bytes"]))]
        if "velocity" in variant:
            figures.append(f"velocity error {decimal(variant['velocity']['error'], 4)}")
        failed = variant.get("failed", {}).get("images")
        if failed is not None:
            figures.append(f"images failed: {failed}")
        if "images" in variant or failed is not None:
            rows = variant.get("images", {}).get("prompts", ())
            yield _row(folder, ids, variant["name"], ", ".join(figures), rows)


def _row(folder: Path, ids: Sequence[str], name: str, note: str, rows: Sequence[Mapping[str, Any]]) -> _Row:
    measured = {str(row["id"]): row for row in rows}
    cells = (find_cell(folder, key, name, measured.get(key, {}), listed_in=ABLATION_NAME) for key in ids)
    return _Row(name, note, tuple(cells))


def _fill(rows: Sequence[_Row]) -> list[_Row]:
    """Give missing cells the size of the first image in their column, or of any image."""
    found = [cell.size for row in rows for cell in row.cells if cell.file is not None]
    typical = found[0] if found else Size(_DEFAULT_SIDE, _DEFAULT_SIDE)
    columns = zip(*(row.cells for row in rows), strict=True)
    sizes = [next((cell.size for cell in column if cell.file is not None), typical) for column in columns]
    return [
        replace(
            row,
            cells=tuple(
                cell if cell.file is not None else replace(cell, size=own)
                for cell, own in zip(row.cells, sizes, strict=True)
            ),
        )
        for row in rows
    ]


def _scale(rows: Sequence[_Row]) -> tuple[int, _Layout]:
    """Return the least whole number by which images must be reduced, and the layout then."""
    largest = max(max(cell.size.width, cell.size.height) for row in rows for cell in row.cells)
    scale = 1 + bisect_left(range(1, largest + 1), True, key=lambda scale: _fits(_Layout.of(rows, scale).size))
    if scale <= largest:
        return scale, _Layout.of(rows, scale)
    raise UsageError(
        f"{ABLATION_NAME} has {len(rows)} rows of {len(rows[0].cells)} images, too many for one picture",
        "Measure images of fewer variants or prompts.",
    )


def _fits(size: Size) -> bool:
    return size.width <= _WIDTH and size.height <= SIDE_LIMIT


def _write_texts(
    canvas: Image.Image,
    layout: _Layout,
    typography: Typography,
    titles: Sequence[tuple[str, str]],
    rows: Sequence[_Row],
) -> None:
    draw = ImageDraw.Draw(canvas)
    height = layout.measures.label_line
    for left, width, parts in zip(layout.lefts, layout.columns, titles, strict=True):
        # Half a seed would be another one.
        name, seed = parts
        fits = typography.label.getlength(name + seed) <= width
        _write(draw, Box(left, layout.measures.margin, width, height), typography, name, seed if fits else "")
    inner = layout.size.width - 2 * layout.measures.margin
    for top, row in zip(layout.tops, rows, strict=True):
        box = Box(layout.measures.margin, top, inner, height)
        _write(draw, box, typography, row.name, f" · {row.note}" if row.note else "")


def _write(draw: ImageDraw.ImageDraw, box: Box, typography: Typography, name: str, note: str) -> None:
    """Write a name and, in pale letters, what else is known, as far as there is space."""
    font = typography.label
    shown = shorten(printable(name, _LABEL_LIMIT), font, box.width)
    write_line(draw, box, shown, font)
    indent = math.ceil(font.getlength(shown))
    text = shorten(printable(note, _LABEL_LIMIT), font, box.width - indent)
    write_line(draw, replace(box, x=box.x + indent), text, font, pale=True)


def _draw_cell(cell: Cell, scale: int) -> Image.Image:
    if cell.file is None:
        reduced = cell.size.reduced(scale)
        letters = max(_LEAST_REASON, reduced.width // _REASON_LETTERS)
        return draw_missing(reduced, cell.missing, Typography(Measures((reduced.width, 0), letters)))
    image = read_pixels(cell)
    return image if scale == 1 else image.reduce(scale)
