"""The Jinja templates that ship with lensconv."""

from __future__ import annotations

from importlib import resources
from typing import Any

#: The package under which the wheel carries the folder ``templates``.
TEMPLATES_PACKAGE = "converter.templates"


def render(template: str, **values: Any) -> str:
    """Render a template; a value that it wants and does not get is an error.

    Args:
        template: its file name.
        values: what it may use.
    """
    import jinja2

    text = resources.files(TEMPLATES_PACKAGE).joinpath(template).read_text("utf-8")
    # The result is Markdown for a README, not HTML.
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)  # noqa: S701
    return environment.from_string(text).render(**values)
