"""A suite of prompts as a TOML file.

    name = "mine"

    [[prompts]]
    id = "P01"
    scenario = "Bakery Window"
    seed = 301
    prompt = 'A bakery at dawn, a sign in its window saying "WARM BREAD".'
    required_text = ["WARM BREAD"]

The id names the image. Every text in ``required_text`` must be readable in it, so the prompt has to ask for each; the
list may be left out. Other keys are refused, and no value is changed: images are generated from what the file says.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from importlib import resources
from operator import attrgetter
from pathlib import Path
from typing import Any

import tomli_w

from converter.errors import SuiteError
from converter.fields import Fields, parse_toml
from converter.measurement.prompts.checks import check_ids, check_prompt, check_text, fail
from converter.measurement.prompts.files import MAXIMUM_SUITE_BYTES, SUFFIX, read_text_file


@dataclass(frozen=True)
class SuitePrompt:
    """One image to generate."""

    id: str
    """Name of the image's file, without a suffix."""
    scenario: str
    """Title for people."""
    seed: int
    prompt: str
    required_text: tuple[str, ...]
    """Texts that the image must show, each of which is part of the prompt."""


@dataclass(frozen=True)
class PromptSuite:
    """Images to generate with every model that is compared."""

    name: str
    prompts: tuple[SuitePrompt, ...]

    def to_dict(self) -> dict[str, Any]:
        """The suite as JSON values, keys in the order of the file."""
        prompts = [{**asdict(prompt), "required_text": list(prompt.required_text)} for prompt in self.prompts]
        return {"name": self.name, "prompts": prompts}

    def to_toml(self) -> str:
        """The suite as the text of a TOML file."""
        return tomli_w.dumps(self.to_dict())

    @property
    def sha256(self) -> str:
        """Hexadecimal SHA-256 of the suite as JSON in UTF-8 with sorted keys and no spaces."""
        canonical = json.dumps(self.to_dict(), ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def check(self, where: str) -> None:
        """Refuse a suite that cannot be used.

        Args:
            where: what to call it in messages.

        Raises:
            SuiteError: a prompt cannot be used, or two have the same id.
        """
        check_text(self.name, "name", where)
        check_ids([prompt.id for prompt in self.prompts], where)
        for prompt in self.prompts:
            check_prompt(
                prompt.scenario, prompt.seed, prompt.prompt, prompt.required_text, f"{where}: prompt {prompt.id}"
            )


def builtin_suites() -> tuple[PromptSuite, ...]:
    """The suites that ship with lensconv, by name."""
    files = [entry for entry in resources.files(__package__).iterdir() if entry.name.endswith(SUFFIX)]
    suites = [parse_suite(file.read_text("utf-8"), where=file.name) for file in files]
    return tuple(sorted(suites, key=attrgetter("name")))


def read_suite(path_or_name: Path | str) -> PromptSuite:
    """Return the suite that the user named.

    Args:
        path_or_name: a built-in suite's name, or the path of a TOML file.

    Raises:
        MissingInput: the file cannot be read.
        SuiteError: the suite does not exist, or the file is malformed.
    """
    where = str(path_or_name)
    builtin = {suite.name: suite for suite in builtin_suites()}
    if where in builtin:
        return builtin[where]
    path = Path(path_or_name)
    if path.suffix.lower() != SUFFIX:
        fail(where, f"no suite has that name, and files of suites end in {SUFFIX}", f"Built in: {', '.join(builtin)}.")
    return parse_suite(read_text_file(path, MAXIMUM_SUITE_BYTES), where=where)


def parse_suite(text: str, *, where: str) -> PromptSuite:
    """Parse the text of a suite.

    Args:
        text: TOML.
        where: what to call it in messages.

    Raises:
        SuiteError: it is not TOML, or not a suite.
    """
    table = parse_toml(text, where, SuiteError)
    table.refuse_unknown(("name", "prompts"), "a suite")
    name = table.take("name", str)
    prompts = enumerate(table.take("prompts", list), 1)
    suite = PromptSuite(name, tuple(_parse_prompt(content, where, number) for number, content in prompts))
    suite.check(where)
    return suite


def _parse_prompt(content: Any, where: str, number: int) -> SuitePrompt:
    if not isinstance(content, dict):
        fail(f"{where}: prompt number {number}", "is not a table", "Write each prompt below a line [[prompts]].")
    name = content.get("id")
    values = Fields(content, f"{where}: prompt {name if isinstance(name, str) else f'number {number}'}", SuiteError)
    values.refuse_unknown([field.name for field in fields(SuitePrompt)], "a prompt")
    return SuitePrompt(
        id=values.take("id", str),
        scenario=values.take("scenario", str),
        seed=values.take("seed", int),
        prompt=values.take("prompt", str),
        required_text=values.take_strings("required_text"),
    )
