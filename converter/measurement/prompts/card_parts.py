"""Rows of tables and headings of cards: the ids, titles and seeds of prompts."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass

from converter.measurement.prompts.checks import CORRECT, IN_COPY, fail, normalize

#: What to do with a card that cannot be read.
CARD_HINT = (
    "A card needs a table with the columns ID and Seed (and Scenario, or Prompt), or a line such as Seed: 301 in each "
    'section, and above each prompt a heading such as "### P01 - Title".'
)
#: Names of the columns that are read, by what they give.
COLUMNS = {
    "id": ("id", "prompt id"),
    "scenario": ("scenario", "scene", "title"),
    "seed": ("seed",),
    "prompt": ("prompt", "full prompt", "prompt text"),
}
#: Ids that are known without a table that names them.
_USUAL_ID = re.compile(r"P[0-9]{1,6}")
#: What may separate an id from a title.
_SEPARATORS = "-–—:.|"  # noqa: RUF001 - typographers' dashes
#: First cells of rows that summarise the others.
_SUMMARIES = ("average", "mean", "median", "total")
#: What a row may give beside an id.
_VALUES = ("scenario", "seed", "prompt")
_DIGITS = re.compile(r"[0-9]{1,19}")


@dataclass(frozen=True)
class Row:
    """The values that a table gives for a prompt; empty where it has no such column."""

    id: str = ""
    scenario: str = ""
    seed: str = ""
    prompt: str = ""


def find_columns(cells: Sequence[str], where: str) -> dict[str, int] | None:
    """The indices of the columns that are read.

    Args:
        cells: names of all columns.
        where: the card.

    Returns:
        The indices by key of ``COLUMNS``; None for a table that is not about prompts.

    Raises:
        SuiteError: two columns give the same, or one gives negative prompts.
    """
    names = [" ".join(cell.split()).lower() for cell in cells]
    found = {key: [index for index, name in enumerate(names) if name in known] for key, known in COLUMNS.items()}
    if not found["id"] or not (found["seed"] or found["prompt"]):
        return None
    if any(name.startswith("negative prompt") for name in names):
        fail(where, "a table has negative prompts, which a suite cannot have", f"Remove them {IN_COPY}")
    for key, indices in found.items():
        if len(indices) > 1:
            twice = " and ".join(repr(cells[index]) for index in indices)
            fail(where, f"a table has several columns for the {key}: {twice}", f"Remove one {IN_COPY}")
    return {key: indices[0] for key, indices in found.items() if indices}


def make_row(cells: Sequence[str], columns: Mapping[str, int]) -> Row | None:
    """The row of a table; None for one that is blank or summarises other rows."""
    row = Row(**{key: cells[index].strip() for key, index in columns.items() if index < len(cells)})
    is_summary = row.id.lower() in (*_SUMMARIES, "") and not _DIGITS.fullmatch(row.seed) and not row.prompt
    return None if is_summary else row


def merge_rows(rows: Iterable[Row], where: str) -> dict[str, Row]:
    """The rows of all tables by id, in their order.

    Raises:
        SuiteError: two rows contradict each other.
    """
    merged: dict[str, Row] = {}
    for row in rows:
        old = merged.get(row.id, row)
        prompt = f"{where}: prompt {row.id}"
        values = {key: agreed(getattr(old, key), getattr(row, key), key, prompt) for key in _VALUES}
        merged[row.id] = Row(row.id, **values)
    return merged


def agreed(first: str, second: str, what: str, where: str) -> str:
    """The value that a card gives once or several times, or an empty string.

    Args:
        first: one value, or an empty string.
        second: the same.
        what: what to call it.
        where: the card and the prompt, for messages.

    Raises:
        SuiteError: the two differ.
    """
    if first and second and normalize(first) != normalize(second):
        fail(where, f"the card gives two {what}s: {first!r} and {second!r}", CORRECT)
    return first or second


def split_heading(text: str, ids: Container[str]) -> tuple[str, str] | None:
    """Split the heading of a prompt.

    Args:
        text: such as ``P01 - Title``, ``P01: Title`` or ``P01``, with or without the word Prompt before it.
        ids: the ids in the tables; ``P`` and a number is always known.

    Returns:
        The id, and the title or an empty string; None for any other heading.
    """
    text = text.strip()
    if text[:7].lower() == "prompt ":
        text = text[7:].lstrip()
    word, _, rest = text.partition(" ")
    if word and not _is_id(word, ids) and word[-1] in _SEPARATORS:
        word, rest = word[:-1], f"{word[-1]} {rest}"
    if not _is_id(word, ids):
        return None
    rest = rest.strip()
    if not rest:
        return word, ""
    # A dash within a word separates nothing.
    if rest[0] in _SEPARATORS and not rest[1:2].strip():
        return word, rest[1:].strip()
    return None


def _is_id(word: str, ids: Container[str]) -> bool:
    return word in ids or _USUAL_ID.fullmatch(word) is not None


def parse_seed(text: str, where: str) -> int:
    """The number that a card gives as a seed.

    Raises:
        SuiteError: it is not a number.
    """
    if not _DIGITS.fullmatch(text):
        fail(where, f"seed {text!r} is not a whole number", CORRECT)
    return int(text)
