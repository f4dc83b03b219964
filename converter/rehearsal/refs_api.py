"""Routes of what points to commits, and of the commits themselves."""

from __future__ import annotations

from starlette.responses import Response

from converter.rehearsal.call import Call, text_of
from converter.rehearsal.history import HEADS, MAIN, PULLS, TAGS, Repo
from converter.rehearsal.names import COMMIT, check_revision
from converter.rehearsal.replies import Refusal, reply, revision_not_found

#: Commits of one page, as on the Hub.
_PAGE = 50


async def list_refs(call: Call) -> Response:
    """GET .../refs."""
    refs = call.hub.history.refs(call.repo())

    def listed(prefix: str, name_from: int) -> list[dict[str, str]]:
        found = [ref for ref in refs if ref.startswith(prefix)]
        return [{"name": ref[name_from:], "ref": ref, "targetCommit": refs[ref]} for ref in found]

    answer = {"branches": listed(HEADS, len(HEADS)), "tags": listed(TAGS, len(TAGS)), "converts": []}
    if call.query.get("include_prs"):
        answer["pullRequests"] = listed(PULLS, len("refs/"))
    return reply(answer)


async def list_commits(call: Call) -> Response:
    """GET .../commits/REV."""
    repo, page = call.repo(), call.query.get("p", "0")
    if not page.isascii() or not page.isdecimal():
        raise Refusal(400, "Invalid page")
    commits = list(call.hub.history.ancestry(repo, call.hub.history.resolve(repo, call.revision)))
    start = int(page) * _PAGE
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
        path = call.request.scope["raw_path"].decode("ascii")
        headers["Link"] = f'<{call.hub.endpoint}{path}?p={int(page) + 1}>; rel="next"'
    return reply(answer, headers=headers)


async def create_branch(call: Call) -> Response:
    """POST .../branch/NAME."""
    repo, values, history = call.writable_repo(), await call.json(), call.hub.history
    name = _check_ref_name(call.part("branch"))
    target = history.resolve(repo, check_revision(text_of(values, "startingPoint", "main")))
    if HEADS + name in history.refs(repo):
        raise Refusal(409, f"Reference already exists: {HEADS}{name}")
    with call.hub.database.change():
        history.point(repo, HEADS + name, target)
    return reply({})


async def delete_branch(call: Call) -> Response:
    """DELETE .../branch/NAME."""
    repo, ref = call.writable_repo(), HEADS + _check_ref_name(call.part("branch"))
    if ref == MAIN:
        raise Refusal(403, "The main branch cannot be deleted")
    return _delete_ref(call, repo, ref)


async def create_tag(call: Call) -> Response:
    """POST .../tag/REV."""
    repo, values, history = call.writable_repo(), await call.json(), call.hub.history
    name = _check_ref_name(text_of(values, "tag"))
    target = history.resolve(repo, call.revision)
    if TAGS + name in history.refs(repo):
        raise Refusal(409, f"Tag reference exists already: {TAGS}{name}")
    with call.hub.database.change():
        history.point(repo, TAGS + name, target)
    return reply({})


async def delete_tag(call: Call) -> Response:
    """DELETE .../tag/NAME."""
    repo = call.writable_repo()
    return _delete_ref(call, repo, TAGS + _check_ref_name(call.part("revision")))


async def super_squash(call: Call) -> Response:
    """POST .../super-squash/BRANCH: one commit in place of all."""
    repo, values, history = call.writable_repo(), await call.json(), call.hub.history
    ref, head = history.branch(repo, call.revision)
    title = text_of(values, "message") or f"Super-squash branch '{call.revision}'"
    tree = history.tree(repo, head)
    with call.hub.database.change():
        history.point(repo, ref, history.add_commit(repo, "", tree, title, "", call.user().name))
    return reply({})


def _delete_ref(call: Call, repo: Repo, ref: str) -> Response:
    if ref not in call.hub.history.refs(repo):
        raise revision_not_found(ref)
    with call.hub.database.change():
        call.hub.history.remove_ref(repo, ref)
    return reply({})


def _check_ref_name(text: str) -> str:
    try:
        name = check_revision(text)
    except Refusal as error:
        raise Refusal(400, "Invalid name of a branch or tag") from error
    if name.startswith("refs/") or COMMIT.fullmatch(name):
        raise Refusal(400, "Invalid name of a branch or tag")
    return name
