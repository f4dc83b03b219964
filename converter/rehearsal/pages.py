"""The page of a repo, as a browser shows it: its card, its refs and its files."""

from __future__ import annotations

from functools import cache
from urllib.parse import quote

import jinja2
from starlette.responses import HTMLResponse, Response

from converter.console import readable_size
from converter.presentation.card.page import render_content
from converter.presentation.card.page_style import STYLE
from converter.rehearsal.call import Call
from converter.rehearsal.repos import HEADS, TAGS
from converter.rendering import template_folder

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
    card = hub.text(tree.get("README.md"))
    files = f"/{quote(repo.identity)}/resolve/{commit}/"

    def inside(address: str) -> str:
        return files + quote(address.removeprefix("./").removeprefix("/"), safe="/%?=&#-._~")

    page = _template().render(
        style=STYLE,
        repo=repo,
        base=files,
        commit=commit,
        revision=call.revision,
        card=render_content(card, inside, link=inside)[0] if card else None,
        refs=[ref.removeprefix(HEADS).removeprefix(TAGS) for ref in repo.refs()],
        files=tree.values(),
        is_xet=hub.xet.find,
        readable_size=readable_size,
    )
    policy = _POLICY.format(files=hub.files_endpoint)
    return HTMLResponse(page, headers={**_HEADERS, "Content-Security-Policy": policy})


@cache
def _template() -> jinja2.Template:
    """Return the template of pages, in which all values are escaped."""
    text = template_folder().joinpath("hub_repo.html.jinja").read_text("utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.from_string(text)
