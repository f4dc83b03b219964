"""Templates of cards. They are sandboxed and strict, and escape every value."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import jinja2.sandbox

from converter.checkpoint.files import read_bounded
from converter.errors import FileError, InputError
from converter.presentation.card import markdown
from converter.presentation.card.markdown import Markdown
from converter.presentation.card.table_markdown import to_markdown
from converter.presentation.tables import figures
from converter.presentation.tables.table import Figure, Table
from converter.rendering import template_folder

DEFAULT_TEMPLATE = "model_card.md.jinja"
#: Longest card, in characters; longer ones come from a template that does not end.
MAXIMUM_CARD_CHARACTERS = 5_000_000
#: Most iterations of all loops over ``range`` together.
_MAXIMUM_ITERATIONS = 1_000_000
#: Longest template, in bytes.
_MAXIMUM_TEMPLATE_BYTES = 1_000_000
#: Errors of expressions in a template, in addition to Jinja's own.
_EXPRESSION_ERRORS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError)


def render_card(context: Mapping[str, Any], template: Path | None = None) -> str:
    """Render a card.

    Args:
        context: the values that the template may use.
        template: the user's template; it may include files from its folder, and the built-in ones.

    Raises:
        MissingInput: the template cannot be read.
        InputError: it is malformed, uses an unknown name, fails, or does not end.
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
        raise InputError(_message(where, None, f"the template {error.name} does not exist")) from error
    except (jinja2.TemplateError, *_EXPRESSION_ERRORS) as error:
        file, line = _locate(error, where)
        raise InputError(_message(file, line, str(error) or type(error).__name__)) from error


def render_section(name: str, context: Mapping[str, Any]) -> str:
    """Render a built-in template alone.

    Args:
        name: of the template.
        context: the values that it may use.
    """
    return _tidy(_make_environment(None).get_template(name).render(context))


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
        # The author of a template may write any Markdown: this marks the result of a macro or a set block as Markdown.
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
    # White space at the ends separates a text from its neighbours, and is kept.
    before, after = (" " if end.isspace() else "" for end in (value[:1], value[-1:]))
    return Markdown(f"{before}{markdown.escape(value)}{after if value.strip() else ''}")


def _loader(template: Path | None) -> Callable[[str], tuple[str, str, Callable[[], bool]] | None]:
    """Return a function that finds templates in the folder of the user's, then among the built-in ones."""
    built_in = template_folder()
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
    content = read_bounded(file, _MAXIMUM_TEMPLATE_BYTES, FileError)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: is not UTF-8: {error}", "Save it as UTF-8.") from error


def _limited_range() -> Callable[..., Iterator[int]]:
    """Return a ``range`` that fails after too many iterations of all its loops together."""
    left = _MAXIMUM_ITERATIONS

    def limited(*arguments: int) -> Iterator[int]:
        nonlocal left
        for value in range(*arguments):
            left -= 1
            if left < 0:
                raise OverflowError(f"its loops have more than {_MAXIMUM_ITERATIONS} iterations")
            yield value

    return limited


def _bounded(parts: Iterator[str], where: str) -> Iterator[str]:
    length = 0
    for part in parts:
        length += len(part)
        if length > MAXIMUM_CARD_CHARACTERS:
            raise InputError(f"{where}: the card has more than {MAXIMUM_CARD_CHARACTERS} characters")
        yield part


def _tidy(text: str) -> str:
    """Remove spaces at the ends of lines, repeated empty lines outside of blocks of code, and newlines at the end."""
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


def _locate(error: BaseException, where: str) -> tuple[str, int | None]:
    """Return the innermost line of a template that an error came from; Jinja adds these lines to tracebacks."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename.endswith(".jinja")]
    own = own or [frame for frame in frames if frame.filename == where]
    return (own[-1].filename, own[-1].lineno) if own else (where, None)


def _message(file: str, line: int | None, reason: str) -> str:
    return f"{file}{f', line {line}' if line else ''}: {reason}"
