"""A suite of prompts as a TOML file.

    name = "mine"

    [[prompts]]
    id = "P01"
    scenario = "Bakery Window"
    seed = 301
    prompt = 'A bakery at dawn, a sign in its window saying "WARM BREAD".'
    required_text = ["WARM BREAD"]

The id names the image. Every text in ``required_text`` must be readable in it, so the prompt has to ask for each; the
list may be left out. Nothing else is a key, and no value is changed on the way: what the file says is what is drawn.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import tomli_w

from converter.errors import SuiteError
from converter.measurement.prompts.checks import check_ids, check_prompt, check_text, fail
from converter.measurement.prompts.files import MAXIMUM_SUITE_BYTES, SUFFIX, read_text_file

#: Dots outside of strings in one line. tomllib's time and memory grow with the square of a dotted key's length, and
#: the only dots that a suite needs stand in strings.
_DOT_LIMIT = 20
_STRINGS_AND_COMMENTS = re.compile(
    r'"""(?:[^"\\]|\\.|"(?!""))*+(?:"""|\Z)'
    r"|'''(?:[^']|'(?!''))*+(?:'''|\Z)"
    r'|"(?:[^"\\\n]|\\.)*+(?:"|\n|\Z)'
    r"|'[^'\n]*+(?:'|\n|\Z)"
    r"|#[^\n]*+",
    re.DOTALL,
)
_TYPE_NAMES = {int: "an integer", list: "an array of strings", str: "a string"}
_KEYS: dict[str, type] = {"id": str, "scenario": str, "seed": int, "prompt": str, "required_text": list}


@dataclass(frozen=True)
class SuitePrompt:
    """One image to draw."""

    id: str
    """Name of the image's file, without a suffix."""
    scenario: str
    """Title for people."""
    seed: int
    prompt: str
    required_text: tuple[str, ...]
    """Texts that the image must show, each of which occurs in the prompt."""


@dataclass(frozen=True)
class PromptSuite:
    """Images to draw with every model that is compared."""

    name: str
    prompts: tuple[SuitePrompt, ...]

    def to_dict(self) -> dict[str, Any]:
        """The suite as JSON values, keys in the order of the file."""
        prompts = [{**asdict(prompt), "required_text": list(prompt.required_text)} for prompt in self.prompts]
        return {"name": self.name, "prompts": prompts}

    def to_toml(self) -> str:
        """The text of a file that holds this suite."""
        return tomli_w.dumps(self.to_dict())

    @property
    def sha256(self) -> str:
        """Hexadecimal SHA-256 of the suite as JSON in UTF-8 with sorted keys and no spaces."""
        canonical = json.dumps(self.to_dict(), ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def check(self, where: str) -> None:
        """Refuse a suite that cannot be drawn.

        Args:
            where: what to call it in messages.

        Raises:
            SuiteError: a prompt cannot be used, or two are in each other's way.
        """
        check_text(self.name, "name", where)
        check_ids([prompt.id for prompt in self.prompts], where)
        for prompt in self.prompts:
            place = f"{where}: prompt {prompt.id}"
            check_prompt(prompt.scenario, prompt.seed, prompt.prompt, prompt.required_text, place)


def builtin_suites() -> tuple[PromptSuite, ...]:
    """The suites that ship with lensconv, by name."""
    files = sorted(
        (entry for entry in resources.files("converter.measurement.prompts").iterdir() if entry.name.endswith(SUFFIX)),
        key=lambda entry: entry.name,
    )
    return tuple(parse_suite(file.read_text("utf-8"), where=file.name) for file in files)


def read_suite(path_or_name: Path | str) -> PromptSuite:
    """The suite that a user asked for.

    Args:
        path_or_name: a built-in suite's name, or the path of a TOML file.

    Raises:
        MissingInput: the file cannot be read.
        SuiteError: there is no such suite, or the file is malformed.
    """
    where = str(path_or_name)
    builtin = builtin_suites()
    for suite in builtin:
        if suite.name == where:
            return suite
    path = Path(path_or_name)
    if path.suffix.lower() != SUFFIX:
        names = ", ".join(suite.name for suite in builtin)
        fail(where, f"no suite has that name, and the name of a file would end in {SUFFIX}", f"Built in: {names}.")
    return parse_suite(read_text_file(path, MAXIMUM_SUITE_BYTES), where=where)


def parse_suite(text: str, *, where: str) -> PromptSuite:
    """Parse the text of a suite.

    Args:
        text: TOML.
        where: what to call it in messages.

    Raises:
        SuiteError: it is not TOML, or not a suite.
    """
    outside = _STRINGS_AND_COMMENTS.sub(lambda found: "\n" if found[0].endswith("\n") else "", text)
    if any(line.count(".") > _DOT_LIMIT for line in outside.split("\n")):
        fail(where, f"a key has more than {_DOT_LIMIT} dots; a suite needs no dotted keys", "Write texts in quotes.")
    try:
        content = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise SuiteError(where, f"not TOML: {error}", "Texts stand in quotes, one key in a line.") from error
    _refuse_unknown(content, ("name", "prompts"), where, "a suite")
    name = _typed(content, "name", str, where)
    tables = _typed(content, "prompts", list, where)
    suite = PromptSuite(name, tuple(_parse_prompt(table, where, number) for number, table in enumerate(tables, 1)))
    suite.check(where)
    return suite


def _parse_prompt(content: Any, where: str, number: int) -> SuitePrompt:
    place = f"{where}: prompt number {number}"
    if not isinstance(content, dict):
        fail(place, "is no table", "Write each prompt below a line [[prompts]].")
    if isinstance(content.get("id"), str):
        place = f"{where}: prompt {content['id']}"
    _refuse_unknown(content, tuple(_KEYS), place, "a prompt")
    values = {key: _typed(content, key, kind, place) for key, kind in _KEYS.items() if key != "required_text"}
    texts = _typed(content, "required_text", list, place) if "required_text" in content else []
    for text in texts:
        if not isinstance(text, str):
            fail(place, f"required_text must be an array of strings; {text!r} is none")
    return SuitePrompt(**values, required_text=tuple(texts))


def _refuse_unknown(content: Mapping[str, Any], allowed: Sequence[str], where: str, what: str) -> None:
    for key in content:
        if key not in allowed:
            near = difflib.get_close_matches(key[:100], allowed, n=3)
            hint = f"Keys like it: {', '.join(near)}." if near else f"Keys: {', '.join(allowed)}."
            fail(where, f"{key} is no key of {what}", hint)


def _typed(content: Mapping[str, Any], key: str, kind: type, where: str) -> Any:
    if key not in content:
        fail(where, f"{key} is missing", f"Add {key}, {_TYPE_NAMES[kind]}.")
    value = content[key]
    if type(value) is not kind:
        fail(where, f"{key} must be {_TYPE_NAMES[kind]}, not {value!r}", "Correct it in the file.")
    return value
