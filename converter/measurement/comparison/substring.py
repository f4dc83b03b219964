"""Measure how closely a text contains a string."""

from __future__ import annotations

import unicodedata

import numpy as np
from numpy.typing import NDArray

#: Characters that a font, a model or a reader may use for plain ones; they do not count as errors.
_PLAIN = str.maketrans(
    {
        **dict.fromkeys("\u2018\u2019\u201a\u201b\u2032\u00b4`", "'"),
        **dict.fromkeys("\u201c\u201d\u201e\u201f\u00ab\u00bb\u2033", '"'),
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212", "-"),
        # Russian texts usually omit the dots, and so does tesseract.
        "\u0451": "\u0435",
    }
)


def normalize(text: str) -> str:
    """Normalize a text: NFC, no case, plain quotes and dashes, one space between words, the Russian letter io as ie."""
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    return " ".join(folded.translate(_PLAIN).split())


def substring_distance(string: str, text: str) -> int:
    """Edits that turn some substring of the text into the string: Sellers' algorithm, "The theory and computation of
    evolutionary distances: pattern recognition", Journal of Algorithms 1 (1980).

    Args:
        string: what to look for.
        text: where to look; the substring may begin and end anywhere in it, and may be empty.

    Returns:
        The lowest number of characters inserted, deleted or replaced; at most the length of the string.
    """
    return int(_distances(string, text, np.zeros(len(text) + 1, dtype=np.int64)).min())


def nearest_substring(string: str, text: str) -> str:
    """Find the part of a text that is nearest to a string, as :func:`character_error_rate` compares them.

    Args:
        string: what to look for.
        text: where to look.

    Returns:
        The first such part with single spaces, in the text's own letters where normalizing them keeps their number;
        empty if nothing of the text is like the string.
    """
    wanted, shown = normalize(string), " ".join(unicodedata.normalize("NFC", text).split())
    letters = normalize(text)
    end = int(_distances(wanted, letters, np.zeros(len(letters) + 1, dtype=np.int64)).argmin())
    # From its end backwards, the part begins where the distance is least.
    backwards = letters[:end][::-1]
    length = int(_distances(wanted[::-1], backwards, np.arange(end + 1)).argmin())
    found = slice(end - length, end)
    return (shown if len(shown) == len(letters) else letters)[found].strip()


def _distances(string: str, text: str, row: NDArray[np.int64]) -> NDArray[np.int64]:
    """Edits between the string and the nearest substring that ends at each position of the text.

    ``row`` has the cost of beginning at each position, of shape (length of the text + 1,).
    """
    letters = _codes(text)
    positions = np.arange(len(letters) + 1)
    for letter in _codes(string):
        nearest = row + 1
        nearest[1:] = np.minimum(nearest[1:], row[:-1] + (letters != letter))
        # Skipping letters of the text costs one each: a running minimum of the cost minus the position.
        row = np.minimum.accumulate(nearest - positions) + positions
    return row


def character_error_rate(required: str, text: str) -> float:
    """Edits between a required string and the substring of the text that is nearest to it, by the string's length.

    Both are normalized first. A long text contains something like any short string by chance, so the rate of a string
    that is missing may be well below 1.

    Args:
        required: the expected string.
        text: the recognized text.

    Returns:
        0 if the text contains the string, 1 if it contains nothing of it.

    Raises:
        ValueError: the string is blank.
    """
    wanted = normalize(required)
    if not wanted:
        raise ValueError("an empty string cannot be searched for")
    return substring_distance(wanted, normalize(text)) / len(wanted)


def _codes(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
