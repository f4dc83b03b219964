"""Cards in Markdown: what their tables and the sections of their prompts say."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from converter.front_matter import split_card
from converter.measurement.prompts.card_parts import COLUMNS, Row, find_columns, make_row
from converter.measurement.prompts.checks import CORRECT, SUITE_LIMIT, fail
from converter.measurement.prompts.markdown import Block, render, split_blocks
from converter.measurement.prompts.markdown_sections import read_sections
from converter.measurement.prompts.section import Section

#: Longest Markdown that is parsed. A million characters in the shortest possible paragraphs take half a gigabyte.
_BODY_LIMIT = 1_000_000


def read_markdown(text: str, where: str) -> tuple[list[Row], list[Section]]:
    """Read what a card in Markdown says about prompts.

    Args:
        text: the card; lines end in newlines.
        where: what to call it in messages.

    Returns:
        Rows of its tables and sections of its prompts, in their order; both empty where it has no such Markdown.

    Raises:
        SuiteError: a section contains something that is neither clearly the prompt nor clearly something else.
    """
    _, body = split_card(text)
    if len(body) > _BODY_LIMIT:
        fail(where, f"has more than {_BODY_LIMIT} characters below its front matter", CORRECT)
    blocks = list(split_blocks(body))
    found = (row for block in blocks if block[0].type == "table_open" for row in _read_table(block, where))
    # Cards may name a prompt in several tables.
    rows = list(islice(found, 10 * SUITE_LIMIT + 1))
    if len(rows) > 10 * SUITE_LIMIT:
        fail(where, f"tables name more than {10 * SUITE_LIMIT} prompts", "Split it into several cards.")
    return rows, read_sections(blocks, {row.id for row in rows}, where)


def _read_table(block: Block, where: str) -> Iterator[Row]:
    names, *lines = _cells(block)
    # Most tables are about something else, and some are large.
    if not any(name.strip("*_` ").lower() in COLUMNS["id"] for name in names):
        return
    columns = find_columns([render(name, where) for name in names], where)
    if columns is None:
        return
    read = columns.values()
    for cells in lines:
        row = make_row([render(cell, where) if at in read else "" for at, cell in enumerate(cells)], columns)
        if row is not None:
            yield row


def _cells(block: Block) -> list[list[str]]:
    """The cells of a table as Markdown, row by row; the first has the names of the columns."""
    rows: list[list[str]] = []
    for token in block:
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline":
            rows[-1].append(token.content)
    return rows
