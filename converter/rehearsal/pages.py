"""What a browser shows of the local Hub: its repos, their files, and the card as the Hub would show it."""

from __future__ import annotations

import html
import re
from urllib.parse import quote

from starlette.responses import HTMLResponse, Response

from converter.console import readable_size
from converter.rehearsal.call import Call
from converter.rehearsal.history import HEADS, TAGS, Entry, Repo
from converter.rehearsal.names import quoted

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;margin:0 auto;max-width:72rem;padding:1rem;color:#111;background:#fff}"
    "table{border-collapse:collapse;width:100%}td,th{border-bottom:1px solid #ddd;padding:.3rem .6rem;text-align:left}"
    "td:last-child,th:last-child{text-align:right;font-variant-numeric:tabular-nums}iframe{border:1px solid #ddd;"
    "border-radius:.5rem;height:80vh;width:100%}code{font-size:.85em}.note{color:#555}a{color:#1d4ed8}"
)
#: Nothing of a page runs, and nothing comes from elsewhere but images of cards.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-src 'self'; base-uri 'none'; form-action 'none'"
_CARD_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src 'self' http: https: data:; sandbox allow-popups"


async def show_all(call: Call) -> Response:
    """GET /: all repos that everybody may see."""
    rows = [
        f'<tr><td><a href="/{quoted(repo.page)}">{html.escape(repo.page)}</a></td><td>{repo.created}</td></tr>'
        for repo in call.hub.history.repos()
        if not repo.private or call.is_member(repo)
    ]
    table = f"<table><tr><th>repo</th><th>created</th></tr>{''.join(rows)}</table>" if rows else "<p>No repos yet.</p>"
    return _page("A local Hub", f"<h1>A local Hub</h1>{_NOTE}{table}")


async def show_repo(call: Call) -> Response:
    """GET /OWNER/NAME and /OWNER/NAME/tree/REV."""
    hub, repo, revision = call.hub, call.repo(), call.revision
    commit = hub.history.resolve(repo, revision)
    row = hub.history.commit(repo, commit)
    title = html.escape(row["title"]) if row is not None else ""
    state = ", ".join(word for word, is_so in (("private", repo.private), ("gated", repo.gated)) if is_so) or "public"
    tree = hub.history.tree(repo, commit)
    total = sum(entry.size for entry in tree.values())
    card = (
        f'<iframe sandbox="allow-popups" title="Card" src="/{quoted(repo.page)}/card/{commit}"></iframe>'
        if "README.md" in tree
        else "<p>No README.md.</p>"
    )
    return _page(
        repo.identity,
        f'<p><a href="/">All repos</a></p><h1>{html.escape(repo.page)}</h1>{_NOTE}'
        f"<p>{state}; revision <b>{html.escape(revision)}</b>, commit <code>{commit}</code>: {title}</p>"
        f"{_revisions(call, repo)}{card}<h2>Files</h2><p>{len(tree)} files, {readable_size(total)}</p>"
        f"{_files(repo, commit, tree)}",
    )


async def show_card(call: Call) -> Response:
    """GET /OWNER/NAME/card/REV: the card alone, as the Hub would show it."""
    repo = call.repo()
    commit = call.hub.history.resolve(repo, call.revision)
    image, link = (f"/{quoted(repo.page)}/{what}/{commit}/" for what in ("image", "resolve"))
    card = call.hub.readme(repo, commit)
    try:
        # The room of cards is large, and only this needs it.
        from converter.card.page import render_page
    except ImportError:
        content = f"<!doctype html><meta charset=utf-8><pre>{html.escape(card)}</pre>"
    else:
        content = render_page(card, lambda path: _inside(image, path), link=lambda path: _inside(link, path))
    return HTMLResponse(content, headers={"Content-Security-Policy": _CARD_POLICY, "X-Content-Type-Options": "nosniff"})


def _inside(base: str, address: str) -> str:
    """Where an address in a card leads: into the repo, unless it says that it does not."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:|//|#", address):
        return address
    return base + quote(address.removeprefix("./").removeprefix("/"), safe="/%?=&#-._~")


_NOTE = '<p class="note">A rehearsal: nothing here is on huggingface.co.</p>'


def _revisions(call: Call, repo: Repo) -> str:
    refs = call.hub.history.refs(repo)
    items = []
    for ref, target in refs.items():
        name = ref.removeprefix(HEADS).removeprefix(TAGS)
        kind = "branch" if ref.startswith(HEADS) else "tag" if ref.startswith(TAGS) else "pull request"
        link = f"/{quoted(repo.page)}/tree/{quote(name, safe='')}"
        items.append(f'<li>{kind} <a href="{link}">{html.escape(name)}</a> <code>{target[:12]}</code></li>')
    return f"<ul>{''.join(items)}</ul>"


def _files(repo: Repo, commit: str, tree: dict[str, Entry]) -> str:
    rows = [
        f'<tr><td><a href="/{quoted(repo.page)}/resolve/{commit}/{quoted(path)}">{html.escape(path)}</a></td>'
        f"<td><code>{entry.sha256 if entry.is_lfs else entry.oid}</code></td><td>{readable_size(entry.size)}</td></tr>"
        for path, entry in tree.items()
    ]
    return f"<table><tr><th>file</th><th>sha256, or id of git</th><th>size</th></tr>{''.join(rows)}</table>"


def _page(title: str, body: str) -> Response:
    content = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>{body}</body></html>'
    )
    return HTMLResponse(content, headers={"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff"})
