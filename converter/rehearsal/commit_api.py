"""The route of commits: a header and operations, one JSON object a line, become one new commit or none."""

from __future__ import annotations

import base64
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import anyio.to_thread
from starlette.responses import JSONResponse, Response

from converter.rehearsal.call import Call, parse_object, text_of
from converter.rehearsal.card_metadata import check_card
from converter.rehearsal.hub import Hub
from converter.rehearsal.modes import REGULAR_LIMIT
from converter.rehearsal.names import SHORT_COMMIT, check_path, check_sha256, check_size
from converter.rehearsal.pull_requests import PullRequest, commit_target
from converter.rehearsal.replies import Refusal, entry_not_found
from converter.rehearsal.repos import PULLS, Entry, Repo, lfs_entry, regular_entry

#: Bytes of a line: the largest file that git keeps, in base64.
_LINE_LIMIT = REGULAR_LIMIT * 4 // 3 + 65_536
#: Bytes of all regular files of a commit, and its LFS files, as docstrings of the client state them.
_PAYLOAD_LIMIT = 10**9
_LFS_FILES_LIMIT = 25_000
_TOKEN = re.compile(rb"hf_[A-Za-z0-9]{30,}")


@dataclass
class Draft:
    """A commit as its request describes it."""

    title: str
    message: str
    parent: str
    """The id of the commit that the client takes for the head, or its beginning; empty if it does not say."""
    files: dict[str, Entry] = field(default_factory=dict)
    deleted: list[tuple[str, str]] = field(default_factory=list)
    """``file`` or ``folder``, and its path."""
    card: str = ""
    regular_bytes: int = 0


async def create_commit(call: Call) -> Response:
    """POST .../commit/REV."""
    author = call.user().name
    repo = commit_target(call)
    # A commit to a wrong revision is refused before its content is read.
    repo.branch(call.revision)
    draft = await _read(call)
    # From here on nothing waits, so that no other request comes between the checks and the change.
    repo = call.repo()
    ref, head = repo.branch(call.revision)
    if draft.parent and call.query.get("create_pr"):
        # A pull request begins at this commit, wherever the branch is now.
        head = repo.resolve(draft.parent)
    elif not head.startswith(draft.parent):
        raise Refusal(412, "The branch was updated since you opened this page. Please refresh and try again.")
    _check(call.hub, repo, draft)
    tree = _apply(draft, repo.tree(head), head)
    answer: dict[str, Any] = {"success": True, "hookOutput": ""}
    with call.hub.database.connection:
        # What came over Xet belongs to the repo from its first commit on.
        repo.add_objects(entry.sha256 for entry in draft.files.values() if entry.is_lfs)
        commit = repo.add_commit(head, tree, draft.title, author, draft.message)
        if call.query.get("create_pr"):
            opened = PullRequest.open(repo, draft.title, draft.message, author, base=ref, status="open")
            ref = opened.ref
            answer["pullRequestUrl"] = f"{call.hub.endpoint}/{repo.identity}/discussions/{opened.number}"
        repo.point(ref, commit)
        if ref.startswith(PULLS):
            pull_request = PullRequest.find(repo, int(ref.removeprefix(PULLS)))
            pull_request.add_event("commit", author, subject=draft.title, oid=commit)
    answer |= {"commitOid": commit, "commitUrl": f"{call.hub.endpoint}/{repo.identity}/commit/{commit}"}
    return JSONResponse(answer)


async def _read(call: Call) -> Draft:
    """Read the commit that a request describes. Content of regular files is stored as it comes.

    Raises:
        Refusal: a line is not what it should be.
    """
    operations = _operations(call)
    # Python 3.11 cannot return a tuple as the default of anext.
    first = await anext(operations, None)
    key, value = first or ("", {})
    if key != "header":
        raise Refusal(400, "A commit is a header, then operations")
    draft = Draft(text_of(value, "summary"), text_of(value, "description"), text_of(value, "parentCommit"))
    if not draft.title or (draft.parent and not SHORT_COMMIT.fullmatch(draft.parent)):
        raise Refusal(400, '"summary" must not be empty, and "parentCommit" must be a commit')
    async for key, value in operations:
        path = text_of(value, "path")
        if key == "file":
            await _add_file(call.hub, draft, check_path(path), value)
        elif key == "lfsFile":
            draft.files[path] = _lfs_file(call.hub, check_path(path), value)
        elif key in ("deletedFile", "deletedFolder"):
            draft.deleted.append((key.removeprefix("deleted").lower(), check_path(path.rstrip("/"))))
        else:
            raise Refusal(400, "A commit has an unknown operation")
    if not draft.files and not draft.deleted:
        raise Refusal(400, "Add a line with the key `lfsFile`, `file` or `deletedFile`")
    return draft


async def _operations(call: Call) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """Return the key and the value of each line; raise Refusal if a line does not have both."""
    async for line in _lines(call):
        operation = parse_object(line)
        key, value = operation.get("key"), operation.get("value")
        if not isinstance(key, str) or not isinstance(value, dict):
            raise Refusal(400, "A line of a commit has a key, and an object as its value")
        yield key, value


async def _lines(call: Call) -> AsyncIterator[bytes]:
    buffer = bytearray()
    async for piece in call.request.stream():
        buffer += piece
        if b"\n" in piece:
            *lines, buffer = buffer.split(b"\n")
            for line in lines:
                if line.strip():
                    yield bytes(line)
        if len(buffer) > _LINE_LIMIT:
            raise Refusal(413, "Your push was rejected because it contains files larger than 10 MiB.")
    if buffer.strip():
        yield bytes(buffer)


async def _add_file(hub: Hub, draft: Draft, path: str, value: dict[str, Any]) -> None:
    text = value.get("content")
    if not isinstance(text, str):
        raise Refusal(400, '"content" must be a string')
    try:
        content = base64.b64decode(text, validate=True) if value.get("encoding") == "base64" else text.encode()
    except ValueError as error:
        raise Refusal(400, '"content" is not base64') from error
    if len(content) > REGULAR_LIMIT:
        raise Refusal(
            400, f"Your push was rejected because it contains files larger than 10 MiB. Offending file: {path}"
        )
    draft.regular_bytes += len(content)
    if draft.regular_bytes > _PAYLOAD_LIMIT:
        raise Refusal(413, "Payload too large")
    if any(hub.account(match.decode()) is not None for match in _TOKEN.findall(content)):
        message = "Your push was rejected because the following files contain valid Hugging Face secrets"
        raise Refusal(400, f"{message}: {path}")
    if path == "README.md":
        draft.card = content.decode("utf-8", "replace")
    await anyio.to_thread.run_sync(hub.blobs.put, content)
    draft.files[path] = regular_entry(path, content)


def _lfs_file(hub: Hub, path: str, value: dict[str, Any]) -> Entry:
    sha256 = check_sha256(text_of(value, "oid"))
    if value.get("algo") != "sha256":
        raise Refusal(400, '"algo" must be "sha256"')
    # The client gives no size for a copy of a file of another repo.
    size = check_size(value["size"]) if "size" in value else hub.stored_size(sha256) or 0
    return lfs_entry(path, sha256, size)


def _check(hub: Hub, repo: Repo, draft: Draft) -> None:
    """Check what the hooks of huggingface.co check before they accept a push."""
    large = [entry for entry in draft.files.values() if entry.is_lfs]
    if len(large) > _LFS_FILES_LIMIT:
        raise Refusal(413, f"A commit has at most {_LFS_FILES_LIMIT} LFS files")
    for entry in large:
        stored = hub.stored_size(entry.sha256)
        # The store of Xet does not tell for which repo a file came: there, what another repo has will do.
        if stored is None or not (repo.has_object(entry.sha256) or hub.xet.find(entry.sha256)):
            raise Refusal(
                400,
                "Your push was rejected because an LFS pointer pointed to a file that does not exist. For instance, "
                "this can happen if you used git push --no-verify to push your changes. "
                f"Offending file: - {entry.path}",
            )
        if stored != entry.size:
            raise Refusal(400, f"Your push was rejected because the size of an LFS file is wrong: {entry.path}")
    errors = check_card(draft.card).errors if draft.card else ()
    if errors:
        raise Refusal(400, "Your push was rejected because README.md has invalid metadata: " + "; ".join(errors))


def _apply(draft: Draft, tree: dict[str, Entry], head: str) -> dict[str, Entry]:
    """Return the files after a commit, which deletes first and then adds.

    Raises:
        Refusal: a file that it deletes does not exist, or a path is a file and a folder at once.
    """
    for kind, path in draft.deleted:
        # What is deleted as a file may be a folder, but not the other way round.
        is_file = kind == "file" and path in tree
        names = [path] if is_file else [name for name in tree if name.startswith(f"{path}/")]
        if not names:
            raise entry_not_found(head, f'A {kind} with the name "{path}" does not exist')
        for name in names:
            del tree[name]
    for path, entry in draft.files.items():
        before = tree.get(path)
        if before is None or before.oid != entry.oid:
            tree[path] = entry
    folders = {str(folder) for path in tree for folder in PurePosixPath(path).parents}
    if both := sorted(folders & tree.keys()):
        raise Refusal(400, f"A path cannot be a file and a folder at once: {both[0]}")
    return tree
