"""Routes that describe repos, and list and describe their files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl

from starlette.datastructures import URL
from starlette.responses import JSONResponse, Response

from converter.rehearsal.call import Call
from converter.rehearsal.description import choose, describe
from converter.rehearsal.names import check_number, check_path
from converter.rehearsal.replies import Refusal, entry_not_found
from converter.rehearsal.repos import Entry, Repo

#: Paths in one request; the limit of huggingface.co.
_PATHS_LIMIT = 1000
#: What a list shows of each repo, and what switches add.
_LISTED = (
    *("_id", "id", "modelId", "private", "createdAt", "downloads", "likes", "tags", "library_name", "pipeline_tag"),
)
_SWITCHES = {
    "full": ("author", "gated", "lastModified", "sha", "siblings"),
    "cardData": ("cardData",),
    "config": ("config",),
}
_SORTABLE = ("createdAt", "downloads", "lastModified", "likes", "trendingScore")
#: Filters by what only huggingface.co knows. Without them, the answer would be wrong.
_OTHER_FILTERS = {"apps", "inference", "inference_provider", "num_parameters"}


async def list_repos(call: Call) -> Response:
    """GET /api/models: the repos that the user may know of, and that fulfil all filters, a page at a time."""
    query = call.query
    if unknown := sorted(_OTHER_FILTERS & query.keys()):
        raise Refusal(501, f"this local Hub does not provide the filter {unknown[0]}; it serves model repos only")
    if query.get("sort", "likes") not in _SORTABLE:
        # A guess: neither the status nor the words of huggingface.co are known.
        raise Refusal(400, f'"sort" must be one of [{", ".join(_SORTABLE)}]')
    repos = [repo for repo in Repo.select(call.hub.database) if call.may_see(repo)]
    found = [answer for repo in repos if _fulfils(call, answer := describe(call.hub, repo, repo.resolve("main")))]
    if "sort" in query:
        # Of repos that were made in the same millisecond, the later one is the newer.
        found.sort(key=lambda answer: (str(answer[query["sort"]]), answer["_id"]), reverse=True)
    step = call.hub.settings.page_entries
    if "limit" in query:
        step = min(step, max(check_number(query["limit"]), 1))
    first = check_number(query.get("cursor", "0"))
    headers = {"Link": next_page(call, cursor=first + step)} if first + step < len(found) else {}
    more = [name for switch, names in _SWITCHES.items() if _is_true(query.get(switch)) for name in names]
    names, expand = (*_LISTED, *more, query.get("sort", "id")), call.request.query_params.getlist("expand")
    return JSONResponse([choose(answer, expand, names) for answer in found[first : first + step]], headers=headers)


def _fulfils(call: Call, answer: Mapping[str, Any]) -> bool:
    query = call.query
    gated = query.get("gated")
    return (
        query.get("author", answer["author"]).lower() == answer["author"].lower()
        and query.get("search", "").lower() in answer["id"].lower()
        and query.get("pipeline_tag", answer.get("pipeline_tag")) == answer.get("pipeline_tag")
        and (gated is None or _is_true(gated) == bool(answer["gated"]))
        and set(call.request.query_params.getlist("filter")) <= set(answer["tags"])
    )


async def show_repo(call: Call) -> Response:
    """GET /api/models/ID and .../revision/REV."""
    repo, query = call.repo(), call.query
    answer = describe(call.hub, repo, repo.resolve(call.revision), with_blobs=_is_true(query.get("blobs")))
    answer = choose(answer, call.request.query_params.getlist("expand"))
    if _is_true(query.get("securityStatus")):
        # Nothing is scanned here.
        answer["securityRepoStatus"] = {"scansDone": False, "filesWithIssues": []}
    return JSONResponse(answer)


async def list_likers(call: Call) -> Response:
    """GET .../likers. Nobody can like a repo here: huggingface.co takes likes from its pages alone."""
    call.repo()
    return JSONResponse([])


async def unlike(call: Call) -> Response:
    """DELETE .../like. That it succeeds for a repo that the user has not liked is a guess."""
    call.user()
    call.repo()
    return JSONResponse({})


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
    items = listed[first:last]
    answer = [_describe_item(call, repo, tree, item, is_expanded=is_expanded) for item in items]
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
    return JSONResponse([_describe_item(call, repo, tree, item, is_expanded=is_expanded) for item in found])


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


def _describe_item(
    call: Call, repo: Repo, tree: Mapping[str, Entry], item: Entry | str, *, is_expanded: bool
) -> dict[str, Any]:
    """Describe a file or a folder, with its last commit if that was requested."""
    if isinstance(item, str):
        oid = hashlib.sha1(f"tree {item}".encode(), usedforsecurity=False).hexdigest()
        answer: dict[str, Any] = {"type": "directory", "oid": oid, "size": 0, "path": item}
        changes = {entry.changed_in for path, entry in tree.items() if path.startswith(f"{item}/")}
    else:
        answer = {"type": "file", "oid": item.oid, "size": item.size, "path": item.path}
        changes = {item.changed_in}
        if item.is_lfs:
            answer["lfs"] = {"oid": item.sha256, "size": item.size, "pointerSize": item.pointer_size}
            if (file := call.hub.xet.find(item.sha256)) is not None:
                answer["xetHash"] = file.xet_hash
    if is_expanded:
        commits = [row for oid in changes if (row := repo.commit(oid)) is not None]
        last = max(commits, key=lambda row: str(row["date"]))
        answer["lastCommit"] = {"id": last["oid"], "title": last["title"], "date": last["date"]}
    return answer


def _is_true(text: str | None) -> bool:
    return text is not None and text.lower() in ("true", "1")
