"""What stands below the heading of a prompt: the prompt, and labelled lines such as ``Seed: 301`` around it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from converter.errors import printable
from converter.measurement.prompts.checks import fail

_LABEL = re.compile(r"(seed|scenario|title|negative prompt|prompt)\s*:", re.IGNORECASE)
#: Up to three words before a colon (a wide one in Chinese), or an equals sign; neither addresses nor times of day.
_ANY_LABEL = re.compile(
    r'([^\s:="“”«»„\uff1a]+(?:[ \t]+[^\s:="“”«»„\uff1a]+){0,2})\s*(?:[:=](?=\s|$)|(?<!\d)[:=](?!//)|\uff1a)'
)
#: Longest line that looks like a label rather than a sentence with a colon, where no known label is near.
_SHORT = 60
_CORRECT = "Correct a copy of the card."


@dataclass
class Section:
    """What stands below the heading of a prompt."""

    id: str
    title: str
    """The rest of the heading; empty when it only holds the id."""
    seed: str = ""
    text: str = ""
    """The one paragraph that is the prompt."""
    quotes: list[str] = field(default_factory=list)
    """Content of block quotes and code fences, each of which is a prompt if any is."""
    is_labelled: bool = False
    """Whether the word Prompt, as a label or a title, stood above the prompt."""

    @property
    def contents(self) -> list[str]:
        """All that may be the prompt."""
        return [content for content in (self.text, *self.quotes) if content]

    def add_text(self, lines: Sequence[str], where: str) -> None:
        """Take a paragraph: labelled lines, the prompt, or both.

        Args:
            lines: what a reader sees; an image is a blank line.
            where: the card.

        Raises:
            SuiteError: the prompt has a paragraph already, or a label is unknown or contradicts another one.
        """
        lines = [line.strip() for line in lines]
        self._check_labels([line for line in lines if line], where)
        part: list[str] = []
        for line in (*lines, ""):
            # A label or an image ends the text before it.
            if part and (not line or label_of(line)):
                self._add_paragraph(" ".join(part), where)
                part = []
            rest = self._take_label(line, where)
            if rest:
                part.append(rest)

    def add_quote(self, text: str, lines: Iterable[str], where: str) -> None:
        """Take a block quote or a code block.

        Args:
            text: what it holds.
            lines: the same as it is wrapped in the card.
            where: the card.

        Raises:
            SuiteError: a line of it is no part of a prompt.
        """
        for line in lines:
            if label_of(line) in ("seed", "prompt", "negative prompt"):
                reason = f"a line within its quoted block is labelled: {printable(line.strip(), 60)}"
                fail(self._place(where), reason, "Leave only the prompt in that block, in a copy of the card.")
        self.quotes.append(text)

    def add_prompt_label(self, where: str) -> None:
        """Remember that the word Prompt stands above what follows.

        Raises:
            SuiteError: it does so for the second time.
        """
        if self.is_labelled:
            fail(self._place(where), "its section says Prompt: twice, and either may be the prompt", _CORRECT)
        self.is_labelled = True

    def refuse_negative(self, where: str) -> NoReturn:
        """Raise the error of a prompt with a negative one."""
        reason = "has a negative prompt, which no suite can hold"
        fail(self._place(where), reason, "Remove it from a copy of the card.")

    def refuse_label(self, line: str, where: str) -> None:
        """Refuse a line that says what it gives, such as ``Steps: 20``, where that is not known.

        Raises:
            SuiteError: the line does so.
        """
        label = _ANY_LABEL.match(line)
        if label and not label_of(line):
            fail(
                self._place(where),
                f"{label[1]} is no known label, and its line may or may not be a part of the prompt",
                "In a copy of the card, remove that line, or put the whole prompt into a block quote or a code block.",
            )

    def _check_labels(self, lines: Sequence[str], where: str) -> None:
        """Refuse unknown labels. One line alone is a prompt that begins with a few words and a colon, so far."""
        is_labelled = any(label_of(line) for line in lines)
        for line in lines if len(lines) > 1 else ():
            if is_labelled or len(line) <= _SHORT:
                self.refuse_label(line, where)

    def _add_paragraph(self, paragraph: str, where: str) -> None:
        if self.text:
            for text in (self.text, paragraph):
                if len(text) <= _SHORT:
                    self.refuse_label(text, where)
            fail(
                self._place(where),
                "several paragraphs follow its heading, and nothing tells where the prompt ends; the second begins "
                + printable(paragraph, 60),
                "Put the prompt into a block quote or a code block, and remove other text, in a copy of the card's "
                "Markdown (README.md).",
            )
        self.text = paragraph

    def _take_label(self, line: str, where: str) -> str:
        """Take what a labelled line says, and return what of the line belongs to the prompt."""
        name = label_of(line)
        value = line.partition(":")[2].strip()
        if not name:
            return line
        if name == "prompt":
            self.add_prompt_label(where)
            return value
        if name == "negative prompt":
            self.refuse_negative(where)
        old = self.seed if name == "seed" else self.title
        if old and old != value:
            reason = f"{name} is both {printable(old)} and {printable(value)}"
            fail(self._place(where), reason, _CORRECT)
        if name == "seed":
            self.seed = value
        else:
            self.title = value
        return ""

    def _place(self, where: str) -> str:
        return f"{where}: prompt {self.id}"


def label_of(line: str) -> str:
    """What a line says that it gives, in lower case, such as ``seed`` in ``Seed: 301``; empty if nothing known."""
    label = _LABEL.match(line.strip())
    return label[1].lower() if label else ""
