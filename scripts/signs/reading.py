"""Read pictures with RapidOCR."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from converter.measurement.comparison.substring import character_error_rate, normalize
from scripts.signs.vocabulary import Sign

#: Pictures are enlarged before they are read: the reader was made for larger letters.
_TIMES = 4
#: Highest character error rate of a legible text, as in ``lensconv compare``.
LEGIBLE = 0.2


@dataclass(frozen=True)
class Reading:
    """What was read from a picture, and what should have been."""

    required: str
    found: str

    @property
    def error_rate(self) -> float:
        """The character error rate, from 0 to 1."""
        return character_error_rate(self.required, self.found)

    @property
    def is_exact(self) -> bool:
        """Whether the picture says the text and nothing else; spaces do not count."""
        return _letters(self.required) == _letters(self.found)


def read_signs(signs: Iterable[Sign], images: Iterable[Image.Image]) -> list[Reading]:
    """Read the picture of each sign."""
    return [Reading(sign.text, read_image(image)) for sign, image in zip(signs, images, strict=True)]


def read_image(image: Image.Image) -> str:
    """The text of an image, lines from top to bottom."""
    size = image.width * _TIMES, image.height * _TIMES
    pixels = np.asarray(image.resize(size, Image.Resampling.LANCZOS))
    result = _engine()(pixels[:, :, ::-1])
    lines = sorted(zip(result.boxes, result.txts, strict=True), key=_height) if result.txts else []
    return " ".join(text for _, text in lines)


def _height(line: tuple[Any, str]) -> float:
    return float(line[0][:, 1].mean())


def _letters(text: str) -> str:
    return normalize(text).replace(" ", "")


@cache
def _engine() -> Any:
    from rapidocr import RapidOCR

    return RapidOCR(params={"Global.log_level": "error", "EngineConfig.onnxruntime.intra_op_num_threads": 1})
