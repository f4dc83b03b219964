"""Text of charts: how wide it is, and how to make it narrower.

Names come from files. Control characters are escaped, characters that the font lacks become boxes, dollar signs do not
start mathematics, and long names are cut.
"""

from __future__ import annotations

import unicodedata
from pathlib import Path

import matplotlib
from matplotlib.font_manager import FontProperties, get_font
from matplotlib.ft2font import LoadFlags

from converter.errors import printable
from converter.presentation.charts.style import TEXT_SIZE

#: Most characters of a name; its width is not enough of a limit, since combining marks have none.
LONGEST = 40
#: Replaces characters that the font lacks.
_BOX = "□"


def font(size: float = TEXT_SIZE, *, bold: bool = False) -> FontProperties:
    """Return DejaVu Sans, which matplotlib includes, so it is the same everywhere; it has Latin, Greek and Cyrillic."""
    return FontProperties(fname=str(_file(bold)), size=size)


def text_width(text: str, size: float = TEXT_SIZE, *, bold: bool = False) -> float:
    """Return the width of a line in pixels."""
    face = get_font(str(_file(bold)))
    face.set_size(size, 72)
    face.set_text(text, 0.0, flags=LoadFlags.NO_HINTING)
    # FreeType counts in 64ths.
    return float(face.get_width_height()[0]) / 64


def drawable(text: str, limit: int = LONGEST) -> str:
    """Return the text without anything that cannot be drawn, at most ``limit`` characters."""
    face = get_font(str(_file(bold=False)))
    composed = unicodedata.normalize("NFC", printable(text.strip(), limit))
    return "".join(character if face.get_char_index(ord(character)) else _BOX for character in composed)


def shorten(text: str, width: float) -> str:
    """Return the drawable text, cut so that it takes at most ``width`` pixels."""
    whole = drawable(text)
    for length in range(len(whole), 0, -1):
        cut = whole if length == len(whole) else whole[:length].rstrip("…") + "…"
        if text_width(cut) <= width:
            return cut
    return "…" if whole else ""


def wrap(text: str, width: float, size: float = TEXT_SIZE, *, bold: bool = False) -> list[str]:
    """Return lines of whole words that take at most ``width`` pixels each, unless a word is longer."""
    lines: list[str] = []
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and text_width(longer, size, bold=bold) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _file(bold: bool) -> Path:
    return Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf")
