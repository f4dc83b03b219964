"""What a reader of Markdown sees."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache

from markdown_it import MarkdownIt
from markdown_it.token import Token

from converter.measurement.prompts.checks import PROMPT_LIMIT, fail
from converter.measurement.prompts.markdown_blocks import Block

#: Longest Markdown that is rendered; what stands for the longest prompt is hardly twice as long.
_SOURCE_LIMIT = 2 * PROMPT_LIMIT
#: Brackets in one text: looking for links takes time that grows with their number squared.
_BRACKET_LIMIT = 100
#: Characters without which Markdown is what it looks like.
_MARKS = re.compile(r"[\\*_`&<\[]")
_LIST_MARK = re.compile(r"\A *(?:[-*+]|[0-9]{1,9}[.)]) +")
_TAG = re.compile(r"<!--.*?(?:-->|\Z)|<[^<>]*>", re.DOTALL)
_LINE_BREAK = re.compile(r"<br\s*/?>", re.IGNORECASE)
#: Inline tags that format text, or show no text at all.
_FORMATTING = re.compile(
    r"</?(?:a|b|code|em|i|img|kbd|mark|s|small|span|strong|sub|sup|u)\b[^<>]*>|<!--", re.IGNORECASE
)


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


def shown_lines(block: Block, where: str) -> Iterator[str]:
    """The lines of a block as they are seen, one by one; none of a table, whose cells belong to no prompt's text.

    Args:
        block: any block.
        where: as for ``render``.
    """
    if block.kind == "code":
        yield from block.lines
    elif block.kind == "html":
        yield from _TAG.sub(" ", "\n".join(block.lines)).split("\n")
    elif block.kind != "table":
        for line in block.lines:
            yield from render(_LIST_MARK.sub("", line), where).split("\n")
