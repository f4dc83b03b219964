"""The section below the heading of a prompt: the prompt, and labelled lines such as ``Seed: 301`` around it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from converter.measurement.prompts.card_parts import agreed
from converter.measurement.prompts.checks import CORRECT, IN_COPY, fail

_LABEL = re.compile(r"(seed|scenario|title|negative prompt|prompt)\s*:", re.IGNORECASE)
#: Up to three words before a colon (a wide one in Chinese), or an equals sign; neither addresses nor times of day.
_ANY_LABEL = re.compile(
    r'([^\s:="“”«»„\uff1a]+(?:[ \t]+[^\s:="“”«»„\uff1a]+){0,2})\s*(?:[:=](?=\s|$)|(?<!\d)[:=](?!//)|\uff1a)'
)
#: What to do with a section that has more than a prompt.
_SEPARATE = (
    "In a copy of the card's Markdown (README.md), put the whole prompt into a block quote or a code block, and move "
    "other text below a heading after the last prompt, such as ## Notes."
)
#: Longest line that looks like a label rather than a sentence with a colon, where no known label is near.
_SHORT = 60


@dataclass
class Section:
    """What was found below the heading of a prompt."""

    id: str
    title: str
    """The rest of the heading; empty when it only has the id."""
    where: str
    """The card and the prompt, for messages."""
    seed: str = ""
    text: str = ""
    """The one paragraph that is the prompt."""
    quotes: list[str] = field(default_factory=list)
    """Content of block quotes and code blocks, each of which is a prompt if any is."""
    is_labelled: bool = False
    """Whether the word Prompt, as a label or a title, was above the prompt."""

    @property
    def contents(self) -> list[str]:
        """All that may be the prompt."""
        return [content for content in (self.text, *self.quotes) if content]

    def add_text(self, lines: Sequence[str]) -> None:
        """Take a paragraph: labelled lines, the prompt, or both.

        Args:
            lines: the text that a reader sees; an image is a blank line.

        Raises:
            SuiteError: the prompt has a paragraph already, or a label is unknown or contradicts another one.
        """
        lines = [line.strip() for line in lines]
        self._check_labels([line for line in lines if line])
        parts: list[list[str]] = [[]]
        for line in lines:
            # A label or an image ends the text before it.
            if not line or label_of(line):
                parts.append([])
            rest = self._take_label(line)
            if rest:
                parts[-1].append(rest)
        for part in filter(None, parts):
            self._add_paragraph(" ".join(part))

    def add_quote(self, text: str, lines: Iterable[str]) -> None:
        """Take a block quote or a code block.

        Args:
            text: its content.
            lines: the same as it is wrapped in the card.

        Raises:
            SuiteError: a line of it is not a part of a prompt.
        """
        for line in lines:
            if label_of(line) in ("seed", "prompt", "negative prompt"):
                reason = f"a line within its quoted block is labelled: {line.strip()[:60]!r}"
                fail(self.where, reason, "Leave only the prompt in that block, in a copy of the card.")
        self.quotes.append(text)

    def add_prompt_label(self) -> None:
        """Note that the word Prompt is above the text that follows.

        Raises:
            SuiteError: the word was there before.
        """
        if self.is_labelled:
            fail(self.where, "its section has the label Prompt: twice, and either text may be the prompt", CORRECT)
        self.is_labelled = True

    def refuse_negative(self) -> NoReturn:
        """Raise the error of a prompt with a negative one."""
        fail(self.where, "has a negative prompt, which a suite cannot have", f"Remove it {IN_COPY}")

    def refuse_part(self, what: str, text: str) -> NoReturn:
        """Raise the error of a section with something that may or may not belong to the prompt.

        Args:
            what: what was found.
            text: its beginning is shown.
        """
        reason = f"its section has {what}, which may or may not be a part of the prompt: {text.strip()[:60]!r}"
        fail(self.where, reason, _SEPARATE)

    def refuse_label(self, line: str) -> None:
        """Refuse a line with an unknown label, such as ``Steps: 20``.

        Raises:
            SuiteError: the line has one.
        """
        label = _ANY_LABEL.match(line)
        if label and not label_of(line):
            reason = f"{label[1]!r} is not a known label, and its line may or may not be a part of the prompt"
            fail(self.where, reason, _SEPARATE)

    def _check_labels(self, lines: Sequence[str]) -> None:
        """Refuse unknown labels. One line alone is a prompt that begins with a few words and a colon, so far."""
        is_labelled = any(label_of(line) for line in lines)
        for line in lines if len(lines) > 1 else ():
            if is_labelled or len(line) <= _SHORT:
                self.refuse_label(line)

    def _add_paragraph(self, paragraph: str) -> None:
        if self.text:
            for text in (self.text, paragraph):
                if len(text) <= _SHORT:
                    self.refuse_label(text)
            reason = "several paragraphs follow its heading, and nothing shows where the prompt ends"
            fail(self.where, f"{reason}; the second begins {paragraph[:60]!r}", _SEPARATE)
        self.text = paragraph

    def _take_label(self, line: str) -> str:
        """Take the value of a labelled line, and return the part of the line that belongs to the prompt."""
        name = label_of(line)
        value = line.partition(":")[2].strip()
        if not name:
            return line
        if name == "prompt":
            self.add_prompt_label()
            return value
        if name == "negative prompt":
            self.refuse_negative()
        if name == "seed":
            self.seed = agreed(self.seed, value, name, self.where)
        else:
            self.title = agreed(self.title, value, "title", self.where)
        return ""


def label_of(line: str) -> str:
    """The known label that a line begins with, in lower case, such as ``seed`` in ``Seed: 301``; empty without one."""
    label = _LABEL.match(line.strip())
    return label[1].lower() if label else ""
