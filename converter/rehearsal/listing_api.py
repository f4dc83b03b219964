"""What repos hold: their description, their files, and where these come from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlencode

from starlette.responses import Response

from converter.front_matter import parse_front_matter
from converter.rehearsal.call import Call, parse_pairs
from converter.rehearsal.history import Entry, Repo, pointer
from converter.rehearsal.names import KINDS, check_path
from converter.rehearsal.replies import Refusal, entry_not_found, reply

#: Paths in one request, as the Hub limits them.
_PATHS_LIMIT = 1000


async def list_repos(call: Call) -> Response:
    """GET /api/models and the like: repos that the one who asks may know of."""
    kind, query = KINDS[call.parts["kind"]], call.query
    author, wanted = query.get("author", ""), query.get("search", "").lower()
    found = [
        repo
        for repo in call.hub.history.repos()
        if repo.kind == kind
        and (not repo.private or call.is_member(repo))
        and author in ("", repo.owner)
        and wanted in repo.identity.lower()
    ]
    return reply([_describe(repo) for repo in found])


async def show_repo(call: Call) -> Response:
    """GET /api/T/ID and .../revision/REV."""
    hub, repo = call.hub, call.repo()
    commit = hub.history.resolve(repo, call.revision)
    tree = hub.history.tree(repo, commit)
    row = hub.history.commit(repo, commit)
    metadata = _metadata(hub.readme(repo, commit))
    tags = metadata.get("tags")
    answer = {
        **_describe(repo),
        "sha": commit,
        "lastModified": repo.created if row is None else row["date"],
        "disabled": False,
        "cardData": metadata,
        "tags": [tag for tag in tags if isinstance(tag, str)] if isinstance(tags, list) else [],
        "siblings": [_sibling(entry, with_blob=bool(call.query.get("blobs"))) for entry in tree.values()],
        "usedStorage": hub.history.used_bytes(repo),
    }
    for name in ("library_name", "pipeline_tag"):
        if isinstance(metadata.get(name), str):
            answer[name] = metadata[name]
    wanted = {value for name, value in call.query_pairs if name == "expand"}
    if wanted:
        answer = {name: value for name, value in answer.items() if name in wanted or name in ("_id", "id")}
    return reply(answer)


async def list_tree(call: Call) -> Response:
    """GET .../tree/REV[/PATH], a page at a time."""
    hub, repo, query = call.hub, call.repo(), call.query
    commit = hub.history.resolve(repo, call.revision)
    tree = hub.history.tree(repo, commit)
    folder = call.part("path").rstrip("/")
    if folder:
        prefix = f"{check_path(folder)}/"
        tree = {path: entry for path, entry in tree.items() if path.startswith(prefix)}
        if not tree:
            raise entry_not_found(commit)
    start = query.get("cursor", "0")
    if not start.isascii() or not start.isdecimal() or len(start) > 9:
        raise Refusal(400, "Invalid cursor")
    listed = _list(tree, len(folder) + 1 if folder else 0, is_recursive=_is_true(query.get("recursive")))
    first, last = int(start), int(start) + hub.settings.page_entries
    headers = {"X-Repo-Commit": commit}
    if last < len(listed):
        pairs = [(name, value) for name, value in call.query_pairs if name != "cursor"]
        path = call.request.scope["raw_path"].decode("ascii")
        headers["Link"] = f'<{hub.endpoint}{path}?{urlencode([*pairs, ("cursor", last)])}>; rel="next"'
    answer = _with_commits(call, repo, listed[first:last], is_expanded=_is_true(query.get("expand")))
    return reply(answer, headers=headers)


async def show_paths(call: Call) -> Response:
    """POST .../paths-info/REV: files and folders by their paths; those that are not there are left out."""
    repo = call.repo()
    tree = call.hub.history.tree(repo, call.hub.history.resolve(repo, call.revision))
    paths, is_expanded = await _asked_paths(call)
    if len(paths) > _PATHS_LIMIT:
        raise Refusal(413, f"At most {_PATHS_LIMIT} paths can be asked for at once")
    by_path = {item.path if isinstance(item, Entry) else item: item for item in _list(tree, 0, is_recursive=True)}
    found = [by_path[path] for path in paths if path in by_path]
    return reply(_with_commits(call, repo, found, is_expanded=is_expanded, tree=tree))


async def _asked_paths(call: Call) -> tuple[list[str], bool]:
    """Paths, and whether their last commits are asked for; the client sends a form."""
    if call.request.headers.get("content-type", "").startswith("application/json"):
        values = await call.json()
        paths = values.get("paths")
        if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
            raise Refusal(400, '"paths" must be an array of strings')
        return paths, values.get("expand") is True
    pairs = parse_pairs((await call.body()).decode("latin-1"), limit=10 * _PATHS_LIMIT)
    expand = [value for name, value in pairs if name == "expand"]
    return [value for name, value in pairs if name == "paths"], _is_true(expand[-1] if expand else None)


def _list(tree: Mapping[str, Entry], skipped: int, *, is_recursive: bool) -> list[Entry | str]:
    """Files, and folders by their paths, in the order of these.

    Args:
        tree: the files.
        skipped: characters at the start of their paths that name the folder that is listed.
    """
    found: dict[str, Entry | str] = {}
    for path, entry in tree.items():
        places = [place for place in range(skipped, len(path)) if path[place] == "/"]
        for place in places if is_recursive else places[:1]:
            found[path[:place]] = path[:place]
        if is_recursive or not places:
            found[path] = entry
    return [found[path] for path in sorted(found)]


def _with_commits(
    call: Call, repo: Repo, items: Iterable[Entry | str], *, is_expanded: bool, tree: Mapping[str, Entry] | None = None
) -> list[dict[str, Any]]:
    answers = []
    for item in items:
        if isinstance(item, str):
            oid = hashlib.sha1(f"tree {item}".encode(), usedforsecurity=False).hexdigest()
            inside = [entry for path, entry in (tree or {}).items() if path.startswith(f"{item}/")]
            answer: dict[str, Any] = {"type": "directory", "oid": oid, "size": 0, "path": item}
            changed_in = inside[-1].changed_in if inside else ""
        else:
            answer, changed_in = _file(call, item), item.changed_in
        row = call.hub.history.commit(repo, changed_in) if is_expanded and changed_in else None
        if row is not None:
            answer["lastCommit"] = {"id": row["oid"], "title": row["title"], "date": row["date"]}
        answers.append(answer)
    return answers


def _file(call: Call, entry: Entry) -> dict[str, Any]:
    answer: dict[str, Any] = {"type": "file", "oid": entry.oid, "size": entry.size, "path": entry.path}
    if entry.is_lfs:
        size = len(pointer(entry.sha256, entry.size))
        answer["lfs"] = {"oid": entry.sha256, "size": entry.size, "pointerSize": size}
        if (file := call.hub.xet_file(entry.sha256)) is not None:
            answer["xetHash"] = file.xet_hash
    return answer


def _sibling(entry: Entry, *, with_blob: bool) -> dict[str, Any]:
    answer: dict[str, Any] = {"rfilename": entry.path}
    if with_blob:
        answer |= {"blobId": entry.oid, "size": entry.size}
        if entry.is_lfs:
            size = len(pointer(entry.sha256, entry.size))
            answer["lfs"] = {"sha256": entry.sha256, "size": entry.size, "pointerSize": size}
    return answer


def _describe(repo: Repo) -> dict[str, Any]:
    answer = {
        "_id": f"{repo.number:024x}",
        "id": repo.identity,
        "author": repo.owner,
        "private": repo.private,
        "gated": repo.gated or False,
        "createdAt": repo.created,
        "downloads": 0,
        "likes": 0,
        "tags": [],
    }
    if repo.kind == "model":
        answer["modelId"] = repo.identity
    return answer


def _metadata(card: str) -> dict[str, Any]:
    """The metadata of a card as JSON has them; empty where there are none that can be read."""
    metadata, _ = parse_front_matter(card)
    try:
        # YAML has dates and infinities, JSON has not.
        plain: dict[str, Any] = json.loads(json.dumps(metadata, default=str), parse_constant=str)
    except (ValueError, TypeError, RecursionError):
        return {}
    return plain


def _is_true(text: str | None) -> bool:
    return text is not None and text.lower() in ("true", "1")
