"""The sections of a card in Markdown: where each begins and ends, and what of it is the prompt.

A section begins below the heading of a prompt and ends at the next one, or at any heading that is not deeper. Below
a rule or another title within it, text is left out only if it can be no part of the prompt.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator, Sequence

from converter.errors import printable
from converter.measurement.prompts.card_parts import split_heading
from converter.measurement.prompts.checks import NAME_LIMIT, fail
from converter.measurement.prompts.markdown_blocks import Block
from converter.measurement.prompts.markdown_text import render, shown_lines
from converter.measurement.prompts.section import Section, label_of

_BOLD = re.compile(r"(\*\*|__)(?! )(.{1,300})(?<! )\1:?")
_QUOTATION_MARKS = re.compile('["“”«»„]')


def read_sections(blocks: Iterable[Block], ids: Container[str], where: str) -> list[Section]:
    """Read what stands below the headings of prompts.

    Args:
        blocks: the card.
        ids: what its tables name.
        where: what to call it in messages.

    Raises:
        SuiteError: a section holds what is neither clearly prompt nor clearly something else.
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
        title = _title_of(block)
        if block.kind == "rule":
            self._is_aside = True
        elif title is not None:
            self._read_title(block, render(title, self._where).strip())
        elif self._is_inside:
            self._read_content(block)

    def _read_title(self, block: Block, title: str) -> None:
        level = block.level or self._level + 1
        self._level = block.level or self._level
        # A bold title may be the first line of its paragraph.
        content = Block("text", block.lines[1:] if block.kind == "text" else ())
        heading = split_heading(title, self._ids)
        if heading is not None:
            self.sections.append(Section(*heading))
            self._section_level = level
            self._is_inside, self._is_aside = True, False
        elif self._is_inside and block.kind == "text" and title.endswith((".", "!", "?")):
            # A sentence in bold is no title.
            content = block
        elif self._is_inside:
            self._read_other_title(block, title)
        if self._is_inside and content.lines:
            self._read_content(content)

    def _read_other_title(self, block: Block, title: str) -> None:
        section = self.sections[-1]
        name = title.rstrip(":").strip().lower()
        if name == "prompt":
            section.add_prompt_label(self._where)
            self._is_aside = False
            return
        if name.startswith("negative prompt"):
            section.refuse_negative(self._where)
        is_end = block.kind == "heading" and block.level <= self._section_level
        place = f"{self._where}: prompt {section.id}"
        # A paragraph with a rule right below it is a heading for Markdown, but hardly for who wrote it.
        if not is_end or block.is_underlined:
            whole = title or render(" ".join(block.lines), place)
            if _QUOTATION_MARKS.search(whole):
                _refuse(place, "a title with quotation marks", whole)
        self._is_inside, self._is_aside = not is_end, True

    def _read_content(self, block: Block) -> None:
        section = self.sections[-1]
        place = f"{self._where}: prompt {section.id}"
        lines = list(shown_lines(block, place)) if self._is_aside else []
        if any(label_of(line) == "prompt" for line in lines):
            self._is_aside = False
        if not self._is_aside:
            _add_block(section, block, self._where)
            return
        for line in lines:
            if label_of(line):
                section.add_text([line], self._where)
            elif line.strip() and (not section.contents or _QUOTATION_MARKS.search(line)):
                _refuse(place, "text below a rule or another title", line.strip())


def _title_of(block: Block) -> str | None:
    """The heading that a block is, or begins with; None when it is none."""
    if block.kind == "heading":
        title = " ".join(block.lines)
        return title if len(title) <= 2 * NAME_LIMIT else ""
    bold = _BOLD.fullmatch(block.lines[0].strip()) if block.kind == "text" else None
    return bold[2] if bold and bold[1] not in bold[2] and not label_of(bold[2]) else None


def _add_block(section: Section, block: Block, where: str) -> None:
    place = f"{where}: prompt {section.id}"
    if block.kind == "code":
        section.add_quote("\n".join(block.lines).strip("\n"), block.lines, where)
    elif block.kind == "quote":
        paragraphs = list(_paragraphs(block.lines, place))
        text = "\n\n".join(" ".join(lines) for lines in paragraphs)
        section.add_quote(text, (line for lines in paragraphs for line in lines), where)
    elif block.kind == "text":
        section.add_text(render("\n".join(block.lines), place).split("\n"), where)
    else:
        for line in shown_lines(block, place):
            if block.kind == "list" and label_of(line):
                section.add_text([line], where)
            elif line.strip():
                section.refuse_label(line.strip(), where)
                _refuse(place, "a list" if block.kind == "list" else "HTML", line.strip())


def _paragraphs(lines: Sequence[str], place: str) -> Iterator[list[str]]:
    """The paragraphs of a block quote, line by line as they are shown."""
    paragraph: list[str] = []
    for line in (*lines, ""):
        if line.strip():
            paragraph.append(line.strip())
        elif paragraph:
            shown = render("\n".join(paragraph), place).split("\n")
            yield [stripped for line in shown if (stripped := line.strip())]
            paragraph = []


def _refuse(place: str, what: str, text: str) -> None:
    fail(
        place,
        f"its section holds {what}, which may or may not be a part of the prompt: {printable(text, 60)}",
        "In a copy of the card, write the prompt as one paragraph, block quote or code block, and move other text "
        "below a heading of its own after the last prompt, such as ## Notes.",
    )
