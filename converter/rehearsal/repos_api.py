"""Routes of users, repos, branches and tags."""

from __future__ import annotations

from starlette.responses import JSONResponse, Response

from converter.rehearsal.call import Call, text_of
from converter.rehearsal.card_metadata import check_card
from converter.rehearsal.listing_api import next_page
from converter.rehearsal.modes import GITATTRIBUTES
from converter.rehearsal.names import COMMIT, check_number, check_repo_part, check_revision
from converter.rehearsal.replies import Refusal, repo_not_found, revision_not_found
from converter.rehearsal.repos import HEADS, MAIN, PULLS, TAGS, Repo, regular_entry

#: Commits of one page, as on huggingface.co.
_PAGE = 50


async def who_am_i(call: Call) -> Response:
    """GET /api/whoami-v2."""
    viewer = call.user()
    return JSONResponse(
        {
            "type": "user",
            "name": viewer.name,
            "fullname": viewer.name,
            "orgs": [
                {"type": "org", "name": name, "fullname": name, "roleInOrg": viewer.role}
                for name in viewer.organizations
            ],
            "auth": {"type": "access_token", "accessToken": {"displayName": "rehearsal", "role": viewer.role}},
        }
    )


async def check_access(call: Call) -> Response:
    """GET .../auth-check."""
    call.readable_repo()
    return JSONResponse({})


async def check_write_access(call: Call) -> Response:
    """GET .../auth-check/write."""
    call.writable_repo()
    return JSONResponse({})


async def create_repo(call: Call) -> Response:
    """POST /api/repos/create."""
    values = await call.json()
    owner, name = _named_repo(call, values)
    viewer = call.writer(owner, "create a model")
    private = values.get("private") is True or text_of(values, "visibility") == "private"
    database, url = call.hub.database, f"{call.hub.endpoint}/{owner}/{name}"
    if Repo.find(database, owner, name) is not None:
        raise Refusal(409, "You already created this model repo", url=url)
    call.hub.blobs.put(GITATTRIBUTES)
    with database.connection:
        repo = Repo.create(database, owner, name, private)
        entry = regular_entry(".gitattributes", GITATTRIBUTES)
        repo.point(MAIN, repo.add_commit("", {entry.path: entry}, "initial commit", viewer.name))
    return JSONResponse({"url": url, "name": repo.identity, "id": str(repo.number)})


async def delete_repo(call: Call) -> Response:
    """DELETE /api/repos/delete."""
    owner, name = _named_repo(call, await call.json())
    repo = Repo.find(call.hub.database, owner, name)
    if repo is None:
        raise repo_not_found(known_user=True)
    call.writer(owner, "delete a model")
    with call.hub.database.connection:
        repo.delete()
    return JSONResponse({})


async def configure_repo(call: Call) -> Response:
    """PUT .../settings."""
    repo = call.writable_repo()
    values = await call.json()
    private, gated = repo.private, repo.gated
    if "private" in values or "visibility" in values:
        private = values.get("private") is True or values.get("visibility") == "private"
    if "gated" in values:
        if values["gated"] not in ("auto", "manual", False):
            raise Refusal(400, '"gated" must be "auto", "manual" or false')
        gated = values["gated"] or ""
    with call.hub.database.connection:
        repo.configure(private, gated)
    return JSONResponse({"private": private, "gated": gated or False})


async def validate_card(call: Call) -> Response:
    """POST /api/validate-yaml."""
    values = await call.json()
    content = values.get("content")
    if not isinstance(content, str):
        raise Refusal(400, '"content" must be a string')
    if text_of(values, "repoType", "model") != "model":
        raise Refusal(400, "this local Hub checks cards of models only")
    found = check_card(content)
    answer = {
        "errors": [{"message": message} for message in found.errors],
        "warnings": [{"message": message} for message in found.warnings],
    }
    return JSONResponse(answer, 400 if found.errors else 200)


def _named_repo(call: Call, values: dict[str, object]) -> tuple[str, str]:
    kind = text_of(values, "type", "model")
    if kind != "model":
        raise Refusal(404, f"this local Hub does not provide repos of type {kind}; it serves model repos only")
    owner = text_of(values, "organization", call.user().name)
    return check_repo_part(owner), check_repo_part(text_of(values, "name"))


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
