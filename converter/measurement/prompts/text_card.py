"""Cards as a browser shows them, copied as plain text: no marks, and tables with tabs or spaces between their cells.

Without marks much is ambiguous, so little is accepted: one paragraph below each heading, and rows of a table only where
the titles of the headings show where their cells end.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from converter.measurement.prompts.card_parts import COLUMNS, Row, find_columns, make_row, split_heading
from converter.measurement.prompts.checks import CORRECT, fail
from converter.measurement.prompts.section import Section

#: What to do with a card whose plain text is ambiguous.
_IMPORT_MARKDOWN = "Import the Markdown of the card (README.md) instead of its plain text."
#: Characters of a line that may be the title of what follows the last prompt.
_TITLE_LIMIT = 80


def read_plain_text(text: str, where: str) -> tuple[list[Row], list[Section]]:
    """Read a card that has no Markdown.

    Args:
        text: the card; lines end in newlines.
        where: what to call it in messages.

    Returns:
        Rows of its tables and sections of its prompts, in their order.

    Raises:
        SuiteError: nothing shows where a prompt or a cell ends.
    """
    parts = groupby(text.split("\n"), key=lambda line: bool(line.strip()))
    blocks = [list(lines) for is_text, lines in parts if is_text]
    tables = [block for block in blocks if _is_table(block)]
    ids = {line.split()[0] for table in tables for line in table[1:]}
    sections = _read_sections([block for block in blocks if not _is_table(block)], ids, where)
    titles = {section.id: section.title for section in sections}
    rows = [row for table in tables for row in _read_table(table, titles, where)]
    return rows, sections


def _is_table(block: Sequence[str]) -> bool:
    if "\t" in block[0]:
        names = [name.strip().lower() for name in block[0].split("\t")]
        return len(block) > 1 and any(name in COLUMNS["id"] for name in names) and "seed" in names
    return len(block) > 1 and block[0].lower().split()[:1] == ["id"] and "seed" in block[0].lower().split()[1:3]


def _read_sections(blocks: Sequence[list[str]], ids: set[str], where: str) -> list[Section]:
    sections: list[Section] = []
    is_open = False
    headings = [split_heading(block[0], ids) if len(block) == 1 else None for block in blocks]
    last = max((index for index, heading in enumerate(headings) if heading), default=-1)
    for index, (block, heading) in enumerate(zip(blocks, headings, strict=True)):
        if heading is not None:
            sections.append(Section(*heading, f"{where}: prompt {heading[0]}"))
            is_open = True
            continue
        if is_open and block[0].strip().rstrip(":").lower() == "negative prompt":
            sections[-1].refuse_negative()
        # Only below the last prompt may something else begin; elsewhere a short line could be a part of the prompt.
        is_open = is_open and not (index > last and sections[-1].text and _is_title(block))
        if is_open:
            sections[-1].add_text(block)
    return sections


def _is_title(block: Sequence[str]) -> bool:
    line = block[0].strip()
    return len(block) == 1 and len(line) <= _TITLE_LIMIT and line[-1] not in '.,;:!?"”»'


def _read_table(table: Sequence[str], titles: dict[str, str], where: str) -> list[Row]:
    if "\t" in table[0]:
        columns = find_columns(table[0].split("\t"), where)
        rows = [make_row(line.split("\t"), columns or {}) for line in table[1:]]
        return [row for row in rows if row is not None]
    columns = find_columns(table[0].split()[:3], where)
    if columns is None or columns["seed"] != len(columns) - 1 or "prompt" in columns:
        fail(where, f"the columns of the table cannot be separated: {table[0]!r}", _IMPORT_MARKDOWN)
    return [_split_row(line, titles, "scenario" in columns, where) for line in table[1:]]


def _split_row(line: str, titles: dict[str, str], has_scenario: bool, where: str) -> Row:
    """Split a row such as ``P01 Some Title 301 19.5``, where only the heading shows how long the title is."""
    identifier, *words = line.split()
    where = f"{where}: prompt {identifier}"
    title = titles.get(identifier, "").split() if has_scenario else []
    if has_scenario and not title:
        reason = f"the table lists it, but the card has no heading such as {identifier} - Title"
        fail(where, reason, _IMPORT_MARKDOWN)
    rest = words[len(title) :]
    if words[: len(title)] != title or not rest or not rest[0].isdecimal():
        parts = "id, the title of its heading and the seed" if has_scenario else "id and the seed"
        fail(where, f"its row in the table must begin with the {parts}, but is {line!r}", CORRECT)
    return Row(identifier, " ".join(title), rest[0])
