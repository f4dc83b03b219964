"""Routes of users and repos, and the check of cards."""

from __future__ import annotations

from starlette.responses import JSONResponse, PlainTextResponse, Response

from converter.rehearsal.call import Call, text_of
from converter.rehearsal.card_metadata import check_card
from converter.rehearsal.modes import GITATTRIBUTES
from converter.rehearsal.names import check_repo_part
from converter.rehearsal.replies import Refusal, repo_not_found
from converter.rehearsal.repos import MAIN, Repo, regular_entry


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
    if repo is None or not call.may_see(repo):
        raise repo_not_found(known_user=True)
    call.writer(owner, "delete a model")
    with call.hub.database.connection:
        repo.delete()
    return JSONResponse({})


async def move_repo(call: Call) -> Response:
    """POST /api/repos/move: another name for a repo, to which requests for the former one are led."""
    values = await call.json()
    _check_kind(values)
    (owner, name), (new_owner, new_name) = (_parts(text_of(values, key)) for key in ("fromRepo", "toRepo"))
    repo = Repo.find(call.hub.database, owner, name)
    if repo is None or not call.may_see(repo):
        raise repo_not_found(call.viewer is not None)
    for namespace in (repo.owner, new_owner):
        call.writer(namespace, "move a model")
    taken = Repo.find(call.hub.database, new_owner, new_name)
    if taken is not None and taken.number != repo.number:
        # The words are those of huggingface.co, the status is not known.
        raise Refusal(409, f"A model repository called {taken.identity} already exists")
    with call.hub.database.connection:
        repo.move(new_owner, new_name)
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
    status = 400 if found.errors else 200
    if call.request.headers.get("accept", "").startswith("text/plain"):
        # A guess: how a line begins is not documented.
        kinds = (("Error", found.errors), ("Warning", found.warnings))
        return PlainTextResponse("\n".join(f"- {kind}: {text}" for kind, texts in kinds for text in texts), status)
    answer = {
        "errors": [{"message": message} for message in found.errors],
        "warnings": [{"message": message} for message in found.warnings],
    }
    return JSONResponse(answer, status)


def _named_repo(call: Call, values: dict[str, object]) -> tuple[str, str]:
    _check_kind(values)
    owner = text_of(values, "organization", call.user().name)
    return check_repo_part(owner), check_repo_part(text_of(values, "name"))


def _check_kind(values: dict[str, object]) -> None:
    kind = text_of(values, "type", "model")
    if kind != "model":
        raise Refusal(404, f"this local Hub does not provide repos of type {kind}; it serves model repos only")


def _parts(identity: str) -> tuple[str, str]:
    owner, _, name = identity.partition("/")
    return check_repo_part(owner), check_repo_part(name)
