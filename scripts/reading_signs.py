"""Signs with known damage, drawn from a seed: what is required, what is really shown, and the picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TypeVar

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

Pixels = NDArray[np.uint8]
Chance = np.random.Generator
Item = TypeVar("Item")

#: Texts by kind. A line break is one on the sign; a required text has a space there.
TEXTS: dict[str, tuple[str, ...]] = {
    "English": ("WARM BREAD", "OPEN LATE"),
    "accented": ("CAFÉ MUÑOZ", "STRAßE ÜBER"),
    "digits": ("GATE 407", "18:45"),
    "Russian": ("ТЁПЛЫЙ ХЛЕБ", "АПТЕКА"),
    "mixed": ("КАФЕ CITY", "ВХОД B 12"),
    "small": ("BAKERY", "EXIT 7"),
    "tilted": ("FRESH FISH", "TAXI STAND"),
    "two lines": ("BOOK\nMARKET", "NO\nENTRY"),
    "vertical": ("HOTEL", "PARKING"),
}
#: Letters that replace one of the same script.
_LETTERS = {"LATIN": "ABDEFGHKLMNPRSTUVXZ", "CYRILLIC": "БГДЖИЛПУФЦЧШЭЮЯ", "DIGIT": "0123456789"}
#: Colours of board and letters.
_COLOURS = (((240, 232, 210), (40, 30, 25)), ((24, 60, 120), (250, 245, 225)), ((190, 40, 35), (255, 250, 240)))
_SIDES = {"small": (128, 128)}
_SIZE = (448, 320)


@dataclass(frozen=True)
class Sign:
    """A picture of a sign."""

    kind: str
    damage: str
    required: str
    shown: str
    image: Pixels


def signs(seed: int) -> Iterator[Sign]:
    """Draw every text with every damage.

    Args:
        seed: of colours, places, damage and scenes.
    """
    cases = [(kind, *case) for kind, texts in TEXTS.items() for case in product(DAMAGES.items(), texts)]
    for number, (kind, (damage, change), text) in enumerate(cases):
        chance = np.random.default_rng([seed, number])
        shown = change.letters(text, chance)
        picture = change.picture(_draw(kind, shown, chance), chance)
        yield Sign(kind, damage, " ".join(text.split()), " ".join(shown.split()), np.asarray(picture))


@dataclass(frozen=True)
class Damage:
    """What is changed in the text, and in the picture."""

    letters: Callable[[str, Chance], str] = lambda text, _chance: text
    picture: Callable[[Image.Image, Chance], Image.Image] = lambda picture, _chance: picture


def _replaced(text: str, chance: Chance) -> str:
    place = _place(text, chance)
    script = next(name for name, letters in _LETTERS.items() if _same_script(text[place], letters))
    other = _pick(chance, [letter for letter in _LETTERS[script] if letter != text[place]])
    return text[:place] + other + text[place + 1 :]


def _missing(text: str, chance: Chance) -> str:
    place = _place(text, chance)
    return text[:place] + text[place + 1 :]


def _place(text: str, chance: Chance) -> int:
    return _pick(chance, [place for place, letter in enumerate(text) if letter.isalnum()])


def _same_script(letter: str, letters: str) -> bool:
    return letter.isdigit() == letters.isdigit() and ("\u0400" <= letter <= "\u04ff") == (letters[0] >= "\u0400")


def _blurred(picture: Image.Image, _chance: Chance) -> Image.Image:
    return picture.filter(ImageFilter.GaussianBlur(max(picture.size) / 160))


def _noisy(picture: Image.Image, chance: Chance) -> Image.Image:
    noise = chance.normal(0, 35, (picture.height, picture.width, 3))
    return Image.fromarray(np.clip(np.asarray(picture) + noise, 0, 255).astype(np.uint8))


DAMAGES: dict[str, Damage] = {
    "none": Damage(),
    "letter replaced": Damage(letters=_replaced),
    "letter missing": Damage(letters=_missing),
    "blurred": Damage(picture=_blurred),
    "noise": Damage(picture=_noisy),
}


def _draw(kind: str, text: str, chance: Chance) -> Image.Image:
    """Draw a wall, another sign beside it, and the board with the text."""
    size = _SIDES.get(kind, _SIZE)
    scene = _wall(size, chance)
    height = {"small": 20, "vertical": 40}.get(kind, 34)
    board = _board(text, height, chance)
    if kind == "tilted":
        board = board.rotate(_pick(chance, [-25, -15, 15, 25]), Image.Resampling.BICUBIC, expand=True)
    elif kind == "vertical":
        board = board.transpose(_pick(chance, [Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_270]))
    left = _within(chance, 4, max(4, size[0] - board.width - 4))
    top = _within(chance, 4, max(4, (size[1] - board.height) // 2))
    scene.paste(board.convert("RGB"), (left, top), board.getchannel("A"))
    if kind != "small":
        other = _board("MUSIC", 26, chance)
        place = (_within(chance, 4, size[0] - other.width - 4), size[1] - other.height - 6)
        if kind != "vertical":
            scene.paste(other.convert("RGB"), place, other.getchannel("A"))
    return scene


def _wall(size: tuple[int, int], chance: Chance) -> Image.Image:
    """A wall that grows darker downwards, with windows."""
    light = np.linspace(200, 120, size[1])[:, None, None] * np.array([1.0, chance.uniform(0.8, 1), 0.85])
    wall = Image.fromarray(np.broadcast_to(light, (size[1], size[0], 3)).astype(np.uint8))
    pen = ImageDraw.Draw(wall)
    for _ in range(5):
        left, top = _within(chance, 0, size[0]), _within(chance, 0, size[1])
        pen.rectangle((left, top, left + size[0] // 9, top + size[1] // 5), (70, 90, 110), (40, 40, 45), 2)
    return wall


def _board(text: str, height: int, chance: Chance) -> Image.Image:
    """A board of the text's size with its letters in the middle, RGBA."""
    face = _pick(chance, ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSerif.ttf"))
    font = ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", face)), height)
    left, top, right, bottom = ImageDraw.Draw(Image.new("RGB", (1, 1))).multiline_textbbox((0, 0), text, font)
    colour, ink = _pick(chance, _COLOURS)
    board = Image.new("RGBA", (round(right - left + height * 0.8), round(bottom - top + height * 0.8)), (*colour, 255))
    middle = (board.width / 2, board.height / 2)
    ImageDraw.Draw(board).multiline_text(middle, text, (*ink, 255), font, anchor="mm", align="center")
    return board


def _pick(chance: Chance, items: Sequence[Item]) -> Item:
    return items[int(chance.integers(len(items)))]


def _within(chance: Chance, least: int, most: int) -> int:
    return int(chance.integers(least, most, endpoint=True))
