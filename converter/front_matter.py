"""The front matter of a model card: YAML between two lines of three dashes at its top."""

from __future__ import annotations

import re
from typing import Any

import yaml

from converter.errors import printable

#: The first block between lines of three dashes, as huggingface_hub's REGEX_YAML_BLOCK and the Hub find it.
_FRONT_MATTER = re.compile(r"\A\s*---\r?\n(?P<yaml>.*?)(?:\r?\n)?^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
#: Longest front matter that is parsed; a gallery of a hundred prompts is a tenth of it.
_MAXIMUM_CHARACTERS = 1_000_000
#: The same with every alias replaced by what it stands for: a few lines can make it endless.
_MAXIMUM_EXPANSION = 3_000_000
#: Numbers of YAML 1.2, as the Hub's parser reads them, which are texts in YAML 1.1 and so to PyYAML.
_NUMBER = re.compile(r"[-+]?(0o[0-7]+|([0-9][0-9_]*(\.[0-9_]*)?|\.[0-9_]+)([eE][-+]?[0-9]+)?)$", re.ASCII)
_MERGE_TAG, _NUMBER_TAG = "tag:yaml.org,2002:merge", "!number"


class _Number(float):
    """A number that is shown as it is written."""

    _text: str

    def __new__(cls, text: str) -> _Number:
        plain = text.replace("_", "")
        number = super().__new__(cls, int(plain.replace("0o", ""), 8) if "0o" in plain else float(plain))
        number._text = text
        return number

    def __str__(self) -> str:
        return self._text


class _Loader(yaml.SafeLoader):
    """A loader with the rules of the Hub's parser, js-yaml, where they are stricter than PyYAML's.

    It also refuses aliases that make the content endless.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._sizes: dict[yaml.Node | None, int] = {}
        """Characters of each complete node with its aliases replaced."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        is_alias = self.check_event(yaml.AliasEvent)
        node = super().compose_node(parent, index)
        if node is not None and not is_alias:
            self._sizes[node] = self._measure(node)
        elif node not in self._sizes:
            raise _refusal("a value contains itself", parent)
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE_TAG]
        seen: set[str] = set()
        for key in keys:
            if key.value in seen:
                raise _refusal(f"{key.value} is given twice", key)
            seen.add(key.value)
        return node

    def _measure(self, node: yaml.Node) -> int:
        if isinstance(node, yaml.ScalarNode):
            return 1 + len(node.value)
        pairs = node.value if isinstance(node, yaml.MappingNode) else [node.value]
        size = 1 + sum(self._sizes[part] for parts in pairs for part in parts)
        if size > _MAXIMUM_EXPANSION:
            raise _refusal(f"its aliases stand for more than {_MAXIMUM_EXPANSION} characters", node)
        return size


def _refusal(problem: str, node: yaml.Node | None) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=None if node is None else node.start_mark)


# Resolvers of PyYAML come first, so that this one gets only what they leave.
_Loader.add_implicit_resolver(_NUMBER_TAG, _NUMBER, list("-+.0123456789"))
_Loader.add_constructor(_NUMBER_TAG, lambda _, node: _Number(node.value))


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
    front, _ = split_card(text)
    if front is None:
        return {}, "it has no front matter, which begins and ends with a line of three dashes"
    if len(front) > _MAXIMUM_CHARACTERS:
        return {}, f"its front matter is longer than {_MAXIMUM_CHARACTERS} characters"
    try:
        content = yaml.load(front, _Loader)  # noqa: S506 - a SafeLoader
    except (ArithmeticError, AttributeError, LookupError, TypeError):
        # PyYAML does not check values that have a tag or look like a date.
        return {}, "its front matter is not YAML: a value does not fit its tag"
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 2}" if mark else ""
        reason = " ".join(str(getattr(error, "problem", None) or error).split())
        return {}, f"its front matter is not YAML{line}: {printable(reason)}"
    if not isinstance(content, dict):
        return {}, "its front matter is not a mapping of names to values"
    for key in content:
        if not isinstance(key, str):
            return {}, f"its front matter has the key {printable(str(key))}, which is not text; put it in quotes"
    return content, ""
