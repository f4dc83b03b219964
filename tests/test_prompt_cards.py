"""Suites out of cards of every shape, and cards that are refused."""

from __future__ import annotations

import pytest

from converter.errors import SuiteError
from converter.measurement.prompts.card import import_card
from converter.measurement.prompts.suite import PromptSuite, SuitePrompt
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


SEVERAL = "several paragraphs follow its heading"
ASIDE = "its section has text below a rule or another title"
TITLE = "its section has a title with quotation marks"
NEGATIVE = "has a negative prompt"
TWICE = "its section has the label Prompt: twice"
LABELLED = "a line within its quoted block is labelled"
QUOTED = "its section has a block quote with lists, headings or other blocks"
INCHES = "touch a letter or digit; they may mean inches or a nested quote"


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
        ("[a]: b\nPROMPT", "[a] is not a known label"),
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
        ("> PROMPT\n>\n> Negative prompt: blurry", f"{LABELLED}: Negative prompt: blurry"),
        ("> PROMPT\n>\n> - a door", QUOTED),
        (">> PROMPT", QUOTED),
        ("> # PROMPT", QUOTED),
        ("> PROMPT\n> ```\n> A door.\n> ```", QUOTED),
        ("> **Prompt:** PROMPT", f"{LABELLED}: Prompt: A"),
        ("```\nSeed: 302\nA bakery.\n```", f"{LABELLED}: Seed: 302"),
        # Quotation marks that may open or close.
        ('A sign "SAY &quot;HI&quot; NOW".', f"the quotation marks around 'SAY' (end: character 13) {INCHES}"),
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
        ("<b>A bakery</b>\nof <https://example.com>.", "A bakery of https://example.com."),
        ("    A bakery.\n\n    At dawn.", "A bakery.\n\nAt dawn."),
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
