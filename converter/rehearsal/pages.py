"""What a browser shows of the local Hub: its repos, their cards, files, commits, discussions and pull requests."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib import resources
from itertools import islice
from typing import Any
from urllib.parse import quote

import jinja2
from starlette.responses import HTMLResponse, Response

from converter.console import readable_size
from converter.presentation.card.page import render_content
from converter.presentation.card.page_style import STYLE
from converter.rehearsal.call import Call
from converter.rehearsal.discussions import Discussions
from converter.rehearsal.history import HEADS, MAIN, PULLS, TAGS, Entry, Repo
from converter.rehearsal.names import quoted
from converter.rehearsal.replies import Refusal
from converter.rendering import TEMPLATES_PACKAGE

#: Nothing of a page runs or is sent, and nothing comes from elsewhere but images of cards. Other sites can neither
#: frame a page nor load it as a part of theirs.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src 'self' https: data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    # What a private repo shows must not stay in the browser.
    "Cache-Control": "no-store",
}
#: Commits of one page.
_COMMITS = 100


async def show_all(call: Call) -> Response:
    """GET /: all repos that the one who asks may see."""
    history = call.hub.history
    repos = []
    for repo in history.repos():
        if repo.private and not call.is_member(repo):
            continue
        row = history.commit(repo, history.refs(repo).get(MAIN, ""))
        repos.append(
            {
                "name": repo.page,
                "address": f"/{quoted(repo.page)}",
                "badges": _badges(repo),
                "commit": "" if row is None else row["title"],
                "date": _date(repo.created if row is None else row["date"]),
            }
        )
    return _page(call, "repos", "Repos on this machine", repos=repos)


async def sign_in(call: Call) -> Response:
    """GET /sign-in: has the browser ask for a name and a token, which it sends from then on."""
    call.user()
    return await show_all(call)


async def show_card(call: Call) -> Response:
    """GET /OWNER/NAME and /OWNER/NAME/card/REV: the card as the Hub would show it."""
    repo = call.repo()
    commit = call.hub.history.resolve(repo, call.revision)
    image, link = (f"/{quoted(repo.page)}/{what}/{commit}/" for what in ("image", "resolve"))
    text = call.hub.readme(repo, commit)
    card = None
    if text:
        card, _ = render_content(text, lambda path: _inside(image, path), link=lambda path: _inside(link, path))
    return _repo_page(call, repo, "Card", "card", card=card)


async def show_files(call: Call) -> Response:
    """GET /OWNER/NAME/tree/REV: files of a revision, and the revisions that there are."""
    repo, history = call.repo(), call.hub.history
    commit = history.resolve(repo, call.revision)
    tree = history.tree(repo, commit)
    row = history.commit(repo, commit)
    files = [
        {
            "path": path,
            "address": f"/{quoted(repo.page)}/resolve/{commit}/{quoted(path)}",
            "size": readable_size(entry.size),
            "checksum": entry.sha256 if entry.is_lfs else entry.oid,
            "storage": _storage(call, entry),
            "commit": _commit_address(repo, entry.changed_in),
            "commit_name": entry.changed_in[:8],
        }
        for path, entry in tree.items()
    ]
    refs = [{**ref, "address": f"/{quoted(repo.page)}/tree/{quote(ref['name'], safe='')}"} for ref in _refs(call, repo)]
    return _repo_page(
        call,
        repo,
        "Files",
        "files",
        files=files,
        refs=refs,
        size=readable_size(sum(entry.size for entry in tree.values())),
        commit={
            "name": commit[:12],
            "address": _commit_address(repo, commit),
            "title": "" if row is None else row["title"],
        },
    )


async def show_commits(call: Call) -> Response:
    """GET /OWNER/NAME/commits/REV."""
    repo, history = call.repo(), call.hub.history
    newest = history.resolve(repo, call.revision)
    rows = list(islice(history.ancestry(repo, newest), _COMMITS + 1))
    names: dict[str, list[str]] = {}
    for ref in _refs(call, repo):
        names.setdefault(ref["commit"], []).append(ref["name"])
    commits = [
        {
            "name": row["oid"][:12],
            "address": _commit_address(repo, row["oid"]),
            "title": row["title"],
            "author": row["author"],
            "date": _date(row["date"]),
            "refs": names.get(row["oid"], []),
        }
        for row in rows[:_COMMITS]
    ]
    return _repo_page(call, repo, "Commits", "commits", commits=commits, is_cut=len(rows) > _COMMITS)


async def show_commit(call: Call) -> Response:
    """GET /OWNER/NAME/commit/REV: what a commit changed."""
    repo, history = call.repo(), call.hub.history
    oid = history.resolve(repo, call.revision)
    row = next(history.ancestry(repo, oid))
    parent = row["parent"]
    commit = {
        **{name: row[name] for name in ("oid", "title", "message", "author")},
        "date": _date(row["date"]),
        "parent": _commit_address(repo, parent) if parent else "",
        "parent_name": parent[:12],
        "files": f"/{quoted(repo.page)}/tree/{oid}",
    }
    before = history.tree(repo, parent) if parent else {}
    changes = list(_changes(before, history.tree(repo, oid)))
    return _repo_page(call, repo, "Commits", "commit", commit=commit, changes=changes)


async def show_discussions(call: Call) -> Response:
    """GET /OWNER/NAME/discussions."""
    repo = call.repo()
    found = [
        {
            **{name: row[name] for name in ("number", "title", "author", "status", "is_pull_request")},
            "address": f"/{quoted(repo.page)}/discussions/{row['number']}",
            "date": _date(row["created"]),
        }
        for row in Discussions(call.hub).all(repo)
    ]
    return _repo_page(call, repo, "Discussions", "discussions", discussions=found)


async def show_discussion(call: Call) -> Response:
    """GET /OWNER/NAME/discussions/N: what was said, and what merging a pull request would change."""
    repo, discussions = call.repo(), Discussions(call.hub)
    row = discussions.find(repo, int(call.part("number")))
    details = discussions.describe_fully(repo, row)
    merged, ref = row["merge_commit"], quote(f"{PULLS}{row['number']}", safe="")
    discussion = {
        **{name: row[name] for name in ("number", "title", "author", "status", "is_pull_request")},
        "date": _date(row["created"]),
        "base": row["base"].removeprefix(HEADS),
        "card": f"/{quoted(repo.page)}/card/{ref}",
        "files": f"/{quoted(repo.page)}/tree/{ref}",
        "merged": _commit_address(repo, merged) if merged else "",
        "merged_name": merged[:12],
    }
    changes = None
    if row["is_pull_request"] and not merged:
        changes = list(_changes(*discussions.before_and_after(repo, row)))
    return _repo_page(
        call,
        repo,
        "Discussions",
        "discussion",
        discussion=discussion,
        events=list(_events(repo, details["events"])),
        changes=changes,
        conflicts=details.get("filesWithConflicts", []),
    )


def refusal_page(call: Call, refusal: Refusal) -> Response:
    """What a browser shows of a refusal."""
    title = {401: "Not found, or not for everybody", 404: "Not found"}.get(refusal.status, "Refused")
    response = _page(call, "refusal", title, message=refusal.message, status=refusal.status)
    response.status_code = refusal.status
    return response


def _repo_page(call: Call, repo: Repo, tab: str, template: str, **values: Any) -> Response:
    base, revision = f"/{quoted(repo.page)}", call.revision
    # A commit's or a discussion's page has tabs of main.
    shown = quote(revision, safe="") if call.parts.get("revision") else "main"
    count = len(Discussions(call.hub).all(repo))
    tabs = [
        ("Card", base if shown == "main" else f"{base}/card/{shown}"),
        ("Files", f"{base}/tree/{shown}"),
        ("Commits", f"{base}/commits/{shown}"),
        ("Discussions", f"{base}/discussions"),
    ]
    return _page(
        call,
        template,
        f"{repo.page}: {tab}",
        repo={"name": repo.page, "badges": _badges(repo)},
        tabs=[
            {
                "label": f"{label} ({count})" if label == "Discussions" and count else label,
                "address": address,
                "is_current": label == tab,
            }
            for label, address in tabs
        ],
        revision=revision,
        **values,
    )


def _page(call: Call, template: str, title: str, **values: Any) -> Response:
    text = (
        _environment()
        .get_template(f"hub_{template}.html.jinja")
        .render(title=title, style=STYLE, viewer=call.viewer.name if call.viewer else "", **values)
    )
    return HTMLResponse(text, headers=_HEADERS)


@cache
def _environment() -> jinja2.Environment:
    """Templates of pages, in which all values are escaped."""
    folder = resources.files(TEMPLATES_PACKAGE)
    return jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: folder.joinpath(name).read_text("utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )


def _badges(repo: Repo) -> list[str]:
    return [word for word, is_so in (("private", repo.private), ("gated", repo.gated)) if is_so]


def _refs(call: Call, repo: Repo) -> Iterator[dict[str, Any]]:
    """Branches, tags and pull requests."""
    for ref, target in call.hub.history.refs(repo).items():
        kind = "branch" if ref.startswith(HEADS) else "tag" if ref.startswith(TAGS) else "pull request"
        name = ref.removeprefix(HEADS).removeprefix(TAGS)
        yield {"kind": kind, "name": name, "commit": target, "is_current": call.revision in (name, ref)}


def _storage(call: Call, entry: Entry) -> str:
    if not entry.is_lfs:
        return ""
    return "LFS" if call.hub.xet_file(entry.sha256) is None else "Xet"


def _changes(before: Mapping[str, Entry], after: Mapping[str, Entry]) -> Iterator[dict[str, str]]:
    for path in sorted(before.keys() | after.keys()):
        old, new = before.get(path), after.get(path)
        if old is None and new is not None:
            yield {"path": path, "what": "added", "size": readable_size(new.size)}
        elif new is None and old is not None:
            yield {"path": path, "what": "deleted", "size": readable_size(old.size)}
        elif new is not None and old is not None and new.oid != old.oid:
            yield {"path": path, "what": "changed", "size": readable_size(new.size)}


def _events(repo: Repo, events: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, str]]:
    """What was said and done, in words."""
    for event in events:
        data = event["data"]
        shown = {"author": event["author"]["name"], "date": _date(event["createdAt"]), "address": "", "name": ""}
        if event["type"] == "comment":
            text = data["latest"]["raw"]
        elif event["type"] == "commit":
            shown |= {"address": _commit_address(repo, data["oid"]), "name": data["oid"][:12]}
            text = data["subject"]
        elif event["type"] == "status-change":
            text = f"It is {data['status']} now."
        else:
            text = f"Its title was {data['from']}."
        if text:
            yield {**shown, "text": text}


def _commit_address(repo: Repo, oid: str) -> str:
    return f"/{quoted(repo.page)}/commit/{oid}"


def _inside(base: str, address: str) -> str:
    """Where an address in a card leads: into the repo, unless it says that it does not."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:|//|#", address):
        return address
    return base + quote(address.removeprefix("./").removeprefix("/"), safe="/%?=&#-._~")


def _date(text: str) -> str:
    """A time as the Hub writes it, to the minute."""
    return text[:16].replace("T", " ") + " UTC"
