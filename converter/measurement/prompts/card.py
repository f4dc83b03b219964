"""A suite from a published card: the matrix of ids and seeds, and the prompts below it.

Nothing is guessed. The ids of matrix and sections must be the same, a section holds one prompt, every title, seed and
prompt that is given twice must be given twice alike, and what cannot be told apart is refused with its reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from converter.errors import printable
from converter.measurement.prompts.card_parts import CARD_HINT, Row, merge_rows, parse_seed
from converter.measurement.prompts.checks import fail, normalize
from converter.measurement.prompts.markdown_card import read_markdown
from converter.measurement.prompts.section import Section
from converter.measurement.prompts.suite import PromptSuite, SuitePrompt
from converter.measurement.prompts.text_card import read_plain_text

#: Longest card that is read.
MAXIMUM_CARD_BYTES = 5_000_000
#: Quotation marks that close a text, by the one that opened it.
_CLOSING = {'"': '"', "“": "”", "«": "»", "„": "“”"}
_CORRECT = "Correct a copy of the card."


def import_card(text: str, name: str, *, where: str = "the card") -> PromptSuite:
    """Read the prompts of a published card.

    Args:
        text: Markdown, or how a browser shows it as plain text.
        name: what to call the suite.
        where: what to call the card in messages.

    Returns:
        The prompts in the order of the matrix; required of each are all texts that it has in double quotes.

    Raises:
        SuiteError: the card is too long, holds no prompts, leaves something out, or contradicts itself.
    """
    if len(text) > MAXIMUM_CARD_BYTES:
        fail(where, f"is longer than {MAXIMUM_CARD_BYTES} characters", "No card is this long.")
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    rows, found = read_markdown(text, where)
    if not rows and not found:
        rows, found = read_plain_text(text, where)
    if not rows and not found:
        fail(where, "holds neither a table with the columns ID and Seed nor a heading like P01 - Title", CARD_HINT)
    matrix = merge_rows(rows, where)
    sections = _merge_sections(found, where)
    _compare_ids(matrix, sections, where)
    order = list(matrix or sections)
    suite = PromptSuite(name, tuple(_make_prompt(key, matrix.get(key), sections.get(key), where) for key in order))
    suite.check(where)
    return suite


def quoted_texts(prompt: str, where: str) -> tuple[str, ...]:
    """The texts that a prompt has in double quotes, straight, curly or pointed, each once.

    Raises:
        SuiteError: a quotation mark has no partner or perhaps another one, or there is nothing between two.
    """
    texts: dict[str, None] = {}
    start, closing = -1, ""
    for place, character in enumerate(prompt):
        if closing and character in closing:
            quoted = " ".join(prompt[start:place].split())
            if not quoted:
                fail(where, f"has two quotation marks with nothing between them at character {place}", _CORRECT)
            if character == '"' and (_joins(prompt, start - 1, -1) or _joins(prompt, place, 1)):
                reason = (
                    f"a letter or digit touches the quotation marks around {printable(repr(quoted), 60)} from outside"
                )
                fail(
                    where, f"{reason}, up to character {place + 1}, so they may be inches or quotes in quotes", _CORRECT
                )
            texts[quoted] = None
            closing = ""
        elif not closing and character in _CLOSING:
            start, closing = place + 1, _CLOSING[character]
        elif not closing and character in "”»":
            fail(where, f"quotation mark {character} at character {place + 1} closes nothing", _CORRECT)
    if closing:
        rest = printable(prompt[start : start + 40])
        fail(where, f"the quotation mark before {rest} is never closed", _CORRECT)
    return tuple(texts)


def _joins(prompt: str, place: int, step: int) -> bool:
    """Whether a straight quotation mark touches a word on its outer side, as if it opened or closed the other way.

    Scripts without capital letters, such as Chinese, may put no space there: then only a space inside says so.
    """
    outer = prompt[place + step : place + step + 1] if place + step >= 0 else ""
    return outer.isdigit() or outer.lower() != outer.upper() or (outer.isalpha() and prompt[place - step].isspace())


def _merge_sections(found: list[Section], where: str) -> dict[str, Section]:
    """Sections by id. A card may name a prompt again, below its image, say, where no text follows."""
    sections: dict[str, Section] = {}
    for section in found:
        old = sections.get(section.id)
        if old is None:
            sections[section.id] = section
            continue
        place = f"{where}: prompt {section.id}"
        texts = [part.contents for part in (old, section)]
        if all(texts) and texts[0] != texts[1]:
            fail(place, "two headings with that id stand above different texts", _CORRECT)
        title = _agreed(old.title, section.title, "title", place)
        seed = _agreed(old.seed, section.seed, "seed", place)
        sections[section.id] = replace(old if texts[0] else section, title=title, seed=seed)
    return sections


def _compare_ids(matrix: Mapping[str, Row], sections: Mapping[str, Section], where: str) -> None:
    missing = [key for key, row in matrix.items() if key not in sections and not row.prompt]
    if missing:
        fail(where, f"the table names {_list(missing)}, of which there is no prompt below a heading", CARD_HINT)
    extra = [key for key in sections if key not in matrix]
    if matrix and extra:
        fail(where, f"there are headings for {_list(extra)}, but the table does not name them", CARD_HINT)


def _list(ids: list[str]) -> str:
    return printable(", ".join(ids[:10])) + (f" and {len(ids) - 10} more" if len(ids) > 10 else "")


def _make_prompt(identifier: str, row: Row | None, section: Section | None, where: str) -> SuitePrompt:
    place = f"{where}: prompt {identifier}"
    row = row or Row(identifier)
    section = section or Section(identifier, "")
    seed = _agreed(row.seed, section.seed, "seed", place)
    if not seed:
        fail(place, "no seed is given, neither in a table nor in its section", CARD_HINT)
    prompt = _agreed(row.prompt, _prompt_of(section, place), "prompt", place)
    if not prompt:
        fail(place, "no text stands below its heading", CARD_HINT)
    return SuitePrompt(
        id=identifier,
        # Some matrices have no titles; the id is what the card itself calls the prompt then.
        scenario=_agreed(row.scenario, section.title, "title", place) or identifier,
        seed=parse_seed(seed, place),
        prompt=prompt,
        required_text=quoted_texts(prompt, place),
    )


def _prompt_of(section: Section, place: str) -> str:
    if section.quotes and section.text:
        fail(place, "has both a quoted block and text around it, and either may be the prompt", _CORRECT)
    if len(section.quotes) > 1:
        fail(place, f"has {len(section.quotes)} quoted blocks, each of which may be the prompt", _CORRECT)
    return section.quotes[0] if section.quotes else section.text


def _agreed(first: str, second: str, what: str, place: str) -> str:
    """What is said once or twice alike."""
    if first and second and normalize(first) != normalize(second):
        fail(place, f"the card gives two of {what}: {first} and {second}", _CORRECT)
    return first or second
