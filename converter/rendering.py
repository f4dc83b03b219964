"""The Jinja templates that ship with lensconv."""

from __future__ import annotations

from importlib import resources
from typing import Any

#: The package that contains the folder ``templates`` in an installation.
TEMPLATES_PACKAGE = "converter.templates"


def render(template: str, **values: Any) -> str:
    """Render a template; a missing value is an error.

    Args:
        template: the file name of the template.
        values: the values that it may use.
    """
    import jinja2

    text = resources.files(TEMPLATES_PACKAGE).joinpath(template).read_text("utf-8")
    # The result is Markdown for a README, not HTML.
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)  # noqa: S701
    return environment.from_string(text).render(**values)
