"""Reading the values of a TOML or JSON table, with a check of their types."""

from __future__ import annotations

import difflib
import re
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from converter.errors import FileError

#: Most dots outside of strings in a line. tomllib's time and memory grow with the square of a dotted key's length.
_DOT_LIMIT = 20
_STRINGS_AND_COMMENTS = re.compile(
    r'"""(?:[^"\\]|\\.|"(?!""))*+(?:"""|\Z)'
    r"|'''(?:[^']|'(?!''))*+(?:'''|\Z)"
    r'|"(?:[^"\\\n]|\\.)*+(?:"|\n|\Z)'
    r"|'[^'\n]*+(?:'|\n|\Z)"
    r"|#[^\n]*+(?:\n|\Z)",
    re.DOTALL,
)
_TYPE_NAMES: dict[type, str] = {
    bool: "true or false",
    dict: "a table",
    float: "a number",
    int: "an integer",
    list: "an array",
    str: "a string",
}
#: The default of a value that is required.
_REQUIRED = object()


@dataclass(frozen=True)
class Fields:
    """A table of a file.

    Args:
        content: the table.
        where: the file, and the table in it where there are several; for messages.
        error: the class of what to raise.
    """

    content: Mapping[str, Any]
    where: str
    error: type[FileError]

    def take(self, key: str, kind: type, default: Any = _REQUIRED) -> Any:
        """The value of a key.

        Args:
            key: its name.
            kind: type of the value; an integer is a float, too.
            default: the value where the key is missing; without a default, a missing key is an error.

        Raises:
            FileError: the value is missing or of another type.
        """
        if key not in self.content:
            if default is _REQUIRED:
                hint = self.error.default_hint or f"Add {key}, {_TYPE_NAMES[kind]}."
                raise self.error(self.where, f"{key} is missing", hint)
            return default
        value = self.content[key]
        if kind is float and type(value) is int and abs(value) <= sys.float_info.max:
            return float(value)
        if type(value) is not kind:
            raise self.error(self.where, f"{key} must be {_TYPE_NAMES[kind]}, not {value!r:.100}")
        return value

    def take_strings(self, key: str) -> tuple[str, ...]:
        """An array of strings; empty where the key is missing.

        Raises:
            FileError: it is something else.
        """
        values = self.take(key, list, [])
        for value in values:
            if not isinstance(value, str):
                raise self.error(self.where, f"{key} must be an array of strings, and {value!r:.100} is not a string")
        return tuple(values)

    def take_tables(self, key: str, name: str) -> tuple[Fields, ...]:
        """An array of tables; empty where the key is missing.

        Args:
            key: its name.
            name: what to call one table in messages, before its number.

        Raises:
            FileError: it is something else.
        """
        tables = []
        for number, content in enumerate(self.take(key, list, []), 1):
            where = f"{self.where}: {name} {number}"
            if not isinstance(content, dict):
                raise self.error(where, f"must be a table, written [[{key}]]")
            tables.append(Fields(content, where, self.error))
        return tuple(tables)

    def refuse_unknown(self, allowed: Sequence[str], what: str) -> None:
        """Refuse unknown keys, and name known ones that are like them.

        Args:
            allowed: the known keys.
            what: what the table describes, for messages.

        Raises:
            FileError: there is such a key.
        """
        for key in self.content:
            if key not in allowed:
                near = difflib.get_close_matches(key[:100], allowed, n=3)
                hint = f"Similar keys: {', '.join(near)}." if near else f"Keys: {', '.join(allowed)}."
                raise self.error(self.where, f"{key:.200} is not a key of {what}", hint)


def parse_toml(text: str, where: str, error: type[FileError]) -> Fields:
    """Parse a TOML file that a user wrote.

    Args:
        text: its content.
        where: the file, for messages.
        error: what to raise.

    Raises:
        FileError: it is not TOML, or has a key of very many dots, on which the parser would not end.
    """
    outside = _STRINGS_AND_COMMENTS.sub(lambda found: "\n" if found[0].endswith("\n") else "", text)
    if any(line.count(".") > _DOT_LIMIT for line in outside.split("\n")):
        raise error(where, f"a key has more than {_DOT_LIMIT} dots", "Write texts in quotes.")
    try:
        return Fields(tomllib.loads(text), where, error)
    except (ValueError, RecursionError) as cause:
        raise error(where, f"is not TOML: {cause}", "Put texts in quotes, and each key on its own line.") from cause
