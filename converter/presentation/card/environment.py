"""Templates of cards: sandboxed, strict, and escaping what they show."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import jinja2.sandbox

from converter.errors import InputError, MissingInput, printable, unreadable
from converter.presentation.card import markdown
from converter.presentation.card.markdown import Markdown
from converter.presentation.card.table_markdown import to_markdown
from converter.presentation.tables import figures
from converter.presentation.tables.table import Figure, Table
from converter.rendering import TEMPLATES_PACKAGE

DEFAULT_TEMPLATE = "model_card.md.jinja"
#: Longest card that is made; what is longer comes from a template that does not end.
MAXIMUM_CARD_CHARACTERS = 5_000_000
#: Turns that all loops over ``range`` may take together.
_MAXIMUM_TURNS = 1_000_000
#: Longest template that is read.
_MAXIMUM_TEMPLATE_BYTES = 1_000_000
#: What an expression of a template can fail with, beside Jinja's own errors.
_EXPRESSION_ERRORS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError)


def render_card(context: Mapping[str, Any], template: Path | None = None) -> str:
    """Render a card.

    Args:
        context: what the template may use.
        template: of the user; the files beside it and the built-in ones can be included.

    Raises:
        MissingInput: the template cannot be read.
        InputError: it is malformed, uses what is not there, fails, or does not end.
    """
    environment = _make_environment(template)
    name = DEFAULT_TEMPLATE if template is None else template.name
    where = str(template or name)
    try:
        loaded = environment.get_template(name)
        return _tidy("".join(_bounded(loaded.generate(context), where)))
    except jinja2.TemplateSyntaxError as error:
        raise InputError(_message(error.filename or error.name or where, error.lineno, error.message or "")) from error
    except jinja2.TemplateNotFound as error:
        raise InputError(_message(where, None, f"there is no template {error.name}")) from error
    except (jinja2.TemplateError, *_EXPRESSION_ERRORS) as error:
        file, line = _place(error, where)
        raise InputError(_message(file, line, str(error) or type(error).__name__)) from error


def _make_environment(template: Path | None) -> jinja2.Environment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        undefined=jinja2.StrictUndefined,
        loader=jinja2.FunctionLoader(_loader(template)),
        finalize=_finalize,
        autoescape=False,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
        cache_size=0,
    )
    environment.filters |= {
        "code": markdown.code,
        "fence": markdown.fence,
        "lines": markdown.lines,
        "link": markdown.link,
        "image": markdown.image,
        "table": _table,
        # A template's author may write any Markdown; this is for what a macro or a set block made of it.
        "markdown": Markdown,
        "number": figures.number,
        "percent": figures.percent,
        "signed_percent": figures.signed_percent,
        "count": figures.count,
        "size": figures.size,
        "short": figures.short,
    }
    environment.globals = {"range": _limited_range(), "dict": dict}
    return environment


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]], align: str = "") -> Markdown:
    return to_markdown(Table(columns, rows, align))


def _finalize(value: Any) -> Any:
    if not isinstance(value, str) or isinstance(value, Markdown | Figure):
        return value
    # What separates a text from its neighbours is no part of it.
    before, after = (" " if end.isspace() else "" for end in (value[:1], value[-1:]))
    return Markdown(f"{before}{markdown.escape(value)}{after if value.strip() else ''}")


def _loader(template: Path | None) -> Callable[[str], tuple[str, str, Callable[[], bool]] | None]:
    """Looks for templates beside the user's, then among the built-in ones."""
    built_in = resources.files(TEMPLATES_PACKAGE)
    known = {entry.name for entry in built_in.iterdir() if entry.name.endswith(".jinja")}

    def load(name: str) -> tuple[str, str, Callable[[], bool]] | None:
        if "/" in name or "\\" in name:
            return None
        if template is not None and (name == template.name or (template.parent / name).is_file()):
            file = template.parent / name
            return _read(file), str(file), lambda: True
        if name not in known:
            return None
        return built_in.joinpath(name).read_text("utf-8"), name, lambda: True

    return load


def _read(file: Path) -> str:
    where = printable(str(file))
    try:
        if not file.is_file():
            raise MissingInput(where, "no such file", "Check the path.")
        with file.open("rb") as stream:
            content = stream.read(_MAXIMUM_TEMPLATE_BYTES + 1)
    except OSError as error:
        raise unreadable(where, error) from error
    if len(content) > _MAXIMUM_TEMPLATE_BYTES:
        raise InputError(f"{where}: is longer than {_MAXIMUM_TEMPLATE_BYTES} bytes, which no template is")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: is not UTF-8: {error}", "Save it as UTF-8.") from error


def _limited_range() -> Callable[..., Iterator[int]]:
    """Python's range, until all of a template's ranges together have gone too far."""
    left = _MAXIMUM_TURNS

    def limited(*arguments: int) -> Iterator[int]:
        nonlocal left
        for value in range(*arguments):
            left -= 1
            if left < 0:
                raise OverflowError(f"its loops take more than {_MAXIMUM_TURNS} turns")
            yield value

    return limited


def _bounded(parts: Iterator[str], where: str) -> Iterator[str]:
    length = 0
    for part in parts:
        length += len(part)
        if length > MAXIMUM_CARD_CHARACTERS:
            raise InputError(f"{where}: gives more than {MAXIMUM_CARD_CHARACTERS} characters")
        yield part


def _tidy(text: str) -> str:
    """No spaces at the ends of lines, no more than one empty line outside of blocks of code, one newline at the end."""
    kept: list[str] = []
    mark = ""
    for line in text.split("\n"):
        start = line[: len(line) - len(line.lstrip("`"))]
        if mark:
            mark = "" if start == mark == line.rstrip() else mark
        else:
            line = line.rstrip(" \t")
            mark = start if len(start) >= len("```") else ""
            if not line and (not kept or not kept[-1]):
                continue
        kept.append(line)
    return "\n".join(kept).rstrip("\n") + "\n"


def _place(error: BaseException, where: str) -> tuple[str, int | None]:
    """The innermost line of a template that an error came from; Jinja puts its own lines into tracebacks."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.endswith(".jinja")]
    frames = frames or [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == where]
    return (frames[-1].filename, frames[-1].lineno) if frames else (where, None)


def _message(file: str, line: int | None, reason: str) -> str:
    place = printable(file) + (f", line {line}" if line else "")
    return f"{place}: {printable(reason)}"
