"""The page of a report: one HTML document with its own style and script, which asks for nothing."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from typing import Any

import jinja2
from markupsafe import Markup

from converter.presentation.tables.table import Code, Figure, Label
from converter.presentation.visible import visible
from converter.rendering import template_folder

#: How a page begins, by which an earlier report is recognized before it is replaced.
BEGINNING = (
    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta name="generator" content="lensconv report">\n'
)


def render_report(context: Mapping[str, Any]) -> str:
    """Render a report; every text is escaped, and what nobody could see in it is written as escapes.

    Args:
        context: the values that the template uses.
    """
    style, script = (_template_text(f"report.{kind}") for kind in ("css", "js"))
    # Images beside the page: browsers differ in whether a file is of the page's own origin.
    images = "data: 'self' file:" if context["folder"] else "data:"
    policy = (
        f"default-src 'none'; img-src {images}; style-src '{_checksum(style)}'; script-src '{_checksum(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.tests |= {"code": _is_code, "figure": _is_figure, "label": _is_label}
    page = environment.from_string(_template_text("report.html.jinja"))
    return BEGINNING + page.render({**context, "policy": policy, "style": style, "script": script})


def _template_text(name: str) -> str:
    return template_folder().joinpath(name).read_text("utf-8")


def _checksum(text: str) -> str:
    """Return what a Content-Security-Policy calls a style sheet or script of this text."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _finalize(value: Any) -> Any:
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _is_code(value: object) -> bool:
    return isinstance(value, Code)


def _is_figure(value: object) -> bool:
    return isinstance(value, Figure)


def _is_label(value: object) -> bool:
    return isinstance(value, Label)
