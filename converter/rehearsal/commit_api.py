"""Commits: a header and operations, a JSON object a line, which become one new commit or none."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import anyio.to_thread
from starlette.responses import Response

from converter.rehearsal.call import Call, parse_object, text_of
from converter.rehearsal.card_metadata import check_card
from converter.rehearsal.discussions import Discussions, commit_target
from converter.rehearsal.history import PULLS, Entry, Repo, lfs_entry, regular_entry
from converter.rehearsal.hub import Hub
from converter.rehearsal.modes import REGULAR_LIMIT
from converter.rehearsal.names import COMMIT, check_path, check_sha256, check_size
from converter.rehearsal.replies import Refusal, entry_not_found, reply

#: Bytes of a line: the largest file that git keeps, in base64.
_LINE_LIMIT = REGULAR_LIMIT * 4 // 3 + 65_536
#: Bytes of all regular files of a commit, and its LFS files, as docstrings of the client state them.
_PAYLOAD_LIMIT = 10**9
_LFS_FILES_LIMIT = 25_000
_TOKEN = re.compile(rb"hf_[A-Za-z0-9]{30,}")


@dataclass
class Draft:
    """A commit as its request describes it."""

    title: str = ""
    message: str = ""
    parent: str = ""
    """The commit that the client takes for the newest; empty if it does not say."""
    files: dict[str, Entry] = field(default_factory=dict)
    deleted_files: list[str] = field(default_factory=list)
    deleted_folders: list[str] = field(default_factory=list)
    card: str = ""
    regular_bytes: int = 0


async def create_commit(call: Call) -> Response:
    """POST .../commit/REV."""
    opens_pull_request = bool(call.query.get("create_pr"))
    repo, author = commit_target(call), call.user().name
    discussions = Discussions(call.hub)
    # What cannot be is refused before content is read.
    call.hub.history.branch(repo, call.revision)
    draft = await _read(call)
    # From here on nothing waits, so that no other request comes between the checks and the change.
    history = call.hub.history
    repo = call.repo()
    ref, head = history.branch(repo, call.revision)
    if draft.parent and draft.parent != head:
        raise Refusal(412, "A commit has happened since. Please refresh and try again.")
    _check(call.hub, repo, draft)
    tree = _apply(draft, history.tree(repo, head), head)
    with call.hub.database.change():
        commit = history.add_commit(repo, head, tree, draft.title, draft.message, author)
        answer: dict[str, Any] = {
            "success": True,
            "commitOid": commit,
            "commitUrl": f"{call.hub.endpoint}/{repo.page}/commit/{commit}",
            "hookOutput": "",
        }
        if opens_pull_request:
            number = discussions.open_pull_request(repo, draft.title, draft.message, author, base=ref)
            ref = f"{PULLS}{number}"
            answer["pullRequestUrl"] = f"{call.hub.endpoint}/{repo.page}/discussions/{number}"
        history.point(repo, ref, commit)
        discussions.note_commit(repo, ref, draft.title, commit, author)
    return reply(answer)


async def _read(call: Call) -> Draft:
    """The commit that a request describes. Content of regular files is stored as it comes.

    Raises:
        Refusal: a line makes no sense.
    """
    draft = Draft()
    is_first = True
    async for line in _lines(call):
        operation = parse_object(line)
        key, value = operation.get("key"), operation.get("value")
        if not isinstance(value, dict) or is_first != (key == "header"):
            raise Refusal(400, "A commit is a header, then operations")
        if is_first:
            draft.title, draft.message = text_of(value, "summary"), text_of(value, "description")
            draft.parent = text_of(value, "parentCommit")
            if not draft.title or (draft.parent and not COMMIT.fullmatch(draft.parent)):
                raise Refusal(400, '"summary" must not be empty, and "parentCommit" must be a commit')
            is_first = False
            continue
        path = check_path(text_of(value, "path").rstrip("/") if str(key).startswith("deleted") else value.get("path"))
        if key == "file":
            await _add_file(call.hub, draft, path, value)
        elif key == "lfsFile":
            draft.files[path] = _lfs_file(call.hub, path, value)
        elif key == "deletedFile":
            draft.deleted_files.append(path)
        elif key == "deletedFolder":
            draft.deleted_folders.append(path)
        else:
            raise Refusal(400, "A commit has an unknown operation")
    if is_first:
        raise Refusal(400, "A commit is a header, then operations")
    return draft


async def _lines(call: Call) -> AsyncIterator[bytes]:
    buffer = bytearray()
    searched = 0
    async for piece in call.request.stream():
        buffer += piece
        while (end := buffer.find(b"\n", searched)) >= 0:
            line = bytes(buffer[:end])
            del buffer[: end + 1]
            searched = 0
            if line.strip():
                yield line
        searched = len(buffer)
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
    except (binascii.Error, ValueError) as error:
        raise Refusal(400, '"content" is no base64') from error
    if len(content) > REGULAR_LIMIT:
        raise Refusal(
            400, f"Your push was rejected because it contains files larger than 10 MiB. Offending file: {path}"
        )
    draft.regular_bytes += len(content)
    if draft.regular_bytes > _PAYLOAD_LIMIT:
        raise Refusal(413, "Payload too large")
    if any(hub.database.account(match.decode()) is not None for match in _TOKEN.findall(content)):
        message = "Your push was rejected because the following files contain valid Hugging Face secrets"
        raise Refusal(400, f"{message}: {path}")
    if path == "README.md":
        draft.card = content.decode("utf-8", "replace")
    await anyio.to_thread.run_sync(hub.blobs.put, content)
    draft.files[path] = regular_entry(path, content)


def _lfs_file(hub: Hub, path: str, value: dict[str, Any]) -> Entry:
    sha256 = check_sha256(value.get("oid"))
    if value.get("algo") != "sha256":
        raise Refusal(400, '"algo" must be "sha256"')
    # Where a file of another repo is copied, the client gives no size.
    size = check_size(value["size"]) if "size" in value else hub.stored_size(sha256) or 0
    return lfs_entry(path, sha256, size)


def _check(hub: Hub, repo: Repo, draft: Draft) -> None:
    """Check what the Hub's hooks check before they take a push."""
    large = [entry for entry in draft.files.values() if entry.is_lfs]
    if len(large) > _LFS_FILES_LIMIT:
        raise Refusal(413, f"A commit has at most {_LFS_FILES_LIMIT} LFS files")
    for entry in large:
        stored = hub.stored_size(entry.sha256)
        if stored is None:
            raise Refusal(
                400,
                "Your push was rejected because an LFS pointer pointed to a file that does not exist. For instance, "
                "this can happen if you used git push --no-verify to push your changes. "
                f"Offending file: - {entry.path}",
            )
        if stored != entry.size:
            raise Refusal(400, f"Your push was rejected because the size of an LFS file is wrong: {entry.path}")
    known = {row["sha256"] for row in hub.database.rows("SELECT sha256 FROM entries WHERE repo = ?", repo.number)}
    hub.check_quota(repo, sum(entry.size for entry in large if entry.sha256 not in known))
    errors = check_card(draft.card).errors if draft.card else ()
    if errors:
        raise Refusal(400, "Your push was rejected because README.md has invalid metadata: " + "; ".join(errors))


def _apply(draft: Draft, tree: dict[str, Entry], head: str) -> dict[str, Entry]:
    """The files after a commit: first what it deletes, then what it adds.

    Raises:
        Refusal: a file is not there, or a path is a file and a folder at once.
    """
    for path in draft.deleted_files:
        if tree.pop(path, None) is None:
            refusal = entry_not_found(head)
            raise Refusal(404, f"A file with this name doesn't exist: {path}", code=refusal.code)
    for folder in draft.deleted_folders:
        inside = [path for path in tree if path.startswith(f"{folder}/")]
        if not inside:
            raise Refusal(404, f"A folder with this name doesn't exist: {folder}", code="EntryNotFound")
        for path in inside:
            del tree[path]
    for path, entry in draft.files.items():
        before = tree.get(path)
        if before is None or before.oid != entry.oid:
            tree[path] = entry
    folders = {path[:place] for path in tree for place, letter in enumerate(path) if letter == "/"}
    if both := sorted(folders & tree.keys()):
        raise Refusal(400, f"A path cannot be a file and a folder at once: {both[0]}")
    return tree
