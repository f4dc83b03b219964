"""Draw sheet after sheet, together with the preview: each image is decoded once, and only one at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from PIL import Image

from converter.console import Progress
from converter.presentation.grid.cells import Cell, Row, read_pixels
from converter.presentation.grid.drawing import Typography, draw_missing, draw_texts, encode, new_canvas
from converter.presentation.grid.layout import Measures, SheetLayout, lay_out, reduce_rows, rows_that_fit
from converter.presentation.grid.report import PlacedCell, Preview, Sheet

#: Folder in which the model card looks for the pictures.
FOLDER = PurePosixPath("assets/comparison")
PREVIEW_NAME = "comparison_preview.webp"
#: WebP quality of sheets, which is that of the published grid, and of a preview with reduced cells.
SHEET_QUALITY = 98
_PREVIEW_QUALITY = 90


class _Picture(NamedTuple):
    """A sheet or preview while it is drawn."""

    canvas: Image.Image
    layout: SheetLayout
    typography: Typography


class Drawing:
    """Draws sheet after sheet, together with the preview, so that each image is decoded once.

    Args:
        rows: all rows.
        titles: the titles of the columns.
        scale: the number by which the cells of the preview are reduced.
        origin: a note of the measurements that the pictures show.
        display: counts rows, sheets and the preview, since encoding a sheet takes longer than drawing it.
    """

    def __init__(
        self, rows: Sequence[Row], titles: tuple[str, str], scale: int, origin: Image.Exif, display: Progress
    ) -> None:
        self._rows = rows
        self._origin = origin
        self._titles = titles
        self._measures = Measures.of([row.sizes for row in rows])
        self._scale = scale
        self._display = display
        self._drawn = 0
        reduced = reduce_rows([row.sizes for row in rows], scale)
        measures = Measures.of(reduced)
        self._shown = rows[: rows_that_fit(measures, reduced)]
        self._small = self._start(self._shown, measures, lay_out(measures, reduced[: len(self._shown)]))

    def draw_sheet(self, name: str, count: int) -> tuple[Sheet, bytes]:
        """Draw the sheet of the next rows.

        Args:
            name: the name of the file.
            count: the number of rows.

        Returns:
            The sheet, and the content of its file.

        Raises:
            EvidenceError: an image is truncated or broken, or was changed after its size was read.
            OutputError: the encoder refuses the sheet.
        """
        rows = self._rows[self._drawn : self._drawn + count]
        layout = lay_out(self._measures, [row.sizes for row in rows])
        picture = self._start(rows, self._measures, layout)
        for index, row in enumerate(rows):
            self._draw_row(picture, index, row)
            self._drawn += 1
            self._advance()
        content = encode(picture.canvas, self._origin, quality=SHEET_QUALITY)
        self._advance()
        size = layout.size
        cells = tuple(_placed(rows, layout))
        return Sheet(str(FOLDER / name), size.width, size.height, len(content), cells), content

    def draw_preview(self) -> tuple[Preview, bytes]:
        """Finish the preview, once all sheets are drawn.

        Returns:
            The preview, and the content of its file.

        Raises:
            OutputError: the encoder refuses the preview.
        """
        lossless = self._scale == 1
        content = encode(self._small.canvas, self._origin, quality=None if lossless else _PREVIEW_QUALITY)
        self._advance()
        size, cells = self._small.layout.size, tuple(_placed(self._shown, self._small.layout))
        name = str(FOLDER / PREVIEW_NAME)
        return Preview(name, size.width, size.height, len(content), self._scale, lossless, cells), content

    def _advance(self) -> None:
        self._display.advance(1)
        self._display.refresh()

    def _start(self, rows: Sequence[Row], measures: Measures, layout: SheetLayout) -> _Picture:
        picture = _Picture(new_canvas(layout.size), layout, Typography(measures))
        draw_texts(picture.canvas, layout, picture.typography, self._titles, rows)
        return picture

    def _draw_row(self, picture: _Picture, index: int, row: Row) -> None:
        for column, cell in enumerate(row.cells):
            box = picture.layout.rows[index].cells[column]
            image = _draw_cell(cell, picture.typography)
            picture.canvas.paste(image, (box.x, box.y))
            if self._drawn < len(self._shown):
                box = self._small.layout.rows[self._drawn].cells[column]
                self._small.canvas.paste(self._reduce(cell, image), (box.x, box.y))

    def _reduce(self, cell: Cell, image: Image.Image) -> Image.Image:
        if self._scale == 1:
            return image
        if cell.file is None:
            return draw_missing(cell.size.reduced(self._scale), cell.missing, self._small.typography)
        return image.reduce(self._scale)


def _draw_cell(cell: Cell, typography: Typography) -> Image.Image:
    return draw_missing(cell.size, cell.missing, typography) if cell.file is None else read_pixels(cell)


def _placed(rows: Sequence[Row], layout: SheetLayout) -> list[PlacedCell]:
    return [
        PlacedCell(row.id, cell.model, box.x, box.y, box.width, box.height, cell.file is None)
        for row, placed in zip(rows, layout.rows, strict=True)
        for cell, box in zip(row.cells, placed.cells, strict=True)
    ]
