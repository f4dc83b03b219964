"""The sections of a card in Markdown: where each begins and ends, and what of it is the prompt.

A section begins below the heading of a prompt and ends at the next one, or at any heading that is not deeper. Below
a rule or another title within it, text is left out only if it cannot be a part of the prompt.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable
from itertools import chain

from converter.measurement.prompts.card_parts import split_heading
from converter.measurement.prompts.checks import NAME_LIMIT
from converter.measurement.prompts.markdown import CODE, Block, render, shown_lines
from converter.measurement.prompts.section import Section, label_of

_BOLD = re.compile(r"(\*\*|__)(?! )(.{1,300})(?<! )\1:?")
_QUOTATION_MARKS = re.compile('["“”«»„]')
_PARAGRAPH = ["paragraph_open", "inline", "paragraph_close"]


def read_sections(blocks: Iterable[Block], ids: Container[str], where: str) -> list[Section]:
    """Read the sections below the headings of prompts.

    Args:
        blocks: the card.
        ids: the ids in its tables.
        where: what to call it in messages.

    Raises:
        SuiteError: a section contains something that is neither clearly the prompt nor clearly something else.
    """
    reader = _Reader(ids, where)
    for block in blocks:
        reader.read(block)
    return reader.sections


class _Reader:
    """Goes through the blocks of a card, and knows in which part of which section it is."""

    def __init__(self, ids: Container[str], where: str) -> None:
        self.sections: list[Section] = []
        self._ids = ids
        self._where = where
        #: Level of the last heading, and of the one that began the section; a bold title is below the last heading.
        self._level = self._section_level = 0
        self._is_inside = False
        #: Whether a rule or another title came since the section began.
        self._is_aside = False

    def read(self, block: Block) -> None:
        title = self._title_of(block)
        if block[0].type == "hr":
            self._is_aside = True
        elif title is None:
            self._read_content(block)
        elif block[0].type == "heading_open":
            self._level = int(block[0].tag[1])
            self._read_title(block, title, self._level)
        else:
            self._read_title(block, title, self._level + 1)
            below = block[1].content.partition("\n")[2]
            if below:
                self._read_content([block[0], block[1].copy(content=below), block[2]])

    def _title_of(self, block: Block) -> str | None:
        """The heading that a block is, or the bold title in its first line; None where there is none."""
        if block[0].type == "heading_open":
            source = block[1].content.replace("\n", " ")
            return render(source, self._where).strip() if len(source) <= 2 * NAME_LIMIT else ""
        first = block[1].content.partition("\n")[0].strip() if block[0].type == "paragraph_open" else ""
        bold = _BOLD.fullmatch(first)
        if not bold or bold[1] in bold[2] or label_of(bold[2]):
            return None
        title = render(bold[2], self._where).strip()
        # A sentence in bold is not a title.
        is_sentence = title.endswith((".", "!", "?")) and not split_heading(title, self._ids)
        return None if is_sentence else title

    def _read_title(self, block: Block, title: str, level: int) -> None:
        heading = split_heading(title, self._ids)
        if heading is not None:
            self.sections.append(Section(*heading, f"{self._where}: prompt {heading[0]}"))
            self._section_level = level
            self._is_inside, self._is_aside = True, False
        elif self._is_inside:
            self._read_other_title(block, title)

    def _read_other_title(self, block: Block, title: str) -> None:
        section = self.sections[-1]
        name = title.rstrip(":").strip().lower()
        if name == "prompt":
            section.add_prompt_label()
            self._is_aside = False
            return
        if name.startswith("negative prompt"):
            section.refuse_negative()
        is_end = block[0].type == "heading_open" and self._level <= self._section_level
        # A paragraph with a rule right below it is a heading for Markdown, but hardly for who wrote it.
        if not is_end or block[0].markup in ("=", "-"):
            whole = title or render(block[1].content, section.where)
            if _QUOTATION_MARKS.search(whole):
                section.refuse_part("a title with quotation marks", whole)
        self._is_inside, self._is_aside = not is_end, True

    def _read_content(self, block: Block) -> None:
        if not self._is_inside:
            return
        section = self.sections[-1]
        lines = list(shown_lines(block, section.where)) if self._is_aside else []
        if any(label_of(line) == "prompt" for line in lines):
            self._is_aside = False
        if not self._is_aside:
            _add_block(section, block)
            return
        for line in lines:
            if label_of(line):
                section.add_text([line])
            elif line.strip() and (not section.contents or _QUOTATION_MARKS.search(line)):
                section.refuse_part("text below a horizontal line (---) or another title", line)


def _add_block(section: Section, block: Block) -> None:
    kind, inner = block[0].type, block[1:-1]
    if kind in CODE:
        section.add_quote(block[0].content.strip("\n"), block[0].content.split("\n"))
    elif kind == "blockquote_open" and len(inner) == 1 and inner[0].type in CODE:
        _add_block(section, inner)
    elif kind == "blockquote_open":
        if [token.type for token in inner] != len(inner) // 3 * _PARAGRAPH:
            text = " ".join(shown_lines(block, section.where))
            section.refuse_part("a block quote with lists, headings or other blocks", text)
        shown = [render(token.content, section.where).split("\n") for token in inner if token.type == "inline"]
        paragraphs = [" ".join(line.strip() for line in lines if line.strip()) for lines in shown]
        section.add_quote("\n\n".join(filter(None, paragraphs)), chain(*shown))
    elif kind == "paragraph_open":
        section.add_text(list(shown_lines(block, section.where)))
    else:
        for line in shown_lines(block, section.where):
            if label_of(line) and kind != "html_block":
                section.add_text([line])
            elif line.strip():
                section.refuse_label(line.strip())
                section.refuse_part("HTML" if kind == "html_block" else "a list", line)
