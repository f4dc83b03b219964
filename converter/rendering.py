"""The Jinja templates that ship with lensconv."""

from __future__ import annotations

from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any


def template_folder() -> Traversable:
    """The folder of the templates: a package of an installation, or else next to ``converter`` in the repository."""
    try:
        return resources.files("converter.templates")
    except ModuleNotFoundError:
        return Path(__file__).parents[1] / "templates"


def render(template: str, **values: Any) -> str:
    """Render a template; a missing value is an error.

    Args:
        template: the file name of the template.
        values: the values that it may use.
    """
    import jinja2

    text = template_folder().joinpath(template).read_text("utf-8")
    # The result is Markdown for a README, not HTML.
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)  # noqa: S701
    return environment.from_string(text).render(**values)
