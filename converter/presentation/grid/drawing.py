"""Drawing: titles and labels beside the cells, boxes where an image is missing, and the canvas as WebP."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from converter.errors import DependencyError, OutputError, printable
from converter.presentation.grid.cells import Row
from converter.presentation.grid.layout import Box, Measures, SheetLayout, Size

#: A canvas that leaves photographs their contrast, and three greys of falling weight.
BACKGROUND = (250, 250, 248)
_STRONG = (38, 38, 36)
_PALE = (128, 128, 124)
_HATCH = (226, 226, 222)
_BOX = (240, 240, 237)
#: Characters of a label at most, before it is measured.
_LABEL_LIMIT = 300
_ELLIPSIS = "…"
#: The one of libwebp's methods with the smallest files: photographs at quality 98 take 3 to 5 % less than with the
#: default, 4, at the same mean error and in twice the time; 4.1 megapixels take 0.6 to 1.4 s.
_LOSSY_METHOD = 6
#: libwebp's default; the next ones take several times as long for a few percent.
_LOSSLESS_METHOD = 4


class Typography:
    """The fonts of a grid.

    Args:
        measures: of the grid.

    Raises:
        DependencyError: the font is not there.
    """

    def __init__(self, measures: Measures) -> None:
        self.label = _font(measures.label)
        self.title = _font(measures.title)


def draw_texts(
    canvas: Image.Image, layout: SheetLayout, typography: Typography, titles: tuple[str, str], rows: Sequence[Row]
) -> None:
    """Draw column titles and row labels; cells are to be pasted after it, so that no letter can reach into one.

    Args:
        canvas: an RGB image of the size of the layout.
        layout: of this sheet.
        typography: fonts of the grid.
        titles: of the columns.
        rows: of this sheet.
    """
    draw = ImageDraw.Draw(canvas)
    for box, title in zip(layout.titles, titles, strict=True):
        _write(draw, box, shorten(printable(title, _LABEL_LIMIT), typography.title, box.width), typography.title)
    for row, place in zip(rows, layout.rows, strict=True):
        name, seed = label_of(row, typography.label, place.label.width)
        _write(draw, place.label, name, typography.label)
        indent = math.ceil(typography.label.getlength(name))
        box = Box(place.label.x + indent, place.label.y, place.label.width - indent, place.label.height)
        _write(draw, box, seed, typography.label, _PALE)


def label_of(row: Row, font: ImageFont.FreeTypeFont, width: int) -> tuple[str, str]:
    """The label of a row in two parts: what was drawn, and the seed.

    Args:
        row: what to name.
        font: what it will be drawn in.
        width: pixels that both parts together may take; the scenario is shortened first.
    """
    start, end = f"{printable(row.id)} · ", f" · seed {printable(str(row.seed))}"
    scenario = printable(row.scenario, _LABEL_LIMIT)
    # Each part is drawn from a whole pixel on.
    left = width - 1 - font.getlength(end)
    if font.getlength(start + _ELLIPSIS) <= left:
        return start + shorten(scenario, font, left - font.getlength(start)), end
    return shorten(start + scenario + end, font, width), ""


def shorten(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """Text that is at most so many pixels wide; what was cut off leaves an ellipsis. Empty if not even that fits."""
    if font.getlength(text) <= width:
        return text
    for end in range(len(text) - 1, -1, -1):
        cut = text[:end].rstrip() + _ELLIPSIS
        if font.getlength(cut) <= width:
            return cut
    return ""


def draw_missing(size: Size, reason: str, typography: Typography) -> Image.Image:
    """A hatched box in the place of an image, with the reason as wrapped text.

    Args:
        size: of the box.
        reason: why there is no image.
        typography: fonts of the grid.
    """
    font = typography.label
    letters = round(font.size)
    image = Image.new("RGB", (size.width, size.height), _BOX)
    draw = ImageDraw.Draw(image)
    for x in range(-size.height, size.width, max(6, letters)):
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
        box = Box(0, top + index * height, size.width, height)
        draw.text((box.width / 2, box.y + height / 2), line, font=font, fill=_PALE, anchor="mm")
    return image


def wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Text in lines of at most so many pixels; words that are too long are shortened, or left out if they must be."""
    lines: list[str] = []
    for word in (shorten(word, font, width) for word in text.split()):
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        elif word:
            lines.append(word)
    return lines


def new_canvas(size: Size) -> Image.Image:
    """An empty sheet."""
    return Image.new("RGB", (size.width, size.height), BACKGROUND)


def encode(image: Image.Image, origin: Image.Exif, *, quality: int | None) -> bytes:
    """The image as WebP: the same pixels of the same origin give the same bytes.

    Args:
        image: RGB, at most 16,383 pixels a side.
        origin: what the file says of what it was drawn from.
        quality: 0 to 100; None for lossless.

    Raises:
        OutputError: the encoder refuses it.
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
    # Found without importing it, which would take a moment and read its configuration.
    package = importlib.util.find_spec("matplotlib")
    places = (package.submodule_search_locations if package is not None else None) or ()
    for place in places:
        file = Path(place, "mpl-data", "fonts", "ttf", "DejaVuSans.ttf")
        if file.is_file():
            # The other engine is not there on every machine, and sets text a little differently.
            return ImageFont.truetype(str(file), letters, layout_engine=ImageFont.Layout.BASIC)
    raise DependencyError("DejaVuSans.ttf is not there", "Install matplotlib again: it comes with it.")


def _write(
    draw: ImageDraw.ImageDraw,
    box: Box,
    text: str,
    font: ImageFont.FreeTypeFont,
    colour: tuple[int, int, int] = _STRONG,
) -> None:
    """Draw one line, its letters on the same base line whatever they are."""
    draw.text((box.x, box.y + round(font.size * 0.93)), text, font=font, fill=colour, anchor="ls")
