"""Draw titles, labels, and boxes for missing images, and encode the canvas as WebP."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from converter.errors import DependencyError, OutputError, printable
from converter.presentation.grid.cells import Row
from converter.presentation.grid.layout import Box, Measures, SheetLayout, Size

#: The canvas, which does not reduce the contrast of photographs, and greys from dark to light.
BACKGROUND = (250, 250, 248)
_STRONG = (38, 38, 36)
_PALE = (128, 128, 124)
_HATCH = (226, 226, 222)
_BOX = (240, 240, 237)
#: Most characters of a label; longer ones are cut before their width is measured.
_LABEL_LIMIT = 300
_ELLIPSIS = "…"
#: The method of libwebp with the smallest files: photographs at quality 98 take 3 to 5 % less than with the default, 4,
#: at the same mean error and in twice the time; 4.1 megapixels take 0.6 to 1.4 s.
_LOSSY_METHOD = 6
#: The default of libwebp; higher ones take several times as long and save a few percent.
_LOSSLESS_METHOD = 4


class Typography:
    """The fonts of a grid.

    Args:
        measures: the measures of the grid.

    Raises:
        DependencyError: the font is missing.
    """

    def __init__(self, measures: Measures) -> None:
        self.label = _font(measures.label)
        self.title = _font(measures.title)


def draw_texts(
    canvas: Image.Image, layout: SheetLayout, typography: Typography, titles: tuple[str, str], rows: Sequence[Row]
) -> None:
    """Draw column titles and row labels. Cells must be pasted afterwards, so that no letter covers them.

    Args:
        canvas: an RGB image of the size of the layout.
        layout: the layout of this sheet.
        typography: the fonts of the grid.
        titles: the titles of the columns.
        rows: the rows of this sheet.
    """
    draw = ImageDraw.Draw(canvas)
    for box, title in zip(layout.titles, titles, strict=True):
        write_line(draw, box, shorten(printable(title, _LABEL_LIMIT), typography.title, box.width), typography.title)
    for row, placed in zip(rows, layout.rows, strict=True):
        box = placed.label
        name, seed = label_of(row, typography.label, box.width)
        write_line(draw, box, name, typography.label)
        indent = math.ceil(typography.label.getlength(name))
        write_line(draw, replace(box, x=box.x + indent), seed, typography.label, pale=True)


def label_of(row: Row, font: ImageFont.FreeTypeFont, width: int) -> tuple[str, str]:
    """Return the label of a row in two parts: the prompt, and the seed.

    Args:
        row: the row.
        font: the font of the label.
        width: pixels that both parts together may take; the scenario is shortened first.
    """
    start, end = f"{printable(row.id)} · ", f" · seed {printable(str(row.seed))}"
    scenario = printable(row.scenario, _LABEL_LIMIT)
    # Each part begins at a whole pixel.
    left = width - 1 - font.getlength(end)
    if font.getlength(start + _ELLIPSIS) <= left:
        return start + shorten(scenario, font, left - font.getlength(start)), end
    return shorten(start + scenario + end, font, width), ""


def shorten(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """Return the text, cut with an ellipsis if it is wider than ``width`` pixels; empty if not even that fits."""
    if font.getlength(text) <= width:
        return text
    for end in range(len(text) - 1, -1, -1):
        cut = text[:end].rstrip() + _ELLIPSIS
        if font.getlength(cut) <= width:
            return cut
    return ""


def draw_missing(size: Size, reason: str, typography: Typography) -> Image.Image:
    """Draw a hatched box for a missing image, with the reason as wrapped text.

    Args:
        size: the size of the box.
        reason: why the image is missing.
        typography: the fonts of the grid.
    """
    font = typography.label
    letters = round(font.size)
    image = Image.new("RGB", (size.width, size.height), _BOX)
    draw = ImageDraw.Draw(image)
    for x in range(-size.height, size.width, letters):
        draw.line((x, size.height, x + size.height, 0), fill=_HATCH, width=max(1, letters // 12))
    draw.rectangle((0, 0, size.width - 1, size.height - 1), outline=_HATCH, width=max(1, letters // 12))
    height = round(letters * 1.4)
    lines = wrap(printable(reason, _LABEL_LIMIT), font, size.width - 4 * letters)
    lines = lines[: max(0, (size.height - 2 * letters) // height)]
    if not lines:
        return image
    widest = math.ceil(max(map(font.getlength, lines)))
    left, top = (size.width - widest) // 2, (size.height - height * len(lines)) // 2
    draw.rectangle((left - letters, top - letters // 2, left + widest + letters, top + height * len(lines)), fill=_BOX)
    for index, line in enumerate(lines):
        middle = top + index * height + height / 2
        draw.text((size.width / 2, middle), line, font=font, fill=_PALE, anchor="mm")
    return image


def wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Return text in lines of at most ``width`` pixels; words that are too long are shortened or left out."""
    lines: list[str] = []
    for word in (shorten(word, font, width) for word in text.split()):
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        elif word:
            lines.append(word)
    return lines


def write_line(
    draw: ImageDraw.ImageDraw, box: Box, text: str, font: ImageFont.FreeTypeFont, *, pale: bool = False
) -> None:
    """Draw one line of text on the base line of the box."""
    colour = _PALE if pale else _STRONG
    draw.text((box.x, box.y + round(font.size * 0.93)), text, font=font, fill=colour, anchor="ls")


def new_canvas(size: Size) -> Image.Image:
    """Return an empty sheet."""
    return Image.new("RGB", (size.width, size.height), BACKGROUND)


def encode(image: Image.Image, origin: Image.Exif, *, quality: int | None) -> bytes:
    """Return the image as WebP: the same pixels and origin give the same bytes.

    Args:
        image: RGB, at most 16,383 pixels a side.
        origin: a note of the measurements that it shows.
        quality: 0 to 100; None for lossless.

    Raises:
        OutputError: the encoder refuses the image.
    """
    stream = BytesIO()
    try:
        if quality is None:
            image.save(stream, "WEBP", lossless=True, method=_LOSSLESS_METHOD, exif=origin)
        else:
            image.save(stream, "WEBP", quality=quality, method=_LOSSY_METHOD, exif=origin)
    except (OSError, ValueError) as error:
        raise OutputError(f"{image.width}x{image.height} pixels cannot be written as WebP: {error}") from error
    return stream.getvalue()


def _font(letters: int) -> ImageFont.FreeTypeFont:
    # Importing matplotlib would take a moment and read its configuration.
    package = importlib.util.find_spec("matplotlib")
    for folder in (package.submodule_search_locations if package is not None else None) or ():
        file = Path(folder, "mpl-data", "fonts", "ttf", "DejaVuSans.ttf")
        if file.is_file():
            # The other engine is not installed everywhere, and gives slightly different text.
            return ImageFont.truetype(str(file), letters, layout_engine=ImageFont.Layout.BASIC)
    raise DependencyError("DejaVuSans.ttf is missing", "Install matplotlib again; it includes the font.")
