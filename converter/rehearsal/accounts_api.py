"""Who one is, what one may do, and repos as a whole: made, configured, removed."""

from __future__ import annotations

import sqlite3

from starlette.responses import Response

from converter.rehearsal.call import Call, text_of
from converter.rehearsal.card_metadata import check_card
from converter.rehearsal.history import MAIN, History, Repo, regular_entry
from converter.rehearsal.modes import GITATTRIBUTES
from converter.rehearsal.names import KINDS, check_repo_part
from converter.rehearsal.replies import Refusal, reply, repo_not_found


async def who_am_i(call: Call) -> Response:
    """GET /api/whoami-v2."""
    viewer = call.user()
    return reply(
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
    repo = call.repo()
    call.check_files_access(repo)
    return reply({})


async def check_write_access(call: Call) -> Response:
    """GET .../auth-check/write."""
    call.writable_repo()
    return reply({})


async def create_repo(call: Call) -> Response:
    """POST /api/repos/create."""
    values = await call.json()
    kind, owner, name = _named_repo(call, text_of(values, "type", "model"), values.get("organization"), values)
    viewer = call.writer(owner, f"create a {kind}")
    private = values.get("private") is True or text_of(values, "visibility") == "private"
    hub = call.hub
    hub.blobs.put(GITATTRIBUTES)
    try:
        with hub.database.change():
            repo = hub.history.create(kind, owner, name, private)
            entry = regular_entry(".gitattributes", GITATTRIBUTES)
            commit = hub.history.add_commit(repo, "", {entry.path: entry}, "initial commit", "", viewer.name)
            hub.history.point(repo, MAIN, commit)
    except sqlite3.IntegrityError as error:
        existing = hub.history.find(kind, owner, name)
        where = existing.page if existing is not None else f"{owner}/{name}"
        raise Refusal(
            409, f"You already created this {kind} repo", fields={"url": f"{hub.endpoint}/{where}"}
        ) from error
    return reply({"url": f"{hub.endpoint}/{repo.page}", "name": repo.identity, "id": str(repo.number)})


async def delete_repo(call: Call) -> Response:
    """DELETE /api/repos/delete."""
    values = await call.json()
    kind, owner, name = _named_repo(call, text_of(values, "type", "model"), values.get("organization"), values)
    repo = call.hub.history.find(kind, owner, name)
    if repo is None:
        raise repo_not_found(call.viewer is not None)
    call.writer(owner, f"delete a {kind}")
    with call.hub.database.change():
        call.hub.history.delete(repo)
    return reply({})


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
    with call.hub.database.change():
        call.hub.history.configure(repo, private, gated)
    return reply({"private": private, "gated": gated or False})


async def validate_card(call: Call) -> Response:
    """POST /api/validate-yaml."""
    values = await call.json()
    content = values.get("content")
    if not isinstance(content, str):
        raise Refusal(400, '"content" must be a string')
    found = check_card(content)
    answer = {
        "errors": [{"message": message} for message in found.errors],
        "warnings": [{"message": message} for message in found.warnings],
    }
    return reply(answer, 400 if found.errors else 200)


def move_head(history: History, repo: Repo, ref: str, commit: str) -> str:
    """A commit that somebody else made, on top of another."""
    entry = regular_entry("foreign.txt", b"foreign\n")
    tree = {**history.tree(repo, commit), entry.path: entry}
    oid = history.add_commit(repo, commit, tree, "A commit of somebody else", "", "somebody")
    history.point(repo, ref, oid)
    return oid


def _named_repo(call: Call, kind: str, organization: object, values: dict[str, object]) -> tuple[str, str, str]:
    if kind not in KINDS.values():
        raise Refusal(400, f"There are no repos of type {kind}")
    owner = call.user().name if organization is None else check_repo_part(organization)
    return kind, owner, check_repo_part(values.get("name"))
