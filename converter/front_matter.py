"""The front matter of a model card: YAML between two lines of three dashes at its top."""

from __future__ import annotations

import re
from typing import Any

from converter.errors import printable

#: The first block between lines of three dashes, as huggingface_hub's REGEX_YAML_BLOCK and the Hub find it.
_FRONT_MATTER = re.compile(
    r"\A\s*---[ \t]*\r?\n(?P<yaml>.*?)(?:\r?\n)?^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE
)
#: Longest front matter that is parsed; a gallery of a hundred prompts is a tenth of it.
_MAXIMUM_CHARACTERS = 1_000_000


def split_card(text: str) -> tuple[str | None, str]:
    """The front matter of a card, without its dashes, and the rest; None where there is none."""
    found = _FRONT_MATTER.match(text)
    return (found["yaml"], text[found.end() :]) if found else (None, text)


def parse_front_matter(text: str) -> tuple[dict[str, Any], str]:
    """The values of a card's front matter, and why they cannot be read.

    Args:
        text: the whole card.

    Returns:
        The values by name, and an empty string; or no values, and what is wrong.
    """
    import yaml

    front, _ = split_card(text)
    if front is None:
        return {}, "it has no front matter, which begins and ends with a line of three dashes"
    if len(front) > _MAXIMUM_CHARACTERS:
        return {}, f"its front matter is longer than {_MAXIMUM_CHARACTERS} characters"
    try:
        content = yaml.safe_load(front)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 2}" if mark else ""
        reason = " ".join(str(getattr(error, "problem", None) or error).split())
        return {}, f"its front matter is not YAML{line}: {printable(reason)}"
    if not isinstance(content, dict):
        return {}, "its front matter is not a mapping of names to values"
    return {str(key): value for key, value in content.items()}, ""
