"""Checks of the prompts of a suite, whether they come from a TOML file or from a card."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import NoReturn

from converter.errors import SuiteError

#: The last seed that a prompt may have: benchmarks generate the same prompt again with the thousand seeds after it,
#: and torch's generators take no more than 2**63 - 1.
LAST_SEED = 2**63 - 1 - 1000
#: Characters of one prompt; text encoders read a small part of that.
PROMPT_LIMIT = 10_000
#: Characters of a name or a scenario.
NAME_LIMIT = 200
#: Prompts of one suite.
SUITE_LIMIT = 1000

#: Where to change a card, and what to do about one that contradicts itself.
IN_COPY = "in a copy of the card's README.md, then import the copy."
CORRECT = f"Correct it {IN_COPY}"

_PLAIN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
#: Categories of characters that texts must not have: controls, lone surrogates, line and paragraph separators.
_UNPRINTED = ("Cc", "Cs", "Zl", "Zp")


def fail(where: str, reason: str, hint: str = "") -> NoReturn:
    """Raise the error of a suite or a card.

    Args:
        where: the file, and the prompt where there is one.
        reason: what is wrong.
        hint: what to do about it.
    """
    raise SuiteError(where, reason, hint)


def normalize(text: str) -> str:
    """The form in which texts are compared: composed characters (NFC), and every run of whitespace as one space."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def check_text(text: str, what: str, where: str, *, limit: int = NAME_LIMIT, lines: bool = False) -> None:
    """Refuse a text that is blank or too long, or has characters that cannot be shown.

    Args:
        text: what to check.
        what: what to call it.
        where: the file, and the prompt where there is one.
        limit: characters it may have.
        lines: whether it may have several lines.

    Raises:
        SuiteError: it cannot be used.
    """
    if not text.strip():
        fail(where, f"{what} is empty", "Give it a value.")
    if len(text) > limit:
        fail(where, f"{what} has {len(text)} characters, more than {limit}", "Shorten it.")
    for character in text:
        if unicodedata.category(character) in _UNPRINTED and not (lines and character == "\n"):
            fail(where, f"{what} has the control character U+{ord(character):04X}", "Remove it.")


def check_ids(ids: Sequence[str], where: str) -> None:
    """Refuse ids that cannot all be names of files in one folder.

    Raises:
        SuiteError: there are none or too many, one is not a plain name, or two differ at most by case.
    """
    if not ids:
        fail(where, "contains no prompts", "Add at least one, written [[prompts]].")
    if len(ids) > SUITE_LIMIT:
        fail(where, f"has {len(ids)} prompts, more than {SUITE_LIMIT}", "Split it into several suites.")
    seen: dict[str, str] = {}
    for identifier in ids:
        if not _PLAIN_ID.fullmatch(identifier):
            fail(
                where,
                f"id {identifier!r} cannot be the name of an image",
                "Use 1 to 64 of A-Z a-z 0-9 . _ - and begin with a letter or a digit.",
            )
        other = seen.get(identifier.casefold())
        if other is not None:
            clash = "is listed twice" if other == identifier else f"differs from {other} only by case"
            fail(where, f"prompt {identifier}: {clash}", "Images are named after their prompts: rename one of them.")
        seen[identifier.casefold()] = identifier


def check_prompt(scenario: str, seed: int, prompt: str, required_text: Sequence[str], where: str) -> None:
    """Refuse a prompt that cannot be used, or whose image could not show what is required.

    Raises:
        SuiteError: a text cannot be used, the seed is out of range, or the prompt does not ask for a required text.
    """
    check_text(scenario, "scenario", where)
    if not 0 <= seed <= LAST_SEED:
        fail(where, f"seed {seed} is not between 0 and {LAST_SEED}", "Choose another; the baseline uses seed + 1000.")
    check_text(prompt, "prompt", where, limit=PROMPT_LIMIT, lines=True)
    asked = normalize(prompt)
    seen: set[str] = set()
    for text in required_text:
        check_text(text, "a required text", where, limit=PROMPT_LIMIT)
        compared = normalize(text)
        if compared not in asked:
            fail(
                where,
                f"required text {text!r} does not occur in the prompt",
                "Add it to the prompt exactly as written, or remove it from required_text.",
            )
        if compared in seen:
            fail(where, f"required text {text!r} is listed twice", "Remove one of them.")
        seen.add(compared)
