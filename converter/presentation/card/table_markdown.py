"""Tables as Markdown."""

from __future__ import annotations

from converter.presentation.card.markdown import Markdown, code, table
from converter.presentation.tables.table import Code, Figure, Label, Table


def to_markdown(content: Table) -> Markdown:
    """Return a table as Markdown; text from files is escaped."""
    return table(content.columns, [[_cell(cell) for cell in row] for row in content.rows], content.align)


def _cell(cell: object) -> object:
    if isinstance(cell, Code):
        return code(cell)
    if isinstance(cell, Label):
        return Markdown(f"{code(cell.identifier)} {cell.words}")
    return Markdown(cell) if isinstance(cell, Figure) else cell
