"""The blocks of a card in Markdown, and the text that a reader sees in them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache

from markdown_it import MarkdownIt
from markdown_it.token import Token

from converter.measurement.prompts.checks import CORRECT, PROMPT_LIMIT, fail

#: The tokens of a block that is in no other one, from the one that opens it to the one that closes it.
Block = Sequence[Token]

#: Types of tokens that are code.
CODE = ("code_block", "fence")
#: Longest Markdown that is rendered; the Markdown of the longest prompt is hardly twice as long.
_SOURCE_LIMIT = 2 * PROMPT_LIMIT
#: Brackets in one text: looking for links takes time that grows with their number squared.
_BRACKET_LIMIT = 100
_TAG = re.compile(r"<!--.*?(?:-->|\Z)|<[^<>]*>", re.DOTALL)
_LINE_BREAK = re.compile(r"<br\s*/?>", re.IGNORECASE)
#: Inline tags that format text, or show no text at all.
_FORMATTING = re.compile(
    r"</?(?:a|b|code|em|i|img|kbd|mark|s|small|span|strong|sub|sup|u)\b[^<>]*>|<!--", re.IGNORECASE
)


def split_blocks(text: str) -> Iterator[Block]:
    """The blocks of a card, the text in each as Markdown.

    Args:
        text: the card without its front matter; lines end in newlines.
    """
    block: list[Token] = []
    # Most of a card is not read, so the text of its blocks is not parsed here.
    for token in _parser("block").parse(text):
        block.append(token)
        if token.level == 0 and token.nesting <= 0:
            yield block
            block = []


def render(source: str, where: str) -> str:
    """The text that a reader of Markdown sees: marks are gone, entities and escapes are resolved.

    Args:
        source: inline Markdown; a line break within it stays one.
        where: the card, and the prompt where there is one.

    Raises:
        SuiteError: it is longer than any prompt, or has too many brackets.
    """
    if len(source) > _SOURCE_LIMIT:
        fail(where, f"a text has {len(source)} characters, more than {_SOURCE_LIMIT}", CORRECT)
    if source.count("[") > _BRACKET_LIMIT:
        fail(where, f"a text has more than {_BRACKET_LIMIT} brackets", CORRECT)
    (text,) = _parser("block", "inline", "text_join").parseInline(source)
    return "".join(_texts(text.children or ()))


def shown_lines(block: Block, where: str) -> Iterator[str]:
    """The lines that a reader sees in a block; none of a table, whose cells belong to no prompt's text.

    Args:
        block: any block.
        where: as for ``render``.
    """
    for token in () if block[0].type == "table_open" else block:
        if token.type == "inline":
            yield from render(token.content, where).split("\n")
        elif token.type in CODE:
            yield from token.content.split("\n")
        elif token.type == "html_block":
            yield from _TAG.sub(" ", token.content).split("\n")


@cache
def _parser(*rules: str) -> MarkdownIt:
    """A parser with some of its core rules; never with the one that replaces null characters, which are refused."""
    parser = MarkdownIt("commonmark").enable("table").disable("reference")
    parser.core.ruler.enableOnly(rules)
    return parser


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
