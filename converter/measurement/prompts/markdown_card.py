"""Cards in Markdown: what their tables and the sections of their prompts say."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from converter.measurement.prompts.card_parts import COLUMNS, Row, find_columns, make_row
from converter.measurement.prompts.checks import SUITE_LIMIT, fail
from converter.measurement.prompts.markdown_blocks import Block, split_blocks, split_cells
from converter.measurement.prompts.markdown_sections import read_sections
from converter.measurement.prompts.markdown_text import render
from converter.measurement.prompts.section import Section


def read_markdown(text: str, where: str) -> tuple[list[Row], list[Section]]:
    """Read what a card in Markdown says about prompts.

    Args:
        text: the card; lines end in newlines.
        where: what to call it in messages.

    Returns:
        Rows of its tables and sections of its prompts, in their order; both empty where it has no such Markdown.

    Raises:
        SuiteError: a section holds what is neither clearly prompt nor clearly something else.
    """
    blocks = split_blocks(text)
    found = (row for block in blocks if block.kind == "table" for row in _read_table(block, where))
    # Cards may name a prompt in more tables than one.
    rows = list(islice(found, 10 * SUITE_LIMIT + 1))
    if len(rows) > 10 * SUITE_LIMIT:
        fail(where, f"tables name more than {10 * SUITE_LIMIT} prompts", "Make several cards of it.")
    ids = {row.id for row in rows}
    return rows, read_sections(blocks, ids, where)


def _read_table(block: Block, where: str) -> Iterator[Row]:
    names = split_cells(block.lines[0])
    # Most tables are about something else, and some are large.
    if not any(name.strip("*_` ").lower() in COLUMNS["id"] for name in names):
        return
    columns = find_columns([render(name, where) for name in names], where)
    if columns is None:
        return
    read = set(columns.values())
    for line in block.lines[2:]:
        cells = split_cells(line)
        row = make_row([render(cell, where) if place in read else "" for place, cell in enumerate(cells)], columns)
        if row is not None:
            yield row
