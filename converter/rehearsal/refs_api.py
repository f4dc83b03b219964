"""Routes of branches, tags and lists of commits."""

from __future__ import annotations

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
    start = page * _PAGE
    answer = [
        {
            "id": commit["oid"],
            "title": commit["title"],
            "message": commit["message"],
            "date": commit["date"],
            "authors": [{"user": commit["author"]}],
        }
        for commit in commits[start : start + _PAGE]
    ]
    headers = {"X-Total-Count": str(len(commits))}
    if start + _PAGE < len(commits):
        headers["Link"] = next_page(call, p=page + 1)
    return JSONResponse(answer, headers=headers)


async def create_branch(call: Call) -> Response:
    """POST .../branch/NAME."""
    repo, values = call.writable_repo(), await call.json()
    ref = HEADS + _check_ref_name(call.part("branch"))
    target = repo.resolve(check_revision(text_of(values, "startingPoint", "main")))
    return _make_ref(call, repo, ref, target, "Reference already exists")


async def delete_branch(call: Call) -> Response:
    """DELETE .../branch/NAME."""
    repo, ref = call.writable_repo(), HEADS + _check_ref_name(call.part("branch"))
    if ref == MAIN:
        raise Refusal(403, "The main branch cannot be deleted")
    return _delete_ref(call, repo, ref)


async def create_tag(call: Call) -> Response:
    """POST .../tag/REV."""
    repo, values = call.writable_repo(), await call.json()
    ref = TAGS + _check_ref_name(text_of(values, "tag"))
    target = repo.resolve(call.revision)
    return _make_ref(call, repo, ref, target, "Tag reference exists already")


async def delete_tag(call: Call) -> Response:
    """DELETE .../tag/NAME."""
    repo = call.writable_repo()
    return _delete_ref(call, repo, TAGS + _check_ref_name(call.part("revision")))


def _make_ref(call: Call, repo: Repo, ref: str, target: str, conflict: str) -> Response:
    if ref in repo.refs():
        raise Refusal(409, f"{conflict}: {ref}")
    with call.hub.database.connection:
        repo.point(ref, target)
    return JSONResponse({})


def _delete_ref(call: Call, repo: Repo, ref: str) -> Response:
    if ref not in repo.refs():
        raise revision_not_found(ref)
    with call.hub.database.connection:
        repo.remove_ref(ref)
    return JSONResponse({})


def _check_ref_name(text: str) -> str:
    try:
        name = check_revision(text)
    except Refusal as error:
        raise Refusal(400, "Invalid name of a branch or tag") from error
    if name.startswith("refs/") or COMMIT.fullmatch(name):
        raise Refusal(400, "Invalid name of a branch or tag")
    return name
