"""The page of a repo, as a browser shows it: its card, its refs and its files."""

from __future__ import annotations

import re
from functools import cache
from importlib import resources
from typing import Any
from urllib.parse import quote

import jinja2
from starlette.responses import HTMLResponse, Response

from converter.console import readable_size
from converter.presentation.card.page import render_content
from converter.presentation.card.page_style import STYLE
from converter.rehearsal.call import Call
from converter.rehearsal.repos import HEADS, TAGS, Entry, Repo
from converter.rendering import TEMPLATES_PACKAGE

#: Nothing on a page runs or is sent, and nothing comes from elsewhere except images of cards. Other sites can neither
#: frame a page nor load it as a part of theirs. ``{files}`` is the origin of LFS objects.
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src 'self' {files} https: data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    # The page of a private repo must not stay in the browser.
    "Cache-Control": "no-store",
}


async def show_page(call: Call) -> Response:
    """GET /OWNER/NAME and /OWNER/NAME/tree/REV."""
    hub, repo = call.hub, call.repo()
    commit = repo.resolve(call.revision)
    tree = repo.tree(commit)
    base = f"/{quote(repo.identity)}/resolve/{commit}/"
    text = hub.text(tree.get("README.md"))

    def inside(address: str) -> str:
        return _inside(base, address)

    page = _template().render(
        style=STYLE,
        repo=repo,
        commit=commit,
        revision=call.revision,
        card=render_content(text, inside, link=inside)[0] if text else None,
        refs=[_describe_ref(repo, ref) for ref in repo.refs()],
        files=[_describe_file(call, base, entry) for entry in tree.values()],
        size=readable_size(sum(entry.size for entry in tree.values())),
    )
    return HTMLResponse(page, headers={**_HEADERS, "Content-Security-Policy": _POLICY.format(files=hub.files_endpoint)})


@cache
def _template() -> jinja2.Template:
    """Return the template of pages, in which all values are escaped."""
    text = resources.files(TEMPLATES_PACKAGE).joinpath("hub_repo.html.jinja").read_text("utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.from_string(text)


def _describe_ref(repo: Repo, ref: str) -> dict[str, str]:
    kind = "branch" if ref.startswith(HEADS) else "tag" if ref.startswith(TAGS) else "pull request"
    name = ref.removeprefix(HEADS).removeprefix(TAGS)
    return {"kind": kind, "name": name, "address": f"/{quote(repo.identity)}/tree/{quote(name, safe='')}"}


def _describe_file(call: Call, base: str, entry: Entry) -> dict[str, Any]:
    storage = ""
    if entry.is_lfs:
        storage = "LFS" if call.hub.xet.find(entry.sha256) is None else "Xet"
    return {
        "path": entry.path,
        "address": base + quote(entry.path),
        "size": readable_size(entry.size),
        "checksum": entry.sha256 if entry.is_lfs else entry.oid,
        "storage": storage,
    }


def _inside(base: str, address: str) -> str:
    """Turn an address in a card into one on this Hub, unless it leads elsewhere."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:|//|#", address):
        return address
    return base + quote(address.removeprefix("./").removeprefix("/"), safe="/%?=&#-._~")
