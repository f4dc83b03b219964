"""A suite from a published card: the matrix of ids and seeds, and the prompts below it.

Nothing is guessed. The ids of matrix and sections must be the same, a section has one prompt, and every title, seed and
prompt that is given twice must be the same both times. A card that can be read in two ways is refused with a reason.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from converter.measurement.prompts.card_parts import CARD_HINT, Row, agreed, merge_rows, parse_seed
from converter.measurement.prompts.checks import CORRECT, fail
from converter.measurement.prompts.markdown_card import read_markdown
from converter.measurement.prompts.section import Section
from converter.measurement.prompts.suite import PromptSuite, SuitePrompt
from converter.measurement.prompts.text_card import read_plain_text

#: Longest card that is read.
MAXIMUM_CARD_BYTES = 5_000_000
#: A text in double quotes, and the mark that closes it unless it is missing; or a mark that closes nothing.
_QUOTED = re.compile(r'("[^"]*|“[^”]*|«[^»]*|„[^“”]*)(.)?|[”»]', re.DOTALL)


def import_card(text: str, name: str, *, where: str = "the card") -> PromptSuite:
    """Read the prompts of a published card.

    Args:
        text: Markdown, or the plain text that a browser shows.
        name: what to call the suite.
        where: what to call the card in messages.

    Returns:
        The prompts in the order of the matrix. All texts in double quotes are required texts.

    Raises:
        SuiteError: the card is too long, has no prompts, leaves something out, or contradicts itself.
    """
    if len(text) > MAXIMUM_CARD_BYTES:
        fail(where, f"is longer than {MAXIMUM_CARD_BYTES} characters", "Give the README.md of a model.")
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    rows, found = read_markdown(text, where)
    if not rows and not found:
        rows, found = read_plain_text(text, where)
    if not rows and not found:
        fail(where, "has neither a table with the columns ID and Seed nor a heading like P01 - Title", CARD_HINT)
    matrix = merge_rows(rows, where)
    sections = _merge_sections(found)
    _compare_ids(matrix, sections, where)
    order = list(matrix or sections)
    suite = PromptSuite(name, tuple(_make_prompt(key, matrix.get(key), sections.get(key), where) for key in order))
    suite.check(where)
    return suite


def quoted_texts(prompt: str, where: str) -> tuple[str, ...]:
    """The texts that a prompt has in double quotes (straight, curly or pointed), each once.

    Raises:
        SuiteError: a quotation mark has no partner or perhaps another one, or there is nothing between two.
    """
    texts: dict[str, None] = {}
    for found in _QUOTED.finditer(prompt):
        opened, closing, last = found[1], found[2], found.end() - 1
        if not opened:
            fail(where, f"quotation mark {found[0]} at character {last + 1} has no opening mark", CORRECT)
        if not closing:
            fail(where, f"the quotation mark before {opened[1:41]!r} is never closed", CORRECT)
        quoted = " ".join(opened[1:].split())
        if not quoted:
            fail(where, f"has two quotation marks with nothing between them at character {last}", CORRECT)
        for mark, step, verb in ((found.start(), -1, "begins"), (last, 1, "ends")):
            if closing == '"' and _joins(prompt, mark, step):
                reason = f"the quotation mark at character {mark + 1}, which {verb} {quoted!r:.60}, touches a letter"
                fail(where, f"{reason} or digit; it may mean inches or a nested quote", CORRECT)
        texts[quoted] = None
    return tuple(texts)


def _joins(prompt: str, index: int, step: int) -> bool:
    """Whether a straight quotation mark touches a word on its outer side, as if it opened or closed the other way.

    In scripts without capital letters, such as Chinese, no space may be there: then only a space inside shows it.
    """
    outer = prompt[index + step : index + step + 1]
    return outer.isdigit() or outer.lower() != outer.upper() or (outer.isalpha() and prompt[index - step].isspace())


def _merge_sections(found: list[Section]) -> dict[str, Section]:
    """The sections by id. A card may name a prompt again where no text follows, such as above its image."""
    sections: dict[str, Section] = {}
    for section in found:
        old = sections.get(section.id)
        if old is None:
            sections[section.id] = section
            continue
        if old.contents and section.contents and old.contents != section.contents:
            fail(section.where, "two headings have this id but different texts", CORRECT)
        title = agreed(old.title, section.title, "title", section.where)
        seed = agreed(old.seed, section.seed, "seed", section.where)
        sections[section.id] = replace(old if old.contents else section, title=title, seed=seed)
    return sections


def _compare_ids(matrix: Mapping[str, Row], sections: Mapping[str, Section], where: str) -> None:
    missing = [key for key, row in matrix.items() if key not in sections and not row.prompt]
    if missing:
        fail(where, f"no heading with a prompt was found for {_list(missing)}, which the table lists", CARD_HINT)
    extra = [key for key in sections if key not in matrix]
    if matrix and extra:
        fail(where, f"the card has headings for {_list(extra)}, but the table does not list them", CARD_HINT)


def _list(ids: list[str]) -> str:
    return ", ".join(ids[:10]) + (f" and {len(ids) - 10} more" if len(ids) > 10 else "")


def _make_prompt(identifier: str, row: Row | None, section: Section | None, where: str) -> SuitePrompt:
    row = row or Row(identifier)
    section = section or Section(identifier, "", f"{where}: prompt {identifier}")
    where = section.where
    seed = agreed(row.seed, section.seed, "seed", where)
    if not seed:
        fail(where, "no seed is given, neither in a table nor in its section", CARD_HINT)
    prompt = agreed(row.prompt, _prompt_of(section), "prompt", where)
    if not prompt:
        fail(where, "has no text below its heading", CARD_HINT)
    return SuitePrompt(
        id=identifier,
        # Some matrices have no titles; the card itself calls the prompt by its id then.
        scenario=agreed(row.scenario, section.title, "title", where) or identifier,
        seed=parse_seed(seed, where),
        prompt=prompt,
        required_text=quoted_texts(prompt, where),
    )


def _prompt_of(section: Section) -> str:
    if section.quotes and section.text:
        fail(section.where, "has both a quoted block and text around it, and either may be the prompt", CORRECT)
    if len(section.quotes) > 1:
        fail(section.where, f"has {len(section.quotes)} quoted blocks, each of which may be the prompt", CORRECT)
    return section.quotes[0] if section.quotes else section.text
