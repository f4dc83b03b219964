"""Check whether texts are readable in an image. A string is read by one reader, which its characters decide."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from converter.errors import printable
from converter.measurement.comparison.perceptual import NotMeasured
from converter.measurement.comparison.rapidocr_reader import RapidOcrReader, load_rapidocr
from converter.measurement.comparison.reading_order import in_both_orders
from converter.measurement.comparison.substring import character_error_rate, nearest_substring
from converter.measurement.comparison.tesseract_reader import TesseractReader, find_tesseract, languages_of

#: Highest character error rate of a legible string: one letter of five.
LEGIBLE = 0.2
#: Maximum number of characters of a text that was read, as it is kept in the evidence.
MOST_READ = 200


@dataclass(frozen=True)
class Reading:
    """What was read of one required string; None where it was not measured."""

    error_rate: float | None = None
    """Character error rate, from 0 to 1."""
    text: str | None = None
    """The part of the recognized text that is nearest to the string, safe to show; empty if nothing is like it."""


@dataclass(frozen=True)
class Readers:
    """The readers that were found; at least one."""

    rapidocr: RapidOcrReader | None
    tesseract: TesseractReader | None
    reasons: Mapping[str, str]
    """Why one of them cannot be used, by name."""

    def assign(self, strings: Sequence[str]) -> list[tuple[str, list[str]]]:
        """Return groups of strings that are read together, each with the name of its reader.

        RapidOCR reads a string if its dictionary has every character, and tesseract any other, those of the same
        languages together. Without RapidOCR, tesseract reads every string, and the whole image at once.
        """
        groups = defaultdict[tuple[str, frozenset[str]], list[str]](list)
        for string in strings:
            if self.rapidocr is not None and self.rapidocr.can_read(string):
                groups[RapidOcrReader.name, frozenset()].append(string)
            else:
                groups[TesseractReader.name, languages_of(string)].append(string)
        return [(name, group) for (name, _languages), group in groups.items()]

    def read(self, name: str, image: NDArray[np.uint8], strings: Sequence[str]) -> list[Reading]:
        """Read an image, and look for strings in the text.

        Args:
            name: of the reader.
            image: levels of shape (height, width, 3).
            strings: strings that are not blank.

        Raises:
            NotMeasured: the reader was not found, or cannot read the image or these strings.
        """
        pages = self._pages(name, image, strings)
        return [_nearest(string, pages) for string in strings]

    def _pages(self, name: str, image: NDArray[np.uint8], strings: Sequence[str]) -> tuple[str, ...]:
        if name == RapidOcrReader.name and self.rapidocr is not None:
            return self.rapidocr.read(image)
        if name == TesseractReader.name and self.tesseract is not None:
            return self._pages_of_tesseract(self.tesseract, image, languages_of(*strings))
        raise NotMeasured(self.reasons[name])

    def _pages_of_tesseract(
        self, tesseract: TesseractReader, image: NDArray[np.uint8], languages: frozenset[str]
    ) -> tuple[str, ...]:
        """Tesseract reads signs far better line by line, but does not find the lines of a scene itself."""
        if self.rapidocr is None:
            return tesseract.read(image, languages)
        found = self.rapidocr.find_lines(image)
        texts = tesseract.read_lines([each.strip for each in found], languages)
        return in_both_orders([replace(each.line, text=text) for each, text in zip(found, texts, strict=True)])

    def method(self) -> str:
        """Return the exact definition of the figure."""
        missing = [f"not used: {reason}" for reason in self.reasons.values()]
        if self.rapidocr is None or self.tesseract is None:
            ways = [reader.method() for reader in (self.rapidocr, self.tesseract) if reader is not None]
        else:
            choice = "RapidOCR finds the lines; it reads a string if its dictionary has every character, else tesseract"
            ways = [choice, self.rapidocr.method(), self.tesseract.line_method()]
        return (
            "character error rate: edits between the required string and the nearest substring of the recognized text, "
            "by the string's length, after NFC, case folding, plain quotes and dashes and single spaces; the least of "
            "the reader's page modes or orders of lines; a long text holds something like a short string by chance; "
            f"legible: at most {LEGIBLE}; {'; '.join([*ways, *missing])}"
        )


def find_readers() -> Readers:
    """Find RapidOCR and tesseract.

    Raises:
        NotMeasured: there is neither.
    """
    rapidocr = tesseract = None
    reasons = {}
    try:
        rapidocr = load_rapidocr()
    except NotMeasured as reason:
        reasons[RapidOcrReader.name] = str(reason)
    try:
        tesseract = find_tesseract()
    except NotMeasured as reason:
        reasons[TesseractReader.name] = str(reason)
    if rapidocr is None and tesseract is None:
        raise NotMeasured("; ".join(reasons.values()))
    return Readers(rapidocr, tesseract, reasons)


def _nearest(string: str, pages: Sequence[str]) -> Reading:
    """The reading of the page with the least errors; of the first, if there are several."""
    rates = [character_error_rate(string, page) for page in pages]
    least = min(rates)
    return Reading(least, printable(nearest_substring(string, pages[rates.index(least)]), MOST_READ))
