"""Check with the program tesseract whether texts are readable in an image."""

from __future__ import annotations

import io
import math
import os
import subprocess
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from converter.errors import printable, reason_of
from converter.measurement.comparison.perceptual import NotMeasured
from converter.measurement.comparison.substring import character_error_rate
from converter.threads import run_in_threads

PROGRAM = "tesseract"
#: Modes of tesseract: fully automatic, one block of text, and sparse text anywhere, such as signs in a scene.
PAGE_MODES = (3, 6, 11)
#: Time limit in seconds for one image in one mode.
TIME_LIMIT = 120.0
#: Highest character error rate of a legible string: one letter of five.
LEGIBLE = 0.2
#: Small images are enlarged to at least this many pixels on the longer side; tesseract needs letters of about 20
#: pixels.
_LEAST_SIDE = 1440
_MOST_TIMES = 4
#: Languages of tesseract, by the script in a character's Unicode name.
_LANGUAGES = {"LATIN": "eng", "CYRILLIC": "rus"}


@dataclass(frozen=True)
class TextReader:
    """Tesseract, and the languages that it can read."""

    version: str
    languages: frozenset[str]

    def read(self, image: NDArray[np.uint8], language: str) -> tuple[str, ...]:
        """Recognize the text of an image.

        Args:
            image: levels of shape (height, width, 3).
            language: tesseract's names, such as ``eng`` or ``eng+rus``.

        Returns:
            The text in each of :data:`PAGE_MODES`.

        Raises:
            NotMeasured: the language is not installed, or tesseract fails or takes too long.
        """
        missing = set(language.split("+")) - self.languages
        if missing:
            raise NotMeasured(f"tesseract lacks the language data of {', '.join(sorted(missing))}")
        content = _enlarged(image)

        def read_page(mode: int) -> str:
            return _run((PROGRAM, "stdin", "stdout", "-l", language, "--psm", str(mode)), content)

        workers = min(len(PAGE_MODES), len(os.sched_getaffinity(0)))
        return tuple(run_in_threads(read_page, PAGE_MODES, workers=workers, name="tesseract", refresh=lambda: None))

    def error_rates(self, image: NDArray[np.uint8], required: Sequence[str]) -> tuple[float, ...]:
        """Compute the character error rate of each required string: the lowest of all modes.

        Args:
            image: levels of shape (height, width, 3).
            required: strings that are not blank.

        Raises:
            NotMeasured: as :meth:`read`.
        """
        pages = self.read(image, language_of(required))
        return tuple(min(character_error_rate(string, page) for page in pages) for string in required)

    def method(self) -> str:
        """Return the exact definition of the figure."""
        modes = ", ".join(map(str, PAGE_MODES))
        return (
            "character error rate: edits between the required string and the nearest substring of the recognized text, "
            "by the string's length, after NFC, case folding, plain quotes and dashes and single spaces; the least of "
            f"page modes {modes}; longer side enlarged by a whole factor up to {_MOST_TIMES} to {_LEAST_SIDE} pixels "
            "or more (Lanczos); languages by the strings' scripts; a long text holds something like a short string by "
            f"chance; legible: at most {LEGIBLE}; {self.version}"
        )


def find_reader() -> TextReader:
    """Find tesseract, its version and its languages.

    Raises:
        NotMeasured: it is not installed, or does not work.
    """
    version = _run((PROGRAM, "--version")).split("\n", 1)[0].strip()
    lines = _run((PROGRAM, "--list-langs")).splitlines()
    return TextReader(printable(version), frozenset(line.strip() for line in lines[1:]))


def language_of(strings: Iterable[str]) -> str:
    """Return tesseract's names of the languages of strings, by their scripts; English if they contain no letters."""
    names = (unicodedata.name(character, "").split(" ")[0] for string in strings for character in string)
    found = {_LANGUAGES[name] for name in names if name in _LANGUAGES}
    return "+".join(sorted(found)) or "eng"


def _enlarged(image: NDArray[np.uint8]) -> bytes:
    """Return a PNG of the image, enlarged by a factor that depends on its size alone."""
    picture = Image.fromarray(image)
    times = min(_MOST_TIMES, math.ceil(_LEAST_SIDE / max(picture.size)))
    if times > 1:
        picture = picture.resize((picture.width * times, picture.height * times), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    picture.save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def _run(arguments: Sequence[str], content: bytes = b"") -> str:
    # One thread gives the same text as several, and is faster: tesseract's threads mostly wait for each other.
    environment = {**os.environ, "OMP_THREAD_LIMIT": "1"}
    try:
        done = subprocess.run(
            arguments, input=content, capture_output=True, check=False, timeout=TIME_LIMIT, env=environment
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
