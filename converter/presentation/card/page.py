"""A card as the Hub would show it: one HTML document, without scripts, other files or requests."""

from __future__ import annotations

import base64
import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from html import escape
from typing import Any

from converter.front_matter import parse_front_matter, split_card
from converter.presentation.card.page_style import STYLE

#: Elements that pages of the Hub show.
_TAGS = """
    a b blockquote br center code dd del details div dl dt em figcaption figure h1 h2 h3 h4 h5 h6 hr
    i img ins kbd li ol p picture pre q s samp small source span strong sub summary sup table tbody
    td tfoot th thead tr tt u ul var
"""
_ATTRIBUTES = {
    "a": {"href", "title"},
    "img": {"src", "alt", "title", "width", "height"},
    "source": {"media", "srcset"},
    "code": {"class"},
    "td": {"align", "colspan", "rowspan"},
    "th": {"align", "colspan", "rowspan"},
    "ol": {"start"},
    "details": {"open"},
    "div": {"align"},
    "p": {"align"},
}
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*:|//|#", re.IGNORECASE)
_ALIGN = re.compile(r'<(t[dh]) style="text-align:(left|right|center)">')
_HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")
_STYLE_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
#: No scripts, frames, forms or fonts; this one style sheet, and images.
_POLICY = (
    f"default-src 'none'; img-src 'self' data: https:; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; "
    "form-action 'none'"
)
#: Letters, their marks, digits, and what connects words: what the anchor of a heading keeps of its text.
_ANCHOR_CATEGORIES = frozenset(["Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "No", "Pc"])
#: Keys whose values are shown as labels.
_LABELS = ("pipeline_tag", "library_name", "language", "tags", "license")


def render_page(markdown: str, resolve: Callable[[str], str]) -> str:
    """Render a card as a complete document; see ``render_content``."""
    content, title = render_content(markdown, resolve)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<meta name="referrer" content="no-referrer">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"{content}</main>\n</body>\n</html>\n"
    )


def render_content(
    markdown: str, resolve: Callable[[str], str], *, link: Callable[[str], str] = lambda address: address
) -> tuple[str, str]:
    """Render a card as HTML that is safe in a page with ``page_style.STYLE``, and return the text of its first heading.

    Args:
        markdown: the whole card, with its front matter.
        resolve: turns the address of an image inside the repo, which is relative and has escapes such as ``%20``, into
            the address that the page uses.
        link: the same for links to files inside the repo; by default they stay as they are.
    """
    metadata, _ = parse_front_matter(markdown)
    _, body = split_card(markdown)
    html, title = _to_html(body)
    content = _sanitise(html, resolve, link)
    parts = [_labels(metadata), _gallery(metadata, resolve), _front_matter(metadata)]
    return f"{''.join(parts)}<article>\n{content}</article>\n", title


class _Anchors:
    """The anchors of headings by GitHub's rule: small letters, hyphens for spaces, no punctuation, no name twice."""

    def __init__(self) -> None:
        self.first_title = ""
        #: Anchors that were given, and how often each was asked for: counting on from there keeps long cards fast.
        self._taken = Counter[str]()

    def name(self, title: str) -> str:
        """The anchor of the next heading, from its text."""
        self.first_title = self.first_title or title
        kept = (sign for sign in title.lower() if sign in "- " or unicodedata.category(sign) in _ANCHOR_CATEGORIES)
        base = name = "".join(kept).replace(" ", "-")
        while name in self._taken:
            self._taken[base] += 1
            name = f"{base}-{self._taken[base]}"
        self._taken[name] = 0
        return name


def _to_html(body: str) -> tuple[str, str]:
    """The card before it is sanitised, with anchors for its headings; and the text of its first heading."""
    from markdown_it import MarkdownIt
    from mdit_py_plugins.anchors import anchors_plugin

    anchors = _Anchors()
    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    parser.use(anchors_plugin, max_level=len(_HEADINGS), slug_func=anchors.name)
    # Styles are removed later, so the alignment of cells becomes an attribute.
    html = _ALIGN.sub(r'<\1 align="\2">', parser.render(body))
    return html, anchors.first_title or "Model card"


def _sanitise(html: str, resolve: Callable[[str], str], link: Callable[[str], str]) -> str:
    import nh3

    def rewrite(tag: str, attribute: str, value: str) -> str | None:
        if attribute == "src" or (attribute == "srcset" and not re.search(r"[\s,]", value.strip())):
            return _image_address(value, resolve)
        if attribute == "href" and not _ADDRESS.match(value):
            return link(value)
        if (tag, attribute) == ("code", "class"):
            return value if re.fullmatch("language-[a-z0-9+-]+", value) else None
        # The rest of srcset lists several images, and one is enough.
        return None if attribute == "srcset" else value

    return nh3.clean(
        html,
        tags=set(_TAGS.split()),
        attributes=_ATTRIBUTES | {tag: {"id"} for tag in _HEADINGS},
        url_schemes={"http", "https", "mailto"},
        attribute_filter=rewrite,
        link_rel="nofollow noopener noreferrer",
        strip_comments=True,
    )


def _image_address(value: str, resolve: Callable[[str], str]) -> str | None:
    """The address of an image; None for one that is neither in the repo nor on the web."""
    value = value.strip()
    if not _ADDRESS.match(value):
        return resolve(value)
    return value if value.lower().startswith("https://") else None


def _labels(metadata: Mapping[str, Any]) -> str:
    """Labels above the card: task, library, languages, tags and license."""
    texts: dict[str, None] = {}
    for key in _LABELS:
        prefix = "license: " if key == "license" else ""
        texts |= dict.fromkeys(prefix + text for text in _texts(metadata.get(key)))
    found = [f'<span class="label">{escape(text)}</span>' for text in texts]
    return f'<div class="labels">{" ".join(found)}</div>\n' if found else ""


def _front_matter(metadata: Mapping[str, Any]) -> str:
    """The front matter as a table; the gallery is shown as one."""
    rows = "".join(
        f"<tr><th>{escape(key)}</th><td>{escape(', '.join(_texts(value)))}</td></tr>\n"
        for key, value in metadata.items()
        if key != "widget"
    )
    shown = f"<summary>Metadata</summary>\n<table>\n{rows}</table>"
    return f'<details class="metadata">{shown}</details>\n' if rows else ""


def _gallery(metadata: Mapping[str, Any], resolve: Callable[[str], str]) -> str:
    figures = []
    for text, address in _gallery_images(metadata.get("widget")):
        source = _image_address(address, resolve)
        if source is not None:
            figures.append(
                f'<figure><img src="{escape(source)}" alt="{escape(text)}">'
                f"<figcaption>{escape(text)}</figcaption></figure>\n"
            )
    return f'<section class="gallery">\n{"".join(figures)}</section>\n' if figures else ""


def _gallery_images(widget: Any) -> Iterator[tuple[str, str]]:
    for entry in widget if isinstance(widget, list) else ():
        output = entry.get("output") if isinstance(entry, Mapping) else None
        if isinstance(output, Mapping) and isinstance(output.get("url"), str):
            yield str(entry.get("text", "")), output["url"]


def _texts(value: Any) -> list[str]:
    """A value of the front matter as texts, one or several."""
    if value is None:
        return []
    return [text for item in value for text in _texts(item)] if isinstance(value, list) else [str(value)]
