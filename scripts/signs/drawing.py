"""Pictures of signs, drawn with Pillow: the truth that the model learns from.

Every letter has a slot of 16 by 32 pixels, which are two image tokens of the transformer.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from scripts.signs.vocabulary import COLORS, Sign

#: Pixels per side of a picture.
SIDE = 128
SLOT_WIDTH, SLOT_HEIGHT = 16, 32
_FONT_SIZE = 26
#: Pixels from the top of a slot to the base line of its letter, so that capitals stand in its middle.
_BASE_LINE = 26
#: Pixels of the plate to the sides of its slots, and above and below them, where letters are lower than their slots.
_MARGIN_X, _MARGIN_Y = 8, 1
_HORIZON = 84
_POST = (96, 84, 72)
#: Colours of the scenes: a plain wall, or what is above and below the horizon.
_WALLS = {"grey wall": (128, 128, 128), "pink wall": (226, 160, 176), "brown wall": (118, 78, 48)}
_VIEWS = {
    "beach": ((150, 205, 236), (226, 200, 140)),
    "field": ((120, 180, 240), (96, 168, 72)),
    "snow": ((176, 190, 210), (234, 238, 244)),
    "street": ((204, 198, 186), (72, 72, 78)),
    "night": ((22, 26, 62), (44, 40, 48)),
}
_MOON = (104, 8, 120, 24)
_MOONLIGHT = (240, 228, 150)


def draw_sign(sign: Sign) -> Image.Image:
    """The picture of a sign, RGB, 128 pixels per side."""
    image = Image.new("RGB", (SIDE, SIDE), _WALLS.get(sign.scene, (0, 0, 0)))
    draw = ImageDraw.Draw(image)
    widest = max(map(len, sign.lines))
    left = SLOT_WIDTH * _first_slot(widest, sign)
    top = (SIDE - SLOT_HEIGHT * len(sign.lines)) // 2
    bottom = top + SLOT_HEIGHT * len(sign.lines)
    if sign.scene in _VIEWS:
        above, below = _VIEWS[sign.scene]
        draw.rectangle((0, 0, SIDE, _HORIZON - 1), above)
        draw.rectangle((0, _HORIZON, SIDE, SIDE), below)
        post = SIDE // 2 if sign.is_centred else left + SLOT_WIDTH
        draw.rectangle((post - 4, bottom, post + 3, SIDE - 8), _POST)
    if sign.scene == "night":
        draw.ellipse(_MOON, _MOONLIGHT)
    plate = (left - _MARGIN_X, top - _MARGIN_Y, left + SLOT_WIDTH * widest + _MARGIN_X - 1, bottom + _MARGIN_Y - 1)
    draw.rounded_rectangle(plate, 5, COLORS[sign.plate], COLORS[sign.ink], 2)
    for row, line in enumerate(sign.lines):
        for column, letter in enumerate(line, _first_slot(len(line), sign)):
            middle = SLOT_WIDTH * column + SLOT_WIDTH // 2
            draw.text((middle, top + SLOT_HEIGHT * row + _BASE_LINE), letter, COLORS[sign.ink], _font(), "ms")
    return image


def _first_slot(letters: int, sign: Sign) -> int:
    """The column of the first letter of a line; in a centred one of odd length, half a slot left of the middle.

    Where lines begin at the left, a letter of the prompt has its column: that is far easier to learn.
    """
    return (SIDE // SLOT_WIDTH - letters) // 2 if sign.is_centred else 1


@cache
def _font() -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(
        Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSansMono-Bold.ttf", _FONT_SIZE
    )
