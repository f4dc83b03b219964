"""Routes that describe repos, and list and describe their files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl

from starlette.datastructures import URL
from starlette.responses import JSONResponse, Response

from converter.front_matter import parse_front_matter
from converter.rehearsal.call import Call
from converter.rehearsal.names import check_number, check_path
from converter.rehearsal.replies import Refusal, entry_not_found
from converter.rehearsal.repos import Entry, Repo

#: Paths in one request; the limit of huggingface.co.
_PATHS_LIMIT = 1000


async def list_repos(call: Call) -> Response:
    """GET /api/models: the repos that the user may know of."""
    author, wanted = call.query.get("author", ""), call.query.get("search", "").lower()
    found = [
        repo
        for repo in Repo.select(call.hub.database)
        if call.may_see(repo) and author in ("", repo.owner) and wanted in repo.identity.lower()
    ]
    return JSONResponse([_describe(repo) for repo in found])


async def show_repo(call: Call) -> Response:
    """GET /api/models/ID and .../revision/REV."""
    hub, repo = call.hub, call.repo()
    commit = repo.resolve(call.revision)
    tree = repo.tree(commit)
    row = repo.commit(commit)
    metadata = _metadata(hub.text(tree.get("README.md")))
    tags = metadata.get("tags")
    answer = {
        **_describe(repo),
        "sha": commit,
        "lastModified": repo.created if row is None else row["date"],
        "disabled": False,
        "cardData": metadata,
        "tags": [tag for tag in tags if isinstance(tag, str)] if isinstance(tags, list) else [],
        "siblings": [_sibling(entry, with_blob=bool(call.query.get("blobs"))) for entry in tree.values()],
    }
    for name in ("library_name", "pipeline_tag"):
        if isinstance(metadata.get(name), str):
            answer[name] = metadata[name]
    if wanted := call.request.query_params.getlist("expand"):
        answer = {name: value for name, value in answer.items() if name in (*wanted, "_id", "id")}
    return JSONResponse(answer)


async def list_tree(call: Call) -> Response:
    """GET .../tree/REV[/PATH], a page at a time."""
    hub, repo, query = call.hub, call.repo(), call.query
    commit = repo.resolve(call.revision)
    tree = repo.tree(commit)
    folder = call.part("path").rstrip("/")
    if folder:
        prefix = f"{check_path(folder)}/"
        tree = {path: entry for path, entry in tree.items() if path.startswith(prefix)}
        if not tree:
            raise entry_not_found(commit)
    listed = _list(tree, len(folder) + 1 if folder else 0, is_recursive=_is_true(query.get("recursive")))
    first = check_number(query.get("cursor", "0"))
    last = first + hub.settings.page_entries
    headers = {"X-Repo-Commit": commit}
    if last < len(listed):
        headers["Link"] = next_page(call, cursor=last)
    is_expanded = _is_true(query.get("expand"))
    answer = [_describe_item(call, repo, item, is_expanded=is_expanded) for item in listed[first:last]]
    return JSONResponse(answer, headers=headers)


async def show_paths(call: Call) -> Response:
    """POST .../paths-info/REV: files and folders by their paths; missing ones are left out."""
    repo = call.repo()
    tree = repo.tree(repo.resolve(call.revision))
    form = parse_qsl((await call.body()).decode("latin-1"), keep_blank_values=True)
    paths = [value for name, value in form if name == "paths"]
    if len(paths) > _PATHS_LIMIT:
        raise Refusal(413, f"At most {_PATHS_LIMIT} paths can be requested at once")
    is_expanded = _is_true(dict(form).get("expand"))
    by_path = {item.path if isinstance(item, Entry) else item: item for item in _list(tree, 0, is_recursive=True)}
    found = [by_path[path] for path in paths if path in by_path]
    return JSONResponse([_describe_item(call, repo, item, is_expanded=is_expanded) for item in found])


def next_page(call: Call, **changes: object) -> str:
    """Return the ``Link`` header that leads to the next page of a listing.

    Args:
        call: the request for this page.
        changes: what differs in the query of the next one.
    """
    path = call.request.scope["raw_path"].decode("latin-1")
    query = URL(scope=call.request.scope).include_query_params(**changes).query
    return f'<{call.hub.endpoint}{path}?{query}>; rel="next"'


def _list(tree: Mapping[str, Entry], skipped: int, *, is_recursive: bool) -> list[Entry | str]:
    """List files, and folders by their paths, in the order of their paths.

    Args:
        tree: the files.
        skipped: characters at the start of their paths that name the folder that is listed.
        is_recursive: whether to list what folders contain, too.
    """
    found: dict[str, Entry | str] = {}
    for path, entry in tree.items():
        slashes = [position for position in range(skipped, len(path)) if path[position] == "/"]
        for position in slashes if is_recursive else slashes[:1]:
            found[path[:position]] = path[:position]
        if is_recursive or not slashes:
            found[path] = entry
    return [found[path] for path in sorted(found)]


def _describe_item(call: Call, repo: Repo, item: Entry | str, *, is_expanded: bool) -> dict[str, Any]:
    """Describe a file, with its last commit if that was requested, or a folder."""
    if isinstance(item, str):
        oid = hashlib.sha1(f"tree {item}".encode(), usedforsecurity=False).hexdigest()
        return {"type": "directory", "oid": oid, "size": 0, "path": item}
    answer: dict[str, Any] = {"type": "file", "oid": item.oid, "size": item.size, "path": item.path}
    if item.is_lfs:
        answer["lfs"] = {"oid": item.sha256, "size": item.size, "pointerSize": item.pointer_size}
        if (file := call.hub.xet.find(item.sha256)) is not None:
            answer["xetHash"] = file.xet_hash
    if is_expanded and (row := repo.commit(item.changed_in)) is not None:
        answer["lastCommit"] = {"id": row["oid"], "title": row["title"], "date": row["date"]}
    return answer


def _sibling(entry: Entry, *, with_blob: bool) -> dict[str, Any]:
    answer: dict[str, Any] = {"rfilename": entry.path}
    if with_blob:
        answer |= {"blobId": entry.oid, "size": entry.size}
        if entry.is_lfs:
            answer["lfs"] = {"sha256": entry.sha256, "size": entry.size, "pointerSize": entry.pointer_size}
    return answer


def _describe(repo: Repo) -> dict[str, Any]:
    return {
        "_id": f"{repo.number:024x}",
        "id": repo.identity,
        "modelId": repo.identity,
        "author": repo.owner,
        "private": repo.private,
        "gated": repo.gated or False,
        "createdAt": repo.created,
        "downloads": 0,
        "likes": 0,
        "tags": [],
    }


def _metadata(card: str) -> dict[str, Any]:
    """Return the metadata of a card as JSON has them; empty if there are none that can be read."""
    metadata, _ = parse_front_matter(card)
    try:
        # YAML has dates and infinities, JSON has not.
        plain: dict[str, Any] = json.loads(json.dumps(metadata, default=str), parse_constant=str)
    except (ValueError, TypeError, RecursionError):
        return {}
    return plain


def _is_true(text: str | None) -> bool:
    return text is not None and text.lower() in ("true", "1")
