"""Routes of the LFS objects of a repo: their list, their removal, and their use in another repo."""

from __future__ import annotations

from starlette.responses import JSONResponse, Response

from converter.rehearsal.call import Call, objects_of, text_of
from converter.rehearsal.listing_api import next_page
from converter.rehearsal.names import check_number, check_sha256
from converter.rehearsal.replies import Refusal, repo_not_found
from converter.rehearsal.repos import Repo

#: Objects in one request: the client sends at most so many.
_LIMIT = 1000


async def list_large_files(call: Call) -> Response:
    """GET .../lfs-files: the objects of all commits, a page at a time."""
    # That the list needs the right to write is a guess.
    repo = call.writable_repo()
    found = list(repo.large_files().values())
    first = check_number(call.query.get("cursor", "0"))
    last = first + call.hub.settings.page_entries
    headers = {"Link": next_page(call, cursor=last)} if last < len(found) else {}
    answer = []
    for entry, ref in found[first:last]:
        commit = repo.commit(entry.changed_in)
        item = {"fileOid": entry.sha256, "oid": entry.sha256, "filename": entry.path, "size": entry.size}
        item |= {"pushedAt": repo.created if commit is None else commit["date"]} | ({"ref": ref} if ref else {})
        if (file := call.hub.xet.find(entry.sha256)) is not None:
            item["xetHash"] = file.xet_hash
        answer.append(item)
    return JSONResponse(answer, headers=headers)


async def delete_large_files(call: Call) -> Response:
    """POST .../lfs-files/batch: remove objects from all commits, and from the disk if no repo has them any more.

    Content that came over Xet stays on the disk: other files may share parts of it.
    """
    repo, values = call.writable_repo(), await call.json()
    wanted = values.get("deletions")
    wanted = wanted if isinstance(wanted, dict) else {}
    sha256s = wanted.get("sha")
    if not isinstance(sha256s, list) or len(sha256s) > _LIMIT or not all(isinstance(sha, str) for sha in sha256s):
        raise Refusal(400, f'"deletions.sha" must be an array of at most {_LIMIT} strings')
    if wanted.get("rewriteHistory") is False:
        raise Refusal(501, "this local Hub does not provide rewriteHistory: false; it serves whole commits only")
    database, removed = call.hub.database, {check_sha256(sha256) for sha256 in sha256s}
    with database.connection:
        repo.remove_large_files(removed)
    for sha256 in removed:
        query = "SELECT sha256 FROM entries WHERE sha256 = ? UNION SELECT sha256 FROM objects WHERE sha256 = ?"
        if database.row(query, sha256, sha256) is None:
            call.hub.blobs.path(sha256).unlink(missing_ok=True)
    return JSONResponse({})


async def duplicate_large_files(call: Call) -> Response:
    """POST .../lfs-files/duplicate: let another repo use objects of this one."""
    known = call.readable_repo().large_files()
    values = await call.json()
    target = values.get("target")
    owner, _, name = text_of(target, "name").partition("/") if isinstance(target, dict) else ("", "", "")
    repo = Repo.find(call.hub.database, owner, name)
    if repo is None or not call.may_see(repo):
        raise repo_not_found(call.viewer is not None)
    call.token_writer("upload to a repository")
    wanted = [text_of(file, "sha256") for file in objects_of(values, "files", _LIMIT)]
    failed = [{"sha256": sha256, "error": "File not found"} for sha256 in wanted if sha256 not in known]
    succeeded = [sha256 for sha256 in wanted if sha256 in known]
    with repo.database.connection:
        repo.add_objects(succeeded)
    return JSONResponse({"succeeded": succeeded, "failed": failed})
