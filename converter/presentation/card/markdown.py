"""Text from elsewhere as Markdown that shows exactly that text.

Templates escape every value that is not ``Markdown`` already. Escaped text is one line and is safe anywhere: at the
start of a line, in a heading, in a cell of a table. Sites replace bare addresses, mentions and emoji codes after they
have read the Markdown; empty comments, which readers do not see, break these up.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import quote

from converter.presentation.visible import SEPARATORS, one_line, visible

#: A backslash would not do for these: the Hub reads ``\\(`` and ``$$`` as the start of a formula.
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "\\": "&#92;", "$": "&#36;"}
#: Marks that are escaped everywhere, by an entity or a backslash.
_MARKS = re.compile(r"[&<>\\$`*_\[\]|~#!]")
#: Marks that mean something at the start of a line only: lists, underlines of headings, lines across the page.
_LINE_START = re.compile(r"\A(?:([-+=:])|(\d{1,9})([.)])(?=\s|\Z))")
#: The points at which addresses, mentions and emoji codes are broken up.
_LINK_SIGNS = re.compile(r"(?<=:)(?=//)|(?<=www)(?=\.)|(?<=@)(?=\S)|(?<=:)(?=[\w+-]+:)", re.IGNORECASE)
_COMMENT = "<!-- -->"
#: An address that does not lead into the repo.
_ELSEWHERE = re.compile(r"(?:https?:|mailto:|#)", re.IGNORECASE)


class Markdown(str):
    """Text that is Markdown already, and is not escaped again."""

    __slots__ = ()


def escape(text: str) -> Markdown:
    """One line of Markdown that shows the text, white space as single spaces."""
    return Markdown(_LINK_SIGNS.sub(_COMMENT, _escape_marks(text)))


def lines(text: str) -> Markdown:
    """Markdown that shows the text with its line breaks, in one line of the source."""
    parts = re.split("\r\n|[\n\r\u2028\u2029]", text.strip(f" {SEPARATORS}"))
    return Markdown("<br>".join(escape(part) for part in parts))


def code(text: str) -> Markdown:
    """The text as code inside a line; in a table, too."""
    line = one_line(text)
    if not line:
        return Markdown("")
    # A pipe ends a cell even in code, and a backslash before it shows outside of tables.
    if "`" in line or "|" in line:
        return Markdown(f"<code>{escape(line)}</code>")
    return Markdown(f"`{line}`")


def fence(text: str, language: str = "") -> Markdown:
    """The text as a block of code, which must start a line.

    Args:
        text: any; no run of backticks in it can end the block.
        language: for colours; letters, digits and ``+-``, nothing else is taken.
    """
    content = visible(text.replace("\r\n", "\n").replace("\r", "\n")).strip("\n")
    longest = max((len(run) for run in re.findall("`+", content)), default=0)
    mark = "`" * max(3, longest + 1)
    return Markdown(f"{mark}{re.sub('[^a-z0-9+-]', '', language)}\n{content}\n{mark}")


def link(text: str, address: str) -> Markdown:
    """A link; the text is escaped unless it is Markdown.

    Args:
        text: the text to show.
        address: a path in the repo, as its file is called; or an address that begins with ``https:``, ``http:``,
            ``mailto:`` or ``#``.
    """
    return Markdown(f"[{text if isinstance(text, Markdown) else escape(text)}]({_address(address)})")


def image(text: str, address: str, dark: str = "", width: int = 0) -> Markdown:
    """An image and its alternative text.

    Args:
        text: the alternative text.
        address: as for ``link``.
        dark: that of the image for pages in dark colours, where there is one.
        width: in pixels, at most; 0 for the image's own.
    """
    if not dark and not width:
        # Sites make no links in alternative text, and it would show the comments that break them up.
        return Markdown(f"![{_escape_marks(text)}]({_address(address)})")
    size = f' width="{width:d}"' if width else ""
    picture = f'<img src="{_address(address)}" alt="{_attribute(text)}"{size}>'
    if dark:
        source = f'<source media="(prefers-color-scheme: dark)" srcset="{_address(dark)}">'
        picture = f"<picture>{source}{picture}</picture>"
    return Markdown(picture)


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], align: str = "") -> Markdown:
    """A table; cells are escaped unless they are Markdown.

    Args:
        columns: titles.
        rows: as many cells each.
        align: ``l`` or ``r`` for each column; by default the first is aligned left and the others right.
    """
    align = align or "l" + "r" * (len(columns) - 1)
    marks = ("---:" if letter == "r" else "---" for letter in align)
    body = [[_cell(cell) for cell in row] for row in (columns, *rows)]
    found = [body[0], list(marks), *body[1:]]
    return Markdown("\n".join(f"| {' | '.join(row)} |" for row in found))


def _escape_marks(text: str) -> str:
    # In one pass: the replacement of a mark contains other marks.
    escaped = _MARKS.sub(lambda found: _ENTITIES.get(found[0], f"\\{found[0]}"), one_line(text))
    return _LINE_START.sub(lambda found: f"{found[2] or ''}\\{found[1] or found[3]}", escaped)


def _cell(value: object) -> str:
    return value if isinstance(value, Markdown) else escape(str(value))


def _address(address: str) -> str:
    """An address that cannot end the link or the attribute around it."""
    if not _ELSEWHERE.match(address):
        return quote(address, safe="/", errors="surrogatepass")
    return quote(one_line(address), safe="/:?#@!$&*+,;=%~").replace("&", "&amp;")


def _attribute(text: str) -> str:
    """A text for the double quotes of an attribute: every mark of HTML or Markdown is written as a number."""
    return re.sub(r"[!-$&'*<-@\[-`{-~]", lambda found: f"&#{ord(found[0])};", one_line(text))
