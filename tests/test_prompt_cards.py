"""Suites out of cards of every shape, and cards that are refused."""

from __future__ import annotations

import pytest

from converter.errors import SuiteError
from converter.measurement.prompts.card import import_card
from converter.measurement.prompts.suite import PromptSuite, SuitePrompt
from tests.cases import check_cases
from tests.prompt_cards import SUITE, markdown_card, plain_card


def refusal(text: str) -> SuiteError:
    """The error that a card gives."""
    with pytest.raises(SuiteError) as caught:
        import_card(text, "made", where="card.md")
    assert caught.value.message.startswith("card.md: ")
    assert caught.value.hint
    return caught.value


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
    "bold, no blank line": markdown_card(heading=lambda p: f"__{p.id} - {p.scenario}__\n{p.prompt}", body=lambda _: ""),
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


ONE, LIKE_ONE = SUITE.prompts[0], SuitePrompt("p01", "b", 2, "c", ())
OTHER_TITLE = "prompt P03: its row does not have the title of its heading"


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
        (markdown_card().replace("### P03 -", "### P3 -"), "no heading with a prompt was found for P03"),
        (markdown_card() + "\n\n### P11 - Extra\n\nMore.", "headings for P11, but the table does not list"),
        (markdown_card().replace("### P03 - V", "### P03 - W"), "two titles"),
        (markdown_card(body=lambda p: f"Seed: {p.seed + 1}\n\n{p.prompt}"), "two seeds: 301 and 302"),
        (markdown_card(body=lambda p: f"Seed: 1\nSeed: 2\n\n{p.prompt}"), "two seeds: 1 and 2"),
        (markdown_card(body=lambda p: f"{p.prompt}\n\nNegative prompt: blur"), "has a negative prompt"),
        (markdown_card(body=lambda p: f"Hard.\n\n> {p.prompt}"), "both a quoted block and text around it"),
        (markdown_card(body=lambda p: f"> {p.prompt}\n\n```\n{p.prompt}\n```"), "has 2 quoted blocks"),
        (markdown_card(body=lambda p: f"{p.prompt}\n\n- or not"), "has a list"),
        (markdown_card(body=lambda p: f"{p.prompt}\n\n<p>or not</p>"), "has HTML"),
        (markdown_card(body=lambda _: "![x](y.png)"), "has no text below its heading"),
        (markdown_card(body=lambda p: p.prompt + ' 5" tall'), "is never closed"),
        (markdown_card(body=lambda p: p.prompt + ' 5" tall”'), "is never closed"),
        (markdown_card(body=lambda p: p.prompt + " ”"), "has no opening mark"),
        (markdown_card(body=lambda p: p.prompt + " \0"), "prompt has the control character U+0000"),
        (markdown_card(body=lambda p: p.prompt + ' ""'), "nothing between them"),
        (markdown_card(body=lambda p: p.prompt + " word" * 4000), "more than 20000"),
        (markdown_card(body=lambda p: p.prompt + " [" * 101), "more than 100 brackets"),
        (markdown_card(header="| ID | Seed | Seed |\n|-|-|-|"), "several columns for the seed"),
        (markdown_card(header="| ID | Seed | Negative prompt |\n|-|-|-|"), "a table has negative prompts"),
        (markdown_card() + "\n\n| ID | Seed |\n|-|-|\n| P01 | 9 |", "two seeds: 301 and 9"),
        (markdown_card() + f"\n\n### P01 - {ONE.scenario}\n\nOther.", "this id but different texts"),
        (markdown_card(suite=PromptSuite("x", (ONE, LIKE_ONE))), "prompt p01: differs from P01"),
        (plain_card().replace("P03 Volcano", "P03 Vulcano"), OTHER_TITLE),
        (plain_card().replace("Hut 303", "Hut x303"), OTHER_TITLE),
        (plain_card().replace("P03 - ", "P3 - "), "prompt P03: the table lists it, but the card has no heading"),
        (plain_card().replace("\n\nP03 - ", "\n\nOne more\n\nP03 - "), "prompt P02: several paragraphs follow"),
        (plain_card().replace("Notes\n\n", "More of it.\n\n"), "prompt P10: several paragraphs follow"),
        (plain_card().replace("ID Scenario Seed", "ID Scenario and Seed"), "no seed is given"),
        ("x" * 1_000_001, "has more than 1000000 characters below its front matter"),
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


def test_a_heading_under_bold_titles_ends_what_it_ends_elsewhere() -> None:
    card = section_card('A bakery.\n\n## Notes\n\nIt "can".').replace("### P01 - One", "**P01 - One**")
    card = card.replace("### P02 - Two", "**P02 - Two**")
    assert import_card(card, "x").prompts[1].prompt == "A bakery."
    assert "text below a rule or another title" in refusal(card.replace("## Notes", "#### Notes")).message


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
