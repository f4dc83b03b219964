"""Pictures of signs, and a program in place of tesseract, for tests of what is read in images."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from tests.pictures import Pixels


def sign(text: str, *, size: int = 24, angle: float = 0, shape: tuple[int, int] = (256, 96)) -> Pixels:
    """A board with a text in its middle, turned by degrees."""
    font = ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), size)
    board = Image.new("RGB", shape, (205, 190, 160))
    middle = (shape[0] / 2, shape[1] / 2)
    ImageDraw.Draw(board).multiline_text(middle, text, fill=(35, 25, 20), font=font, anchor="mm", align="center")
    return np.asarray(board.rotate(angle, Image.Resampling.BICUBIC, expand=True, fillcolor=(205, 190, 160)))


def plant_program(folder: Path, monkeypatch: pytest.MonkeyPatch, language: str, line: str) -> None:
    """A tesseract that knows one language, and does what the line says when it is given an image."""
    program = folder / "tesseract"
    program.write_text(f'#!/bin/sh\ncase $1 in --*) printf "tesseract 9\\n {language}\\n";; *) {line};; esac\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
