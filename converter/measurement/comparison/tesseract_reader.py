"""Read the text in an image with the program tesseract."""

from __future__ import annotations

import io
import math
import os
import subprocess
import time
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from converter.errors import printable, reason_of
from converter.measurement.comparison.perceptual import NotMeasured
from converter.threads import run_in_threads

PROGRAM = "tesseract"
#: Modes of tesseract: fully automatic, one block of text, and sparse text anywhere, such as signs in a scene.
PAGE_MODES = (3, 6, 11)
#: Mode for one line, and the height in pixels to which a line is scaled.
_LINE_MODE, _LINE_HEIGHT = 7, 48
#: Time limit in seconds for one image, all its modes or lines.
TIME_LIMIT = 120.0
#: Small images are enlarged to at least this many pixels on the longer side; tesseract needs letters of about 20
#: pixels.
_LEAST_SIDE = 1440
_MOST_TIMES = 4
#: Languages of tesseract, by the script in a character's Unicode name.
_LANGUAGES = {
    "ARABIC": "ara",
    "CJK": "chi_sim",
    "CYRILLIC": "rus",
    "DEVANAGARI": "hin",
    "GREEK": "ell",
    "HANGUL": "kor",
    "HEBREW": "heb",
    "HIRAGANA": "jpn",
    "KATAKANA": "jpn",
    "LATIN": "eng",
    "THAI": "tha",
}
#: Letters of Russian, as its data has them; other Cyrillic letters need the data of the whole script.
_RUSSIAN = frozenset("абвгдеёжзийклмнопрстуфхцчшщъыьэюя")


@dataclass(frozen=True)
class TesseractReader:
    """Tesseract, and the languages that it can read."""

    version: str
    languages: frozenset[str]
    name: ClassVar[str] = PROGRAM

    def read(self, image: NDArray[np.uint8], languages: frozenset[str]) -> tuple[str, ...]:
        """Recognize the text of an image.

        Args:
            image: levels of shape (height, width, 3).
            languages: what :func:`languages_of` returns for the strings that are looked for.

        Returns:
            The text in each of :data:`PAGE_MODES`.

        Raises:
            NotMeasured: a language is not installed, or tesseract fails or takes too long.
        """
        content = _enlarged(image)
        return tuple(self._recognize([(mode, content) for mode in PAGE_MODES], languages))

    def read_lines(self, strips: Sequence[Image.Image], languages: frozenset[str]) -> list[str]:
        """Recognize lines that were cut out of an image.

        Args:
            strips: upright lines.
            languages: as :meth:`read`.

        Raises:
            NotMeasured: as :meth:`read`.
        """
        return self._recognize([(_LINE_MODE, _prepared(strip)) for strip in strips], languages)

    def _recognize(self, images: Sequence[tuple[int, bytes]], languages: frozenset[str]) -> list[str]:
        """Recognize each image in its page mode."""
        if missing := languages - self.languages:
            raise NotMeasured(f"tesseract lacks the language data of {', '.join(sorted(missing))}")
        end = time.monotonic() + TIME_LIMIT

        def read(image: tuple[int, bytes]) -> str:
            mode, content = image
            arguments = (PROGRAM, "stdin", "stdout", "-l", "+".join(sorted(languages)), "--psm", str(mode))
            return _run(arguments, content, end - time.monotonic())

        workers = max(1, min(len(images), len(os.sched_getaffinity(0))))
        return run_in_threads(read, images, workers=workers, name="tesseract", refresh=lambda: None)

    def line_method(self) -> str:
        """How lines are recognized that were cut out of an image."""
        return (
            f"{self.version}: page mode {_LINE_MODE} for each line that was found, {_LINE_HEIGHT} pixels high "
            "(Lanczos), in greys that are stretched, dark on light; languages by the strings' scripts"
        )

    def method(self) -> str:
        """How a whole image is recognized."""
        modes = ", ".join(map(str, PAGE_MODES))
        return (
            f"{self.version}: page modes {modes}; longer side enlarged by a whole factor up to {_MOST_TIMES} to "
            f"{_LEAST_SIDE} pixels or more (Lanczos); languages by the strings' scripts"
        )


def find_tesseract() -> TesseractReader:
    """Find tesseract, its version and its languages.

    Raises:
        NotMeasured: it is not installed, or does not work.
    """
    version = _run((PROGRAM, "--version")).split("\n", 1)[0].strip()
    lines = _run((PROGRAM, "--list-langs")).splitlines()
    return TesseractReader(printable(version), frozenset(line.strip() for line in lines[1:]))


def languages_of(*strings: str) -> frozenset[str]:
    """Return the languages of strings, as tesseract calls them. Their scripts decide; without letters it is English.

    Letters that no language here has are looked for in the data of their script, such as Georgian or Cyrillic.
    """
    characters = {character for string in strings for character in unicodedata.normalize("NFC", string)}
    return frozenset(name for name in map(_language, characters) if name) or frozenset({"eng"})


def _language(character: str) -> str:
    """Name of the data that can read a character; empty if any can."""
    script = unicodedata.name(character, "").split(" ")[0]
    if script == "CYRILLIC" and character.lower() not in _RUSSIAN:
        return "Cyrillic"
    # Signs such as \u00b5 and \u00aa are letters to Unicode, too.
    is_stand_in = unicodedata.decomposition(character).startswith("<")
    is_letter = unicodedata.category(character) in ("Lu", "Ll", "Lo") and not is_stand_in
    return _LANGUAGES.get(script, script.title() if is_letter else "")


def _enlarged(image: NDArray[np.uint8]) -> bytes:
    """Return a PNG of the image, enlarged by a factor that depends on its size alone."""
    picture = Image.fromarray(image)
    times = min(_MOST_TIMES, math.ceil(_LEAST_SIDE / max(picture.size)))
    if times > 1:
        picture = picture.resize((picture.width * times, picture.height * times), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    picture.save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def _prepared(strip: Image.Image) -> bytes:
    """Return a PNG of a line as tesseract likes it: of a fixed height, dark letters on a light ground, a margin."""
    width = max(1, round(strip.width * _LINE_HEIGHT / strip.height))
    grey = ImageOps.autocontrast(strip.convert("L").resize((width, _LINE_HEIGHT), Image.Resampling.LANCZOS))
    if np.median(np.asarray(grey)) < 128:
        grey = ImageOps.invert(grey)
    framed = ImageOps.expand(grey, _LINE_HEIGHT // 3, int(np.median(np.asarray(grey))))
    stream = io.BytesIO()
    framed.save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def _run(arguments: Sequence[str], content: bytes = b"", seconds: float = TIME_LIMIT) -> str:
    # One thread gives the same text as several, and is faster: tesseract's threads mostly wait for each other.
    environment = {**os.environ, "OMP_THREAD_LIMIT": "1"}
    try:
        done = subprocess.run(
            arguments, input=content, capture_output=True, check=False, timeout=max(seconds, 0), env=environment
        )
    except subprocess.TimeoutExpired as error:
        raise NotMeasured(f"tesseract took longer than {TIME_LIMIT:g} s") from error
    except FileNotFoundError as error:
        raise NotMeasured("tesseract is not installed") from error
    except OSError as error:
        raise NotMeasured(f"tesseract cannot be started: {reason_of(error)}") from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        end = f"was ended by signal {-done.returncode}" if done.returncode < 0 else f"failed with {done.returncode}"
        raise NotMeasured(f"tesseract {end}" + (f": {printable(said[-1])}" if said else ""))
    return done.stdout.decode(errors="replace")
