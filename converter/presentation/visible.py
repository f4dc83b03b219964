"""Text from elsewhere, with everything in it that cannot be seen written as escapes."""

from __future__ import annotations

import re
import unicodedata

#: Invisible characters that change how others are shown: marks of direction, spaces without width, and the tags
#: that spell letters invisibly.
_INVISIBLE = re.compile(
    "[\u00ad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)
#: Line breaks and tabs, which stay.
SEPARATORS = "\n\r\t\u2028\u2029"


def visible(text: str) -> str:
    """The text with all that cannot be seen, or would hide something, as escapes such as ``\\u202e``.

    Line breaks and tabs stay.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(character if _is_harmless(character) else ascii(character)[1:-1] for character in text)


def one_line(text: str) -> str:
    """The visible text in one line, with single spaces."""
    return " ".join(re.sub(f"[{SEPARATORS}]", " ", visible(text)).split())


def _is_harmless(character: str) -> bool:
    if character in SEPARATORS:
        return True
    # Cc: control characters; Cs: halves of a character; Cn: no character at all.
    return unicodedata.category(character) not in ("Cc", "Cs", "Cn") and not _INVISIBLE.match(character)
