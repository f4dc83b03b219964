"""Suites of prompts: as TOML and back, out of cards of every shape, from the Hub; and what is refused."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converter.cli.main import run
from converter.console import Console
from converter.errors import HubError, MissingInput, OutputError, SuiteError, UsageError
from converter.measurement.prompts.card import import_card, quoted_texts
from converter.measurement.prompts.checks import LAST_SEED, normalize
from converter.measurement.prompts.fetch import read_card
from converter.measurement.prompts.suite import PromptSuite, SuitePrompt, builtin_suites, parse_suite, read_suite
from converter.schemas import load_schema
from tests.conftest import ROOT, Outcome, names_in

#: How many texts the prompts of the published card require.
COUNTS = (5, 5, 5, 3, 5, 4, 5, 3, 5, 5)
SCENES = (
    "Paper Lantern Alley",
    "Canal Lock Office",
    "Volcano Weather Hut",
    "Long Hotel Notices",
    "Tram Depot Kitchen",
    "Сад за домом",
    "Glassblower's Attic",
    "Long Ferry Rules",
    "Clockmaker's Trial",
    "Salt Mine Choir",
)


def make_prompt(number: int) -> SuitePrompt:
    """The prompt of that number, counted from 0, with as many texts as the published one."""
    texts = tuple(f"LABEL {number}-{count}: & MORE" for count in range(COUNTS[number]))
    asked = " ".join(f'Sign {count} (the {count}th) says "{text}".' for count, text in enumerate(texts))
    scene = SCENES[number]
    return SuitePrompt(
        f"P{number + 1:02}", scene, 301 + number, f"{scene}, painted at dusk. {asked} Fine print.", texts
    )


SUITE = PromptSuite("made", tuple(make_prompt(number) for number in range(10)))


def plain_card(suite: PromptSuite = SUITE, gap: str = " ") -> str:
    """A card as a browser shows it: no marks, cells between spaces or tabs."""
    rows = [gap.join((p.id, p.scenario, str(p.seed), "19.5", "+3.1%")) for p in suite.prompts]
    sections = [f"{p.id} - {p.scenario}\n\n{p.prompt}" for p in suite.prompts]
    header = gap.join(("ID", "Scenario", "Seed", "Time, s", "Delta"))
    other = "Metric Original Quant\nLoad time, seconds 17 14\n\n    indented = code(P01)"
    ending = "Notes\n\nThis text is about something else."
    parts = (
        "metadata\ntags:\n  - lens",
        "A Card",
        other,
        "Matrix",
        "\n".join((header, *rows)),
        "Prompts",
        *sections,
        ending,
    )
    return "\n\n".join(parts)


def markdown_card(
    heading: Callable[[SuitePrompt], str] = lambda prompt: f"### {prompt.id} - {prompt.scenario}",
    body: Callable[[SuitePrompt], str] = lambda prompt: prompt.prompt.replace("& MORE", "&amp; MORE"),
    table: Callable[[SuitePrompt], str] | None = lambda prompt: (
        f"| {prompt.id} | {prompt.scenario} | {prompt.seed} | 1 |"
    ),
    header: str = "| ID | Scenario | Seed | Time |\n|:---|---|--:|---|",
    suite: PromptSuite = SUITE,
) -> str:
    """A card in Markdown, in the shape that the parts say."""
    rows = [table(prompt) for prompt in suite.prompts] if table else []
    sections = [f"{heading(prompt)}\n\n{body(prompt)}" for prompt in suite.prompts]
    front = "---\nlicense: mit\ntags:\n# P99 - not a prompt\n---\n# A Card\n\n| Metric | A |\n|---|---|\n| Load | 1 |"
    matrix = "\n".join((header, *rows)) if table else ""
    return "\n\n".join((front, "## Matrix", matrix, "## Prompts", *sections, "## Notes", "Something else."))


def refusal(text: str) -> SuiteError:
    """The error that a card gives."""
    with pytest.raises(SuiteError) as caught:
        import_card(text, "made", where="card.md")
    assert caught.value.message.startswith("card.md: ")
    assert caught.value.hint
    return caught.value


def edited(**changes: Any) -> str:
    """The TOML of a good suite of two prompts, the second of which is changed; None takes a key out."""
    first = {"id": "P01", "scenario": "One", "seed": 1, "prompt": 'A door, "OPEN".', "required_text": ["OPEN"]}
    second = {**first, "id": "P02", **changes}
    tables = [{key: value for key, value in table.items() if value is not None} for table in (first, second)]
    lines = ['name = "mine"']
    for table in tables:
        lines += ["[[prompts]]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
    return "\n".join(lines)


def test_the_suite_that_ships() -> None:
    assert [suite.name for suite in builtin_suites()] == ["ten-signs"]
    suite = read_suite("ten-signs")
    assert [prompt.id for prompt in suite.prompts] == [f"P{number:02}" for number in range(1, 11)]
    assert [prompt.seed for prompt in suite.prompts] == list(range(301, 311))
    for prompt in suite.prompts:
        assert prompt.required_text == quoted_texts(prompt.prompt, prompt.id)
        assert 4 <= len(prompt.required_text) <= 6
        assert "  " not in prompt.prompt
        assert "\n" not in prompt.prompt
    long = [
        prompt for prompt in suite.prompts if sum(10 <= len(text.split()) <= 25 for text in prompt.required_text) >= 3
    ]
    assert [prompt.id for prompt in long] == ["P04", "P08"]
    assert not any("a" <= letter <= "z" for letter in suite.prompts[5].prompt.lower())
    assert sum(len(prompt.required_text) for prompt in suite.prompts) == 51


WORDS = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1, max_size=30).filter(str.strip)


@st.composite
def suites(draw: st.DrawFn) -> PromptSuite:
    ids = draw(
        st.lists(
            st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,8}", fullmatch=True),
            min_size=1,
            max_size=3,
            unique_by=str.lower,
        )
    )
    prompts = []
    for identifier in ids:
        texts = draw(st.lists(WORDS, max_size=3, unique_by=normalize))
        prompt = draw(WORDS) + "".join(f'\n "{text}"' for text in texts)
        prompts.append(SuitePrompt(identifier, draw(WORDS), draw(st.integers(0, LAST_SEED)), prompt, tuple(texts)))
    return PromptSuite(draw(WORDS), tuple(prompts))


@settings(max_examples=60)
@given(suites())
def test_a_suite_survives_toml(suite: PromptSuite) -> None:
    again = parse_suite(suite.to_toml(), where="made")
    assert again == suite
    assert again.sha256 == suite.sha256


def test_the_hash_tells_every_change() -> None:
    assert SUITE.sha256 == PromptSuite("made", SUITE.prompts).sha256
    assert (
        len({SUITE.sha256, PromptSuite("other", SUITE.prompts).sha256, PromptSuite("made", SUITE.prompts[1:]).sha256})
        == 3
    )


def test_texts_are_compared_after_normalization() -> None:
    suite = parse_suite(
        edited(prompt="A cafe\u0301 with\n  two   signs", required_text=["caf\u00e9 with two"]), where="x"
    )
    assert suite.prompts[1].prompt == "A cafe\u0301 with\n  two   signs"
    assert parse_suite(edited(required_text=None), where="x").prompts[1].required_text == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name = ", "is not TOML"),
        ("a." * 30 + "a = 1", "more than 20 dots"),
        ("x = " + "[" * 5000, "not TOML"),
        ('name = "x"\nprompts = []', "contains no prompts"),
        ('name = "x"', "prompts is missing"),
        ("prompts = []", "name is missing"),
        ('name = "x"\nprompts = "y"', "prompts must be an array"),
        ('name = "x"\nprompts = ["y"]', "prompt number 1: is not a table"),
        ('name = "x"\nprompt = []', "prompt is not a key of a suite"),
        ('name = " "\n' + edited().partition("\n")[2], "name is empty"),
        (edited(id=None), "prompt number 2: id is missing"),
        (edited(id=7), "prompt number 2: id must be a string, not 7"),
        (edited(id="p01"), "prompt p01: differs from P01 only by case"),
        (edited(id="P01"), "prompt P01: is listed twice"),
        (edited(id="../P02"), "cannot be the name of an image"),
        (edited(id=".P02"), "cannot be the name of an image"),
        (edited(id="P02\n"), "cannot be the name of an image"),
        (edited(id="P" * 65), "cannot be the name of an image"),
        (edited(id="Ｐ2"), "cannot be the name of an image"),  # noqa: RUF001 - a letter that only looks plain
        (edited(sed=1), "prompt P02: sed is not a key of a prompt"),
        (edited(seed=None), "prompt P02: seed is missing"),
        (edited(seed=True), "prompt P02: seed must be an integer, not True"),
        (edited(seed=1.0), "seed must be an integer"),
        (edited(seed=-1), "prompt P02: seed -1 is not from 0"),
        (edited(seed=LAST_SEED + 1), "is not from 0"),
        (edited(scenario=""), "scenario is empty"),
        (edited(scenario="a\nb"), "scenario has the control character U+000A"),
        (edited(scenario="a" * 201), "scenario has 201 characters"),
        (edited(prompt="\n "), "prompt is empty"),
        (edited(prompt="a" * 10_001), "prompt has 10001 characters"),
        (edited(prompt="bell \a"), "prompt has the control character U+0007"),
        (edited(prompt="a \u2028 b"), "prompt has the control character U+2028"),
        (edited(prompt=["OPEN"]), "prompt must be a string"),
        (edited(required_text="OPEN"), "required_text must be an array"),
        (edited(required_text=[1]), "1 is not a string"),
        (edited(required_text=[" "]), "a required text is empty"),
        (edited(required_text=["open"]), "required text 'open' does not occur in the prompt"),
        (edited(required_text=["OPEN", "OPEN "]), "is listed twice"),
    ],
)
def test_what_no_suite_is(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text, "utf-8")
    with pytest.raises(SuiteError, match=re.escape(said)) as caught:
        read_suite(str(file))
    assert caught.value.message.startswith(f"{file}: ")
    assert "\n" not in caught.value.message
    assert caught.value.exit_code == 2


def test_the_last_seed_leaves_room() -> None:
    assert parse_suite(edited(seed=LAST_SEED), where="x").prompts[1].seed + 1000 == 2**63 - 1


def test_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(SuiteError, match=r"control character U\+D800"):
        PromptSuite("x", (SuitePrompt("P01", "One", 1, "a \ud800", ()),)).check("x")


def test_files_that_cannot_be_suites(tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match=r"eleven: no suite has that name") as caught:
        read_suite("eleven")
    assert "ten-signs" in caught.value.hint
    with pytest.raises(MissingInput, match="no such file"):
        read_suite(tmp_path / "none.toml")
    file = tmp_path / "mine.toml"
    file.write_bytes(b'name = "\xff"')
    with pytest.raises(SuiteError, match="is not UTF-8 at byte 8"):
        read_suite(file)
    file.write_bytes(b"#" * 1_000_001)
    with pytest.raises(SuiteError, match="is longer than 1000000 bytes"):
        read_suite(file)
    file.write_text("\ufeff" + SUITE.to_toml(), "utf-8")
    assert read_suite(file) == SUITE


def sentences(prompt: SuitePrompt, mark: str = "") -> str:
    """A prompt with each sentence in a line of its own, as an editor may have wrapped it."""
    return mark + prompt.prompt.replace(". ", f".\n{mark}")


REVERSED = "| Time | Seed | Scenario | Prompt ID |\n| --- | --- | --- | --- |"
CARDS = {
    "plain": plain_card(),
    "plain with tabs": plain_card(gap="\t"),
    "pipes": markdown_card(),
    "carriage returns": markdown_card().replace("\n", "\r\n"),
    "byte order mark": "\ufeff" + markdown_card(),
    "columns in another order": markdown_card(
        table=lambda p: f"1 | `{p.seed}` | {p.scenario} | **{p.id}** |", header=REVERSED
    ),
    "colons": markdown_card(heading=lambda p: f"#### {p.id}: {p.scenario} ##"),
    "bold": markdown_card(heading=lambda p: f"**{p.id} — {p.scenario}**"),
    "bold, no blank line": markdown_card(
        heading=lambda p: f"__{p.id} - {p.scenario}__\n{p.prompt}",
        body=lambda _: "",
    ),
    "underlined": markdown_card(heading=lambda p: f"{p.id} - {p.scenario}\n-----"),
    "quotes": markdown_card(body=lambda p: sentences(p, "> ")),
    "lazy quotes": markdown_card(body=lambda p: "> " + sentences(p)),
    "code": markdown_card(body=lambda p: f"```text\n{p.prompt}\n```"),
    "code in quotes": markdown_card(body=lambda p: f"> ~~~\n> {p.prompt}\n> ~~~"),
    "indented code": markdown_card(body=lambda p: f"    {p.prompt}"),
    "wrapped": markdown_card(body=sentences),
    "captions": markdown_card(body=lambda p: f"**Prompt:**\n\n> {p.prompt}\n\n![{p.id}](image.png)"),
    "subheadings": markdown_card(body=lambda p: f"#### Prompt\n\n{p.prompt}\n\n---\n\nMore about it."),
    "marks": markdown_card(body=lambda p: p.prompt.replace("painted", "*painted*").replace("(", "\\(")),
    "seeds below": markdown_card(table=None, body=lambda p: f"**Seed:** {p.seed}\n\n{p.prompt}"),
    "seeds in lists": markdown_card(table=None, body=lambda p: f"- Seed: {p.seed}\n- **Prompt**: {p.prompt}"),
    "seeds in both": markdown_card(body=lambda p: f"Seed: {p.seed}\n{p.prompt}\n\n<details>\n</details>"),
    "details": markdown_card(body=lambda p: f"<!-- a\n\ncomment -->\n<details>\n\n{p.prompt}\n\n</details>"),
    "summary row": markdown_card(
        header="| ID | Scenario | Seed |\n|---|---|---|\n| **Average** | | |",
        table=lambda p: f"|{p.id}|{p.scenario}|{p.seed}|",
    ),
    "headings again": markdown_card()
    + "\n\n## Images\n\n"
    + "\n\n".join(f"### {p.id}\n\n![x](y.png)" for p in SUITE.prompts),
    "prompts in a table": markdown_card(
        heading=lambda _: "",
        body=lambda _: "",
        table=lambda p: f"| {p.id} | {p.scenario} | {p.seed} | {p.prompt} |",
        header="| ID | Scene | Seed | Prompt |\n|-|-|-|-|",
    ),
}


@pytest.mark.parametrize("shape", CARDS)
def test_cards(shape: str) -> None:
    suite = import_card(CARDS[shape], "made")
    assert suite == SUITE
    assert sum(len(prompt.required_text) for prompt in suite.prompts) == 45


def test_other_marks_around_texts() -> None:
    prompt = 'Curly “ONE”, pointed « TWO », low „THREE“, straight "FOUR “FIVE”" and again “ONE”.'
    card = f"| ID | Seed |\n|--|--|\n| prompt-03 | 7 |\n\n## Prompt prompt-03\n\n> {prompt}\n>\n> It's 5 o'clock."
    (found,) = import_card(card.replace("\n", "\r\n"), "x").prompts
    assert found.required_text == ("ONE", "TWO", "THREE", "FOUR “FIVE”")
    assert found.prompt == f"{prompt}\n\nIt's 5 o'clock."
    assert found.id == found.scenario == "prompt-03"


def test_pipes_in_cells_and_plain_numbers_as_ids() -> None:
    table = 'ID | Scenario | Seed | Prompt\n---|---|---|---\n1 | A \\| B | 7 | Say "A \\| B"\n2 | C | 8 |'
    card = f"{table}\n\n### 2. C\n\nNothing."
    assert [(p.id, p.scenario, p.required_text) for p in import_card(card, "x").prompts] == [
        ("1", "A | B", ("A | B",)),
        ("2", "C", ()),
    ]


def test_a_plain_card_with_seeds_below_its_headings() -> None:
    card = 'P1: One\n\nSeed: 5\n\nA door, "OPEN".\n\nP2\n\nSeed: 6\nNothing.\n'
    assert [(p.id, p.scenario, p.seed) for p in import_card(card, "x").prompts] == [("P1", "One", 5), ("P2", "P2", 6)]


ONE = SUITE.prompts[0]


@pytest.mark.parametrize(
    ("card", "said"),
    [
        ("", "has neither a table"),
        ("# A card\n\nAbout nothing.", "has neither a table"),
        ("<table><tr><td>P01</td></tr></table>", "has neither a table"),
        (markdown_card(table=None), "prompt P01: no seed is given"),
        (markdown_card().replace("| 303 |", "| |"), "prompt P03: no seed is given"),
        (markdown_card().replace("| 303 |", "| 3O3 |"), "prompt P03: seed '3O3' is not a whole number"),
        (markdown_card().replace("| 303 |", "| -303 |"), "seed '-303' is not a whole number"),
        (markdown_card().replace("### P03 -", "### P3 -"), "the table names P03, of which there is no prompt"),
        (markdown_card() + "\n\n### P11 - Extra\n\nMore.", "headings for P11, but the table does not name them"),
        (markdown_card().replace("### P03 - V", "### P03 - W"), "two titles"),
        (markdown_card(body=lambda p: f"Seed: {p.seed + 1}\n\n{p.prompt}"), "two seeds: 301 and 302"),
        (markdown_card(body=lambda p: f"Seed: 1\nSeed: 2\n\n{p.prompt}"), "two seeds: 1 and 2"),
        (markdown_card(body=lambda p: f"{p.prompt}\n\nNegative prompt: blur"), "has a negative prompt"),
        (markdown_card(body=lambda p: f"Hard.\n\n> {p.prompt}"), "both a quoted block and text around it"),
        (markdown_card(body=lambda p: f"> {p.prompt}\n\n```\n{p.prompt}\n```"), "has 2 quoted blocks"),
        (markdown_card(body=lambda p: f"{p.prompt}\n\n- or not"), "has a list"),
        (markdown_card(body=lambda p: f"{p.prompt}\n\n<p>or not</p>"), "has HTML"),
        (markdown_card(body=lambda _: "![x](y.png)"), "there is no text below its heading"),
        (markdown_card(body=lambda p: p.prompt + ' 5" tall'), "is never closed"),
        (markdown_card(body=lambda p: p.prompt + ' 5" tall”'), "is never closed"),
        (markdown_card(body=lambda p: p.prompt + " ”"), "closes nothing"),
        (markdown_card(body=lambda p: p.prompt + " \0"), "prompt has the control character U+0000"),
        (markdown_card(body=lambda p: p.prompt + ' ""'), "nothing between them"),
        (markdown_card(body=lambda p: p.prompt + " word" * 4000), "more than 20000"),
        (markdown_card(body=lambda p: p.prompt + " [" * 101), "more than 100 brackets"),
        (markdown_card(header="| ID | Seed | Seed |\n|-|-|-|"), "several columns for the seed"),
        (markdown_card(header="| ID | Seed | Negative prompt |\n|-|-|-|"), "a table has negative prompts"),
        (markdown_card() + "\n\n| ID | Seed |\n|-|-|\n| P01 | 9 |", "two seeds: 301 and 9"),
        (markdown_card() + f"\n\n### P01 - {ONE.scenario}\n\nOther.", "above different texts"),
        (
            markdown_card(suite=PromptSuite("x", (ONE, SuitePrompt("p01", "b", 2, "c", ())))),
            "prompt p01: differs from P01",
        ),
        (plain_card().replace("P03 Volcano", "P03 Vulcano"), "prompt P03: its row is not its heading's title"),
        (plain_card().replace("Hut 303", "Hut x303"), "prompt P03: its row is not its heading's title"),
        (plain_card().replace("P03 - ", "P3 - "), "prompt P03: the table names it, but no heading"),
        (plain_card().replace("\n\nP03 - ", "\n\nOne more\n\nP03 - "), "prompt P02: several paragraphs follow"),
        (plain_card().replace("Notes\n\n", "More of it.\n\n"), "prompt P10: several paragraphs follow"),
        (plain_card().replace("ID Scenario Seed", "ID Scenario and Seed"), "no seed is given"),
        ("x" * 5_000_001, "is longer than 5000000"),
    ],
)
def test_cards_that_leave_something_open(card: str, said: str) -> None:
    assert said in refusal(card).message


def section_card(body: str, *, is_last: bool = True) -> str:
    """A card with a usual table and two prompts, where ``body`` stands below the heading of P02."""
    table = "| ID | Scenario | Seed |\n|---|---|---|\n| P01 | One | 301 |\n| P02 | Two | 302 |\n\n## Prompts"
    body = body.replace("PROMPT", 'A bakery "X1".')
    sections = ['### P01 - One\n\nA door, "OPEN".', f"### P02 - Two\n\n{body}"]
    return "\n\n".join((table, *(sections if is_last else reversed(sections))))


SEVERAL = "several paragraphs follow its heading"
ASIDE = "its section has text below a rule or another title"
TITLE = "its section has a title with quotation marks"
NEGATIVE = "has a negative prompt"
TWICE = "its section says Prompt: twice"
INCHES = "touches the quotation marks around"


@pytest.mark.parametrize("is_last", [True, False])
@pytest.mark.parametrize(
    ("body", "said"),
    [
        # Other text below the prompt.
        (
            'PROMPT\n\nThe images took an hour. Contact me at "x@y".',
            f"{SEVERAL}, and nothing shows where the prompt ends; the second begins The images took an hour.",
        ),
        ("PROMPT\n\n[Full size](b.png)", "the second begins Full size"),
        ("PROMPT\n\n*A slanted result*", "the second begins A slanted result"),
        ("PROMPT\n\n**The sign is red.**", "the second begins The sign is red."),
        ("PROMPT\n![](b.png)\nBelow its image.", "the second begins Below its image."),
        ("PROMPT\nSeed: 302\nBelow a label.", "the second begins Below a label."),
        ("PROMPT\n<!-- nothing -->\nBelow a comment.", "the second begins Below a comment."),
        ("PROMPT\n\n*Figure 1: result*", "Figure 1 is not a known label"),
        ("PROMPT\n\nResult: SDNQ dropped a letter.", "Result is not a known label"),
        ("PROMPT\n\nAll images: 20 steps, CFG 5.", "All images is not a known label"),
        ("> PROMPT\n\nResult: SDNQ dropped a letter.", "both a quoted block and text around it"),
        # Labels that are not known.
        ("Seed: 302\nSteps: 20\nCFG: 5\nResolution: 1440x1440\nPROMPT", "Steps is not a known label"),
        ("Seed: 302\nScene: " + "long " * 20 + "\nPROMPT", "Scene is not a known label"),
        ("**Seed:** 302<br>**CFG scale:** 5<br>PROMPT", "CFG scale is not a known label"),
        ("Steps: 20\nPROMPT", "Steps is not a known label"),
        ("PROMPT\nSteps=20", "Steps is not a known label"),
        ("Steps: 20\nCFG: 5", "Steps is not a known label"),
        ("Steps: 20\n\nPROMPT", "Steps is not a known label"),
        ("- Seed: 302\n- Steps: 20\n\nPROMPT", "Steps is not a known label"),
        ("\u6b65\u6570\uff1a20\n\nPROMPT", "\u6b65\u6570 is not a known label"),
        # Several prompts.
        ("Prompt: first version\n\nPrompt: second version", TWICE),
        ("Prompt: first version\nPrompt: second version", TWICE),
        ("#### Prompt\n\n> PROMPT\n\n#### Prompt", TWICE),
        ("About it.\nPrompt: A bakery.", "the second begins A bakery."),
        # Text below another title or a rule.
        (
            'PROMPT\n\n**Important**\n\nIt must show "HELLO".',
            f"{ASIDE}, which may or may not be a part of the prompt: It",
        ),
        ("PROMPT\n\n**Important**\nIt must show &quot;HELLO&quot;.", ASIDE),
        ("PROMPT\n\n#### Important\n\n- It must show “HELLO”.", ASIDE),
        ("PROMPT\n\n#### Important\n\n> It must show «HELLO».", ASIDE),
        ('PROMPT\n\n#### Important\n\n```\nIt must show <b id="HELLO">.\n```', ASIDE),
        ('PROMPT\n\n#### Important\n\n<p class="a">It must show "HELLO".</p>', ASIDE),
        ('PROMPT\n\n---\n\nIt must show "HELLO".', ASIDE),
        ("**Important**\n\nA bakery.", ASIDE),
        ("---\n\nA bakery.", ASIDE),
        ('PROMPT\n\n**It must show "HELLO"**', TITLE),
        ('PROMPT\n\n#### It must show "HELLO"', TITLE),
        ('> PROMPT\n\nIt must show "HELLO".\n---', TITLE),
        ("> PROMPT\n\n" + 'It must show "HELLO". ' * 30 + "\n---", TITLE),
        ("PROMPT\n\n**Second**\n\nPrompt: A bakery.", SEVERAL),
        ("PROMPT\n\n---\n\nSeed: 7", "two seeds: 302 and 7"),
        # Negative prompts.
        ("PROMPT\n\n#### Negative prompt\n\nblurry, ugly", NEGATIVE),
        ("PROMPT\n\n### Negative Prompts:\n\nblurry, ugly", NEGATIVE),
        ("PROMPT\n\n**Negative prompt**\n\nblurry, ugly", NEGATIVE),
        ("PROMPT\n\n---\n\n**Negative prompt:** blurry, ugly", NEGATIVE),
        (
            "> PROMPT\n>\n> Negative prompt: blurry",
            "a line within its quoted block is labelled: Negative prompt: blurry",
        ),
        ("> **Prompt:** PROMPT", "a line within its quoted block is labelled: Prompt: A"),
        ("```\nSeed: 302\nA bakery.\n```", "a line within its quoted block is labelled: Seed: 302"),
        # Quotation marks that may open or close.
        ('A sign "SAY &quot;HI&quot; NOW".', f"a letter or digit {INCHES} 'SAY' from outside, up to character 13"),
        ('A sign "ROOM "7" HERE".', INCHES),
        ('A photo of 5" x 7" on a wall.', INCHES),
        ('A sign "SAY "\u55e8" NOW".', INCHES),
    ],
)
def test_sections_that_hold_more_than_a_prompt(body: str, said: str, is_last: bool) -> None:
    message = refusal(section_card(body, is_last=is_last)).message
    assert message.startswith("card.md: prompt P02: ")
    assert said in message


def test_a_second_paragraph_is_answered_with_a_way_out() -> None:
    assert "into a block quote or a code block" in refusal(section_card("PROMPT\n\nMore.")).hint
    assert "into a block quote or a code block" in refusal(section_card("PROMPT\n\nSteps: 20")).hint


@pytest.mark.parametrize(
    ("body", "prompt"),
    [
        ('Interior: a bakery "X1".', 'Interior: a bakery "X1".'),
        ('Seed: 302\n\nInterior: a bakery "X1".\n\n![](b.png)', 'Interior: a bakery "X1".'),
        ('Seed: 302\nPrompt: Interior: a bakery "X1".', 'Interior: a bakery "X1".'),
        ("Interior: a bakery of many loaves and still more people, seen\nat dawn.", None),
        ("A bakery\nof http://example.com at\n02:17 in winter.", "A bakery of http://example.com at 02:17 in winter."),
        ("**Image**\n![a](b.png)\n\n**Prompt:** A bakery\nat dawn.", "A bakery at dawn."),
        ("**Image**\n![a](b.png)\n\n**Prompt:**\n\n> A bakery.", "A bakery."),
        ('A bakery.\n\n### Notes\n\nIt can show "HELLO".', "A bakery."),
        ('#### Images\n\n![a "b"](b.png "c")\n\n#### Prompt\n\nA bakery.', "A bakery."),
        ('A bakery.\n\n#### Images\n\n![a "b"](b.png "c")\n\n<img alt="b">', "A bakery."),
        ("A bakery.\n\n#### Settings\n\n- Seed: 302\n- Steps: 20", "A bakery."),
        ("A bakery.\n\n---\n\nDrawn in an hour.", "A bakery."),
        ('A bakery.\n\n## Notes\n\nIt can show "HELLO".\n\n### Negative prompt\n\nThere is none.', "A bakery."),
        ('A bakery.\n\nNotes\n-----\n\nIt can show "HELLO".', "A bakery."),
        ("> A bakery.\n> Text: as it is.\n>\n> At dawn.", "A bakery. Text: as it is.\n\nAt dawn."),
        ("```\nA bakery.\n\nSteps: of stone.\n```", "A bakery.\n\nSteps: of stone."),
        ('\u5199\u7740"\u8425\u4e1a"\u5b57\u6837', '\u5199\u7740"\u8425\u4e1a"\u5b57\u6837'),
    ],
)
def test_sections_that_hold_one_prompt(body: str, prompt: str | None) -> None:
    expected = body.replace("\n", " ") if prompt is None else prompt
    assert import_card(section_card(body), "x").prompts[1].prompt == expected


def test_a_heading_under_bold_titles_ends_what_it_ends_elsewhere() -> None:
    card = section_card('A bakery.\n\n## Notes\n\nIt "can".').replace("### P01 - One", "**P01 - One**")
    card = card.replace("### P02 - Two", "**P02 - Two**")
    assert import_card(card, "x").prompts[1].prompt == "A bakery."
    assert ASIDE in refusal(card.replace("## Notes", "#### Notes")).message


def test_plain_cards_hold_one_prompt_and_nothing_else() -> None:
    card = plain_card()
    assert "prompt P10: has a negative prompt" in refusal(card.replace("Notes\n", "Negative prompt\n")).message
    labelled = card.replace("\n\nSalt Mine Choir, ", "\n\nSeed: 310\nSteps: 20\nSalt Mine Choir, ")
    assert "prompt P10: Steps is not a known label" in refusal(labelled).message


@pytest.mark.parametrize(
    "start", ["### P01 - One\n\n", "### P01 - One\n\nA bakery.\n\n---\n\n", "### P01 - One\n\nSeed: 1\n", "P1: One\n\n"]
)
@pytest.mark.parametrize(
    "part", ["> ", "- a\n", "|a", "# *a*\n", "<!--", "**", '"', "```\n", "[a](<", "---\n", "ID Seed\n", "a ", "A: b\n"]
)
def test_time_grows_with_the_length_of_a_card(start: str, part: str) -> None:
    refusal(start + part * (100_000 // len(part)))


def call(*arguments: object) -> Outcome:
    """Run ``lensconv prompts`` in this process, streams captured."""
    texts = [str(argument) for argument in arguments]
    stdout, stderr = io.StringIO(), io.StringIO()
    console = Console("--json" in texts, "--quiet" in texts, stdout=stdout, stderr=stderr)
    code = run(["prompts", *texts], console)
    return Outcome(code, stdout.getvalue(), stderr.getvalue())


def test_import_says_what_it_found(tmp_path: Path) -> None:
    card, output = tmp_path / "README.md", tmp_path / "suite.toml"
    card.write_text(markdown_card(), "utf-8")
    outcome = call("import", card, "--out", output, "--name", "made", "--json")
    assert outcome.code == 0, outcome.stderr
    jsonschema.validate(outcome.result, load_schema("prompts"))
    assert outcome.result == {"suite": str(output), **SUITE.to_dict(), "required_texts": 45}
    assert read_suite(output) == SUITE
    assert names_in(tmp_path) == ["README.md", "suite.toml"]
    outcome = call("import", card, "--out", output, "--overwrite")
    assert read_suite(output).name == "suite"
    assert "10 prompts, 45 required texts" in " ".join(outcome.stderr.split())
    assert "Volcano Weather Hut" in outcome.stderr
    assert call("import", card, "--out", output, "--overwrite", "--quiet").stderr == ""


def test_import_writes_nothing_where_it_must_not(tmp_path: Path) -> None:
    card, taken = tmp_path / "README.md", tmp_path / "taken.toml"
    card.write_text("nothing", "utf-8")
    taken.write_text("mine", "utf-8")
    for output, code, said in (
        (taken, OutputError.exit_code, "exists already"),
        (tmp_path / "no" / "suite.toml", OutputError.exit_code, "no such folder"),
        (tmp_path / "suite.txt", UsageError.exit_code, "its name must end in .toml"),
        (tmp_path / "suite.toml", SuiteError.exit_code, "has neither a table"),
    ):
        outcome = call("import", card, "--out", output)
        assert outcome.code == code
        assert said in outcome.stderr
    assert names_in(tmp_path) == ["README.md", "taken.toml"]
    assert taken.read_text("utf-8") == "mine"
    card.write_text(markdown_card(), "utf-8")
    assert "name is empty" in call("import", card, "--out", tmp_path / "suite.toml", "--name", "").stderr


@pytest.mark.parametrize(
    "place", ["hf://", "hf://a", "hf://a/b/c", "hf://a/../b", "hf://a/b@", "hf://a/b@../x", "hf://a/b@x y"]
)
def test_addresses_that_make_no_sense(place: str) -> None:
    with pytest.raises(UsageError, match="no model on the Hub"):
        read_card(place)


def test_cards_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match="no such file"):
        read_card(str(tmp_path / "none.md"))
    with pytest.raises(MissingInput, match="is a folder"):
        read_card(str(tmp_path))
    with pytest.raises(UsageError, match="no file") as caught:
        read_card("https://example.com/a/b")
    assert "hf://OWNER/NAME" in caught.value.hint


class Hub(BaseHTTPRequestHandler):
    """Answers as the Hub does, by the name of the repo."""

    CONTENT = markdown_card().encode()
    ANSWERS = {  # noqa: RUF012 - never changed
        "gone": (404, {"X-Error-Code": "RepoNotFound"}),
        "hidden": (401, {}),
        "gated": (401, {"X-Error-Code": "GatedRepo"}),
        "forbidden": (403, {}),
        "old": (404, {"X-Error-Code": "RevisionNotFound"}),
        "bare": (404, {"X-Error-Code": "EntryNotFound"}),
        "broken": (500, {"X-Error-Message": "it broke"}),
        "stranger": (200, {}),
    }

    def answer(self) -> None:
        """Send the status and the headers that the repo's name asks for."""
        found = {"X-Repo-Commit": "c" * 40, "ETag": '"e"', "X-Seen": self.path}
        status, headers = self.ANSWERS.get(self.path.split("/")[2], (200, found))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(self.CONTENT)) if status == 200 else "0")
        self.end_headers()
        if self.command == "GET" and status == 200:
            self.wfile.write(self.CONTENT)

    do_GET = do_HEAD = answer  # noqa: N815 - names that http.server calls

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - http.server's name
        """Keep stderr clean."""


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    """Address of a Hub on this machine."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


#: Reads cards and says what came; waits between tries are left out, as the Hub of this test does not recover.
SCRIPT = """
import json, sys, time
from converter.errors import LensconvError
from converter.measurement.prompts.fetch import read_card
time.sleep = lambda seconds: None
outcomes = {}
for place in sys.argv[1:]:
    try:
        outcomes[place] = read_card(place)
    except LensconvError as error:
        outcomes[place] = [error.exit_code, type(error).__name__, error.message, error.hint]
json.dump(outcomes, sys.stdout)
"""


def fetch(folder: Path, *places: str, **environment: str) -> dict[str, Any]:
    """Read cards in a process of its own: huggingface_hub reads its environment when it is imported."""
    kept = {
        name: value for name, value in os.environ.items() if not name.upper().startswith(("HF_", "HTTP", "ALL_PROXY"))
    }
    settings = {"HF_HOME": str(folder), "HF_TOKEN": "hf_secret", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "*"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT, *places],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**kept, **settings, **environment},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "hf_secret" not in done.stdout
    outcomes: dict[str, Any] = json.loads(done.stdout)
    return outcomes


def test_cards_from_the_hub(hub: str, tmp_path: Path) -> None:
    expected = {
        "gone": "there is no such model, or it is private",
        "hidden": "the Hub answers with status 401",
        "gated": "the repo is gated",
        "forbidden": "the Hub answers with status 403",
        "old": "the repo has no such revision",
        "bare": "the repo has no README.md",
        "broken": "the Hub answers with status 500",
        "stranger": "what answers is not the Hub",
    }
    good = ("hf://maker/model", "hf://maker/model@refs/pr/1")
    outcomes = fetch(tmp_path, *good, *(f"hf://maker/{name}" for name in expected), HF_ENDPOINT=hub)
    for place in good:
        assert import_card(outcomes[place], "made") == SUITE
    for name, said in expected.items():
        code, kind, message, hint = outcomes[f"hf://maker/{name}"]
        assert (code, kind) == (HubError.exit_code, "HubError") == (4, "HubError")
        assert message == f"hf://maker/{name}: {said}"
        assert hint
    # What is cached is read without the Hub.
    outcomes = fetch(tmp_path, good[0], "hf://maker/other", HF_ENDPOINT=hub, HF_HUB_OFFLINE="1")
    assert import_card(outcomes[good[0]], "made") == SUITE
    assert "the card is not cached, and HF_HUB_OFFLINE" in outcomes["hf://maker/other"][2]


def test_a_hub_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for environment, said in (
        ({"HF_ENDPOINT": "http://user:hf_secret@127.0.0.1:9"}, "the Hub cannot be reached"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": "hf_ä"}, "the token is not ASCII"),
    ):
        (outcome,) = fetch(tmp_path / "home", "hf://maker/model", **environment).values()
        assert outcome[0] == HubError.exit_code
        assert said in outcome[2]
