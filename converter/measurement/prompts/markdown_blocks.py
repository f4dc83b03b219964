"""The blocks of a Markdown text, found line by line, so that time grows with the length of the text and no faster.

Only what cards are made of is told apart: headings, paragraphs, lists, block quotes, code, tables and HTML. Nested
lists stay the lines that they are; of quotes within quotes only the outer one is taken off.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["code", "heading", "html", "list", "quote", "rule", "table", "text"]

_LIST_ITEM = re.compile(r" {0,3}(?:[-*+]|[0-9]{1,9}[.)])(?:[ \t]+|$)")
_HTML_START = re.compile(r" {0,3}</?[A-Za-z!?]")
_HEADING = re.compile(r" {0,3}#{1,6}(?=[ \t]|$)")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")


@dataclass(frozen=True)
class Block:
    """Consecutive lines that belong together, without the marks that say so."""

    kind: Kind
    lines: tuple[str, ...]
    level: int = 0
    """Of a heading: 1 for the highest."""
    is_underlined: bool = False
    """Whether a heading is one because of the line below it."""


def split_blocks(text: str) -> list[Block]:
    """The blocks of a text, without its front matter.

    Args:
        text: Markdown; lines end in newlines.
    """
    lines = text.split("\n")
    if lines[0].rstrip() == "---":
        # As on the Hub: metadata in YAML, up to the next such line.
        end = next((place for place in range(1, len(lines)) if lines[place].rstrip() == "---"), 0)
        lines = lines[end + 1 :] if end else lines
    return list(_scan(lines))


def _scan(lines: Sequence[str]) -> Iterator[Block]:
    place = 0
    while place < len(lines):
        line = lines[place]
        if not line.strip():
            place += 1
            continue
        kind = _kind_at(lines, place)
        end = _END[kind](lines, place)
        yield from _make_blocks(kind, lines[place:end])
        place = end


def _kind_at(lines: Sequence[str], place: int) -> Kind:
    """What begins in a line that is not blank, after a blank line or another block."""
    line = lines[place]
    if line.startswith(("    ", "\t")):
        return "code"
    return _mark_of(line) or ("table" if _is_table_header(lines, place) else "text")


def _mark_of(line: str) -> Kind | None:
    """What the first characters of a line say that it is; such a line ends a paragraph."""
    if _FENCE.match(line):
        return "code"
    if _HEADING.match(line):
        return "heading"
    if line.lstrip(" ")[:1] == ">":
        return "quote"
    if _is_rule(line):
        return "rule"
    if _LIST_ITEM.match(line):
        return "list"
    return "html" if _HTML_START.match(line) else None


def _is_rule(line: str) -> bool:
    marks = "".join(line.split())
    return len(marks) >= 3 and marks[0] in "-*_" and marks == marks[0] * len(marks)


def _is_table_header(lines: Sequence[str], place: int) -> bool:
    if place + 1 >= len(lines) or "|" not in lines[place] or not set(lines[place + 1]) <= set("|:- \t"):
        return False
    rule = split_cells(lines[place + 1])
    return all("-" in cell for cell in rule) and len(rule) == len(split_cells(lines[place]))


def split_cells(line: str) -> list[str]:
    """The cells of a row of a pipe table, their marks and entities as they are, but for escaped pipes."""
    line = line.strip().removeprefix("|")
    cells = re.split(r"(?<!\\)\|", line)
    if len(cells) > 1 and not cells[-1].strip():
        cells.pop()
    return [cell.strip().replace("\\|", "|") for cell in cells]


def _make_blocks(kind: Kind, lines: Sequence[str]) -> Iterator[Block]:
    if kind == "text" and len(lines) > 1 and _is_underline(lines[-1]):
        level = 1 if lines[-1].strip()[0] == "=" else 2
        yield Block("heading", tuple(line.strip() for line in lines[:-1]), level, is_underlined=True)
    elif kind == "heading":
        marked = lines[0].strip()
        title = marked.lstrip("#")
        level = len(marked) - len(title)
        title = title.strip()
        # Marks after the title are decoration.
        bare = title.rstrip("#")
        yield Block(kind, (bare.strip() if bare != title and bare[-1:] in (" ", "\t", "") else title,), level)
    elif kind == "quote":
        inner = [_unquote(line) for line in lines]
        if _FENCE.match(inner[0]) and _end_of_code(inner, 0) == len(inner):
            yield from _make_blocks("code", inner)
        else:
            yield Block(kind, tuple(inner))
    elif kind == "code":
        fence = _FENCE.match(lines[0])
        content = lines[1:] if fence else [line.expandtabs(4)[4:] for line in lines]
        if fence and content and _closes(content[-1], fence[1]):
            content = content[:-1]
        yield Block(kind, tuple(content))
    else:
        yield Block(kind, tuple(lines))


def _is_underline(line: str) -> bool:
    marks = line.strip()
    return bool(marks) and marks[0] in "=-" and marks == marks[0] * len(marks)


def _unquote(line: str) -> str:
    stripped = line.lstrip(" ")
    return stripped[1:].removeprefix(" ") if stripped.startswith(">") else line


def _closes(line: str, fence: str) -> bool:
    marks = line.strip()
    return len(marks) >= len(fence) and marks == fence[0] * len(marks)


def _end_of_code(lines: Sequence[str], place: int) -> int:
    fence = _FENCE.match(lines[place])
    end = place + 1
    if fence:
        while end < len(lines) and not _closes(lines[end], fence[1]):
            end += 1
        return min(end + 1, len(lines))
    while end < len(lines) and lines[end].startswith(("    ", "\t")):
        end += 1
    return end


def _end_of_text(lines: Sequence[str], place: int) -> int:
    end = place + 1
    while end < len(lines) and lines[end].strip():
        if _is_underline(lines[end]):
            return end + 1
        mark = _mark_of(lines[end])
        # Of lists, only one that begins with 1 may follow without a blank line: other numbers stand in sentences.
        is_number = (
            mark == "list" and lines[end].strip()[0].isdigit() and not lines[end].strip().startswith(("1.", "1)"))
        )
        if (mark and not is_number) or _is_table_header(lines, end):
            break
        end += 1
    return end


def _end_of_marked(lines: Sequence[str], place: int) -> int:
    """The end of a quote or a list. A line without the mark goes on with it, unless something else begins there."""
    mark = _mark_of(lines[place])
    end = place + 1
    while end < len(lines) and lines[end].strip() and _mark_of(lines[end]) in (mark, None):
        end += 1
    return end


def _end_of_html(lines: Sequence[str], place: int) -> int:
    is_comment = lines[place].lstrip().startswith("<!--")
    end = place
    while end < len(lines) and (is_comment or lines[end].strip()):
        end += 1
        if is_comment and "-->" in lines[end - 1]:
            break
    return end


def _end_of_table(lines: Sequence[str], place: int) -> int:
    end = place + 2
    while end < len(lines) and "|" in lines[end] and not _mark_of(lines[end]):
        end += 1
    return end


def _next_line(lines: Sequence[str], place: int) -> int:  # noqa: ARG001 - headings and rules have one line
    return place + 1


_END = {
    "code": _end_of_code,
    "heading": _next_line,
    "html": _end_of_html,
    "list": _end_of_marked,
    "quote": _end_of_marked,
    "rule": _next_line,
    "table": _end_of_table,
    "text": _end_of_text,
}
