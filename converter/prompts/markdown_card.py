"""Cards in Markdown: what their tables and the sections of their prompts say."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import islice

from markdown_it import MarkdownIt
from markdown_it.token import Token

from converter.errors import printable
from converter.prompts.card_parts import COLUMNS, Row, Section, find_columns, is_label, make_row, split_heading
from converter.prompts.checks import NAME_LIMIT, PROMPT_LIMIT, SUITE_LIMIT, fail
from converter.prompts.markdown_blocks import Block, split_blocks, split_cells

#: Longest Markdown that is rendered; what stands for the longest prompt is hardly twice as long.
_SOURCE_LIMIT = 2 * PROMPT_LIMIT
#: Brackets in one text: looking for links takes time that grows with their number squared.
_BRACKET_LIMIT = 100
#: Characters without which Markdown is what it looks like.
_MARKS = re.compile(r"[\\*_`&<\[]")
_BOLD = re.compile(r"(\*\*|__)(?! )(.{1,300})(?<! )\1:?")
_LIST_MARK = re.compile(r"\A *(?:[-*+]|[0-9]{1,9}[.)]) +")
_TAG = re.compile(r"<!--.*?(?:-->|\Z)|<[^<>]*>", re.DOTALL)
_LINE_BREAK = re.compile(r"<br\s*/?>", re.IGNORECASE)
#: Inline tags that format text, or show no text at all.
_FORMATTING = re.compile(
    r"</?(?:a|b|code|em|i|img|kbd|mark|s|small|span|strong|sub|sup|u)\b[^<>]*>|<!--", re.IGNORECASE
)


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
    sections: list[Section] = []
    is_open = False
    for block in blocks:
        title = _title_of(block)
        content = block
        if title is not None or block.kind == "rule":
            title = render(title or "", where).strip()
            # A bold title may be the first line of its paragraph.
            content = Block("text", block.lines[1:] if block.kind == "text" else ())
            is_caption = is_open and title.rstrip(":").lower() == "prompt"
            heading = split_heading(title, ids)
            is_open = is_caption or heading is not None
            if heading is not None:
                sections.append(Section(*heading))
        if is_open and content.lines:
            _add_block(sections[-1], content, where)
    return rows, sections


def render(source: str, where: str) -> str:
    """The text that a reader of Markdown sees: marks gone, entities and escapes as what they stand for.

    Args:
        source: inline Markdown; a line break within it stays one.
        where: the card, and the prompt where there is one.

    Raises:
        SuiteError: it is longer than any prompt, or has too many brackets.
    """
    if len(source) > _SOURCE_LIMIT:
        fail(
            where,
            f"a text has {len(source)} characters, more than {_SOURCE_LIMIT}",
            "Shorten it in a copy of the card.",
        )
    if source.count("[") > _BRACKET_LIMIT:
        fail(where, f"a text has more than {_BRACKET_LIMIT} brackets", "Remove them from a copy of the card.")
    if not _MARKS.search(source):
        return source
    return "".join(_texts(_parser().parseInline(source)[0].children or ()))


@cache
def _parser() -> MarkdownIt:
    return MarkdownIt("commonmark")


def _texts(tokens: Sequence[Token]) -> Iterator[str]:
    for token in tokens:
        if token.type in ("softbreak", "hardbreak"):
            yield "\n"
        elif token.type == "html_inline":
            if _LINE_BREAK.fullmatch(token.content):
                yield "\n"
            elif not _FORMATTING.match(token.content):
                yield token.content
        elif token.type != "image":
            yield token.content


def _title_of(block: Block) -> str | None:
    """The heading that a block is, or begins with; None when it is none."""
    if block.kind == "heading":
        title = " ".join(block.lines)
        return title if len(title) <= 2 * NAME_LIMIT else ""
    bold = _BOLD.fullmatch(block.lines[0].strip()) if block.kind == "text" else None
    return bold[2] if bold and bold[1] not in bold[2] and not is_label(bold[2]) else None


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


def _add_block(section: Section, block: Block, where: str) -> None:
    place = f"{where}: prompt {section.id}"
    if block.kind == "code":
        section.quotes.append("\n".join(block.lines).strip("\n"))
    elif block.kind == "quote":
        section.quotes.append("\n\n".join(_paragraphs(block.lines, place)))
    elif block.kind == "text":
        lines = [section.add_line(line, where) for line in render("\n".join(block.lines), place).split("\n")]
        paragraph = _join(lines)
        if paragraph:
            section.paragraphs.append(paragraph)
    elif block.kind == "list":
        for line in block.lines:
            item = render(_LIST_MARK.sub("", line), place).strip()
            rest = section.add_line(item, where)
            if rest and rest == item:
                _refuse(place, "a list", rest)
            if rest:
                section.paragraphs.append(rest)
    elif block.kind == "html":
        seen = _TAG.sub(" ", "\n".join(block.lines)).strip()
        if seen:
            _refuse(place, "HTML", seen)


def _refuse(place: str, what: str, text: str) -> None:
    fail(
        place,
        f"its section holds {what}, which may or may not be a part of the prompt: {printable(text, 60)}",
        "Write the prompt as a paragraph, a block quote or a code block in a copy of the card.",
    )


def _paragraphs(lines: Sequence[str], place: str) -> Iterator[str]:
    paragraph: list[str] = []
    for line in (*lines, ""):
        if line.strip():
            paragraph.append(line.strip())
        elif paragraph:
            yield _join(render("\n".join(paragraph), place).split("\n"))
            paragraph = []


def _join(lines: Sequence[str]) -> str:
    """Lines of one paragraph, which only the width of the card has broken."""
    return " ".join(stripped for line in lines if (stripped := line.strip()))
