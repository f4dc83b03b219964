"""Suites out of cards of every shape, and cards that are refused."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from converter.errors import SuiteError
from converter.measurement.prompts.card import import_card
from converter.measurement.prompts.suite import PromptSuite, SuitePrompt
from tests.cases import check_cases
from tests.prompt_cards import SUITE, markdown_card, plain_card


def sentences(prompt: SuitePrompt, mark: str = "") -> str:
    """A prompt with each sentence in a line of its own, as an editor may have wrapped it."""
    return mark + prompt.prompt.replace(". ", f".\n{mark}")


def filled(template: str, prompt: SuitePrompt) -> str:
    """A part of a card, written for a prompt."""
    marked = prompt.prompt.replace("painted", "*painted*").replace("(", "\\(")
    again = "\n\n".join(f"### {other.id}\n\n![x](y.png)" for other in SUITE.prompts)
    lines = {"lines": sentences(prompt), "quoted": sentences(prompt, "> ")[2:], "next": prompt.seed + 1}
    return template.format(p=prompt, marked=marked, again=again, words=" word" * 4000, brackets=" [" * 101, **lines)


def made_card(spec: dict[str, Any]) -> str:
    """A card of these templates, or plain, or a text so many times; then with a replacement."""
    if "text" in spec:
        return str(spec["text"] * spec["times"])
    if "plain" in spec:
        card = plain_card(gap=spec["plain"])
    else:
        templates = {name: spec[name] for name in ("heading", "body", "table") if name in spec}
        parts: dict[str, Any] = {
            name: None if template is None else partial(filled, template) for name, template in templates.items()
        }
        if "header" in spec:
            parts["header"] = spec["header"]
        if "like" in spec:
            parts["suite"] = PromptSuite("x", (SUITE.prompts[0], SuitePrompt("p01", "b", 2, "c", ())))
        card = markdown_card(**parts)
    card = spec.get("before", "") + card + filled(spec.get("after", ""), SUITE.prompts[0])
    old, new = spec.get("replace", ("", ""))
    return str(card.replace(old, new))


def test_cards_of_every_shape_and_those_that_leave_something_open() -> None:
    """What a card is read as: the suite that it was written from, its other prompts, or the refusal."""

    def outcome(spec: dict[str, Any]) -> object:
        try:
            suite = import_card(made_card(spec), "made", where="card.md")
        except SuiteError as error:
            return f"{error.message.removeprefix('card.md: ')} | {(error.hint or '')[:30]}"
        return "read" if suite == SUITE else [[*vars(prompt).values()] for prompt in suite.prompts]

    check_cases("card_cases.jsonl", outcome)
    assert sum(len(prompt.required_text) for prompt in SUITE.prompts) == 45


def section_card(body: str, *, is_last: bool = True) -> str:
    """A card with a usual table and two prompts, where ``body`` stands below the heading of P02."""
    table = "| ID | Scenario | Seed |\n|---|---|---|\n| P01 | One | 301 |\n| P02 | Two | 302 |\n\n## Prompts"
    body = body.replace("PROMPT", 'A bakery "X1".')
    sections = ['### P01 - One\n\nA door, "OPEN".', f"### P02 - Two\n\n{body}"]
    return "\n\n".join((table, *(sections if is_last else reversed(sections))))


def test_sections_that_hold_more_than_a_prompt_and_those_that_hold_one() -> None:
    """The prompt of the section, or why there is none; it does not matter whether another section follows."""

    def outcome(body: str) -> str:
        found = set()
        for is_last in (True, False):
            try:
                suite = import_card(section_card(body, is_last=is_last), "x", where="card.md")
                found.add(f"= {suite.prompts[1].prompt}")
            except SuiteError as error:
                found.add(f"{error.message.removeprefix('card.md: prompt P02: ')} | {error.hint[:30]}")
        (only,) = found
        return only

    check_cases("section_cases.jsonl", outcome)


@pytest.mark.parametrize(
    "start", ["### P01 - One\n\n", "### P01 - One\n\nA bakery.\n\n---\n\n", "### P01 - One\n\nSeed: 1\n", "P1: One\n\n"]
)
@pytest.mark.parametrize(
    "part", ["> ", "- a\n", "|a", "# *a*\n", "<!--", "**", '"', "```\n", "[a](<", "---\n", "ID Seed\n", "a ", "A: b\n"]
)
def test_time_grows_with_the_length_of_a_card(start: str, part: str) -> None:
    with pytest.raises(SuiteError):
        import_card(start + part * (100_000 // len(part)), "made")
