"""Routes of users, and of repos as a whole: making, configuring and deleting them."""

from __future__ import annotations

from starlette.responses import JSONResponse, Response

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
            "id": viewer.name,
            "name": viewer.name,
            "fullname": viewer.name,
            "isPro": False,
            "orgs": [
                {"type": "org", "id": name, "name": name, "fullname": name, "roleInOrg": viewer.role}
                for name in viewer.organizations
            ],
            "auth": {
                "type": "access_token",
                "accessToken": {"displayName": "rehearsal", "role": viewer.role, "createdAt": "2026-01-01T00:00:00Z"},
            },
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
        raise repo_not_found(call.viewer is not None)
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
    errors, warnings = check_card(content, text_of(values, "repoType", "model"))
    answer = {
        "errors": [{"message": message} for message in errors],
        "warnings": [{"message": message} for message in warnings],
    }
    return JSONResponse(answer, 400 if errors else 200)


def _named_repo(call: Call, values: dict[str, object]) -> tuple[str, str]:
    kind = text_of(values, "type", "model")
    if kind != "model":
        raise Refusal(404, f"this local Hub does not provide repos of type {kind}; it serves model repos only")
    organization = values.get("organization")
    owner = call.user().name if organization is None else check_repo_part(organization)
    return owner, check_repo_part(values.get("name"))
