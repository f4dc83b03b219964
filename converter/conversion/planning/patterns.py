"""The patterns by which SDNQ's configuration names modules, matched as SDNQ does and in bounded time.

SDNQ gives a pattern with a star to ``re`` (``sdnq.utils.check_param_name_in``). The author of a checkpoint writes its
patterns too, and a regular expression can run for ever. So patterns of words, dots and stars are matched here, and
others are given to ``re`` only if it has few ways to try.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from functools import lru_cache

#: Longest pattern that is matched; names of modules have a hundred characters.
_LONGEST_PLAIN, _LONGEST_EXPRESSION = 1000, 200
#: Most stars and alternatives of a regular expression.
_MOST_STARS, _MOST_BARS = 3, 6
#: Most ways in which ``re`` may have to try a regular expression on one name; a million take about ten milliseconds.
_MOST_TRIALS = 1_000_000


def matching_pattern(name: str, patterns: Iterable[str]) -> str | None:
    """The first of SDNQ's patterns that matches a name; they are not globs.

    ``.x`` is a prefix of the name; a bare word is one of its dotted components; a pattern with ``*`` is a kind of
    regular expression, anchored at the start. Patterns that ``is_judged`` refuses match nothing.
    """
    components = name.split(".")
    for pattern in patterns:
        if pattern.startswith("."):
            if name.startswith(pattern[1:]):
                return pattern
        elif name == pattern or pattern in components or ("*" in pattern and _matches(pattern, name)):
            return pattern
    return None


def is_judged(pattern: str, longest_name: int = 0) -> bool:
    """Whether a pattern can be matched against names of so many characters in bounded time."""
    if "*" not in pattern or pattern.startswith(".") or _pieces(pattern) is not None:
        return True
    return _expression(pattern) is not None and _trials(pattern, longest_name) <= _MOST_TRIALS


def _matches(pattern: str, name: str) -> bool:
    pieces = _pieces(pattern)
    if pieces is None:
        expression = _expression(pattern)
        if expression is None or _trials(pattern, len(name)) > _MOST_TRIALS:
            return False
        return expression.match(name) is not None
    # In ``re`` a dot matches anything except the end of a line, so that nothing matches after one.
    name = name.partition("\n")[0]
    # Pieces have a fixed length, and nothing has to match at the end: the leftmost match leaves most to the others.
    found = pieces[0].match(name)
    for piece in pieces[1:]:
        if found is None:
            return False
        found = piece.search(name, found.end())
    return found is not None


@lru_cache(maxsize=4096)
def _pieces(pattern: str) -> tuple[re.Pattern[str], ...] | None:
    """The text between the stars of a pattern of words, dots and stars; None for any other pattern."""
    if len(pattern) > _LONGEST_PLAIN or not re.fullmatch(r"[\w.*-]*", pattern):
        return None
    *before_stars, last = pattern.split("*")
    # SDNQ escapes a dot in front of a star; any other dot matches any character.
    texts = [piece[:-1] + "\\." if piece.endswith(".") else piece for piece in before_stars]
    return tuple(re.compile(text) for text in (*texts, last))


@lru_cache(maxsize=4096)
def _expression(pattern: str) -> re.Pattern[str] | None:
    """The regular expression that SDNQ makes of a pattern; None if it is invalid or could take too long.

    Repetition by other means than a star is refused. A star always becomes ``.*``, so that no group repeats.
    """
    if (
        len(pattern) > _LONGEST_EXPRESSION
        or re.search(r"[+?{]|\\\d", pattern)
        or pattern.count("*") > _MOST_STARS
        or pattern.count("|") > _MOST_BARS
    ):
        return None
    try:
        with warnings.catch_warnings():
            # Python warns of syntax that a later version may read differently; SDNQ uses this version too.
            warnings.simplefilter("ignore")
            return re.compile(pattern.replace(".*", "\\.*").replace("*", ".*"))
    except re.error:
        return None


def _trials(pattern: str, length: int) -> int:
    """The number of ways in which ``re`` may try a pattern on a name: ends of stars, and alternatives."""
    return int(max(1, length) ** pattern.count("*")) << pattern.count("|")
