"""Routes of branches, tags and commits."""

from __future__ import annotations

import html
import sqlite3
from dataclasses import replace
from typing import Any

from starlette.responses import JSONResponse, Response

from converter.rehearsal.call import Call, text_of
from converter.rehearsal.listing_api import next_page
from converter.rehearsal.names import COMMIT, check_number, check_revision
from converter.rehearsal.replies import Refusal, revision_not_found
from converter.rehearsal.repos import HEADS, MAIN, PULLS, TAGS, Repo

#: Commits of one page, as on huggingface.co.
_PAGE = 50


async def list_refs(call: Call) -> Response:
    """GET .../refs."""
    refs = call.repo().refs()

    def listed(prefix: str, name_from: int) -> list[dict[str, str]]:
        found = [ref for ref in refs if ref.startswith(prefix)]
        return [{"name": ref[name_from:], "ref": ref, "targetCommit": refs[ref]} for ref in found]

    answer = {"branches": listed(HEADS, len(HEADS)), "tags": listed(TAGS, len(TAGS)), "converts": []}
    if call.query.get("include_prs"):
        answer["pullRequests"] = listed(PULLS, len("refs/"))
    return JSONResponse(answer)


async def list_commits(call: Call) -> Response:
    """GET .../commits/REV."""
    repo, page = call.repo(), check_number(call.query.get("p", "0"))
    commits = list(repo.ancestry(repo.resolve(call.revision)))
    is_formatted = "formatted" in call.request.query_params.getlist("expand[]")
    start = page * _PAGE
    answer = [
        {
            "id": commit["oid"],
            "title": commit["title"],
            "message": commit["message"],
            "date": commit["date"],
            "authors": [{"user": commit["author"]}],
            **(_formatted(commit) if is_formatted else {}),
        }
        for commit in commits[start : start + _PAGE]
    ]
    headers = {"X-Total-Count": str(len(commits))}
    if start + _PAGE < len(commits):
        headers["Link"] = next_page(call, p=page + 1)
    return JSONResponse(answer, headers=headers)


def _formatted(commit: sqlite3.Row) -> dict[str, Any]:
    """Return the message of a commit as HTML. huggingface.co makes links of some words; here all of it is text."""
    return {"formatted": {name: html.escape(commit[name]) for name in ("title", "message")}}


async def squash(call: Call) -> Response:
    """POST .../super-squash/REF: one commit without a parent takes the place of all of a branch."""
    repo, values = call.writable_repo(), await call.json()
    ref, head = repo.branch(call.revision)
    title = text_of(values, "message") or f"Super-squash branch '{call.revision}'"
    tree = {path: replace(entry, changed_in="") for path, entry in repo.tree(head).items()}
    with call.hub.database.connection:
        repo.point(ref, repo.add_commit("", tree, title, call.user().name))
    return JSONResponse({})


async def create_branch(call: Call) -> Response:
    """POST .../branch/NAME."""
    repo, values = call.writable_repo(), await call.json()
    ref = HEADS + _check_ref_name(call.part("branch"), "branch")
    target = repo.resolve(check_revision(text_of(values, "startingPoint", "main")))
    return _make_ref(call, repo, ref, target)


async def delete_branch(call: Call) -> Response:
    """DELETE .../branch/NAME."""
    repo, ref = call.writable_repo(), HEADS + _check_ref_name(call.part("branch"), "branch")
    if ref == MAIN:
        # The words are those of huggingface.co, the status is a guess.
        raise Refusal(403, f"Cannot delete {ref}")
    return _delete_ref(call, repo, ref)


async def create_tag(call: Call) -> Response:
    """POST .../tag/REV."""
    repo, values = call.writable_repo(), await call.json()
    target = repo.resolve(call.revision)
    ref = TAGS + _check_ref_name(text_of(values, "tag"), "tag")
    return _make_ref(call, repo, ref, target)


async def delete_tag(call: Call) -> Response:
    """DELETE .../tag/NAME."""
    repo = call.writable_repo()
    return _delete_ref(call, repo, TAGS + _check_ref_name(call.part("revision"), "tag"))


def _make_ref(call: Call, repo: Repo, ref: str, target: str) -> Response:
    if ref in repo.refs():
        raise Refusal(409, f"Reference {ref} already exists")
    with call.hub.database.connection:
        repo.point(ref, target)
    return JSONResponse({})


def _delete_ref(call: Call, repo: Repo, ref: str) -> Response:
    if ref not in repo.refs():
        raise revision_not_found(ref)
    with call.hub.database.connection:
        repo.remove_ref(ref)
    return JSONResponse({})


def _check_ref_name(text: str, kind: str) -> str:
    try:
        name = check_revision(text)
    except Refusal:
        name = ""
    if not name or name.startswith("refs/") or COMMIT.fullmatch(name):
        # A guess for tags: only the words for branches are known.
        raise Refusal(400, f"Invalid reference for a {kind}: {text}")
    return name
