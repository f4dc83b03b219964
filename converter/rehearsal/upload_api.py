"""Routes for uploads: how each file is kept, LFS objects in one piece or in parts, and tokens for Xet."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import AsyncIterator
from contextlib import closing
from typing import Any

import anyio.to_thread
from starlette.responses import JSONResponse, Response

from converter.rehearsal.blobs import PIECE_BYTES
from converter.rehearsal.call import Call, objects_of, text_of
from converter.rehearsal.modes import is_ignored, is_lfs
from converter.rehearsal.names import check_number, check_path, check_sha256, check_size
from converter.rehearsal.pull_requests import commit_target
from converter.rehearsal.replies import Refusal
from converter.rehearsal.repos import Repo

#: Files in one request; the limit of huggingface.co.
_FILES_LIMIT = 1000
#: Parts of an upload; the limit of S3.
_PARTS_LIMIT = 10_000
_TOKEN_SECONDS = 3600


async def preupload(call: Call) -> Response:
    """POST .../preupload/REV: how each file is kept, and what the repo has at its path."""
    repo = commit_target(call)
    values = await call.json()
    hub = call.hub
    tree = repo.tree(repo.resolve(call.revision))
    ignore_rules = text_of(values, "gitIgnore") or hub.text(tree.get(".gitignore"))
    attributes = hub.text(tree.get(".gitattributes"))
    answers = []
    for file in objects_of(values, "files", _FILES_LIMIT):
        path, size = check_path(text_of(file, "path")), check_size(file.get("size"))
        goes_to_lfs = is_lfs(path, size, _sample(file), attributes)
        answer: dict[str, Any] = {
            "path": path,
            "uploadMode": "lfs" if goes_to_lfs else "regular",
            "shouldIgnore": is_ignored(path, ignore_rules),
        }
        if path in tree:
            answer["oid"] = tree[path].sha256 if tree[path].is_lfs else tree[path].oid
        answers.append(answer)
    return JSONResponse({"files": answers})


async def lfs_batch(call: Call) -> Response:
    """POST /ID.git/info/lfs/objects/batch: which objects the repo lacks, and the addresses to upload them to."""
    repo = _upload_target(call)
    values = await call.json()
    if values.get("operation") != "upload":
        raise Refusal(400, "Only uploads are batched here")
    objects = objects_of(values, "objects", _FILES_LIMIT)
    wanted = [(check_sha256(text_of(item, "oid")), check_size(item.get("size"))) for item in objects]
    takes_parts = "multipart" in (values.get("transfers") or [])
    answers = [_lfs_answer(call, repo, oid, size, takes_parts) for oid, size in wanted]
    has_parts = any("chunk_size" in item.get("actions", {}).get("upload", {}).get("header", {}) for item in answers)
    return JSONResponse({"transfer": "multipart" if has_parts else "basic", "objects": answers})


def _lfs_answer(call: Call, repo: Repo, oid: str, size: int, takes_parts: bool) -> dict[str, Any]:
    hub = call.hub
    if repo.has_object(oid) and hub.stored_size(oid) == size:
        return {"oid": oid, "size": size}
    verify = {"href": f"{hub.endpoint}/{repo.identity}.git/info/lfs/verify"}
    upload: dict[str, Any] = {"href": hub.signed(f"/_lfs/{oid}?repo={repo.number}&size={size}")}
    if takes_parts and size > hub.settings.multipart_bytes:
        step = hub.settings.part_bytes
        parts = {
            str(number): hub.signed(f"/_lfs/{oid}/part/{number}?size={min(step, size - start)}")
            for number, start in enumerate(range(0, size, step), start=1)
        }
        upload = {
            "href": hub.signed(f"/_lfs/{oid}/complete?repo={repo.number}"),
            "header": {"chunk_size": str(step), **parts},
        }
    return {"oid": oid, "size": size, "authenticated": True, "actions": {"upload": upload, "verify": verify}}


async def put_object(call: Call) -> Response:
    """PUT /_lfs/OID."""
    oid, size = check_sha256(call.part("oid")), check_number(call.query.get("size", ""))
    with closing(call.hub.blobs.draft()) as draft:
        async for piece in _large_pieces(call, size):
            await anyio.to_thread.run_sync(draft.write, piece)
        if draft.sha256 != oid or draft.size != size:
            raise Refusal(400, "The content is not what its sha256 and size say")
        call.hub.blobs.keep(draft.path, oid)
    _add_object(call, oid)
    return Response(headers={"ETag": f'"{oid}"'})


async def put_part(call: Call) -> Response:
    """PUT /_lfs/OID/part/N."""
    oid, number = check_sha256(call.part("oid")), check_number(call.part("number"))
    size = check_number(call.query.get("size", ""))
    offset = (number - 1) * call.hub.settings.part_bytes
    digest, written = hashlib.md5(usedforsecurity=False), 0

    def store(piece: bytearray) -> None:
        digest.update(piece)
        call.hub.blobs.write_part(oid, offset + written, piece)

    async for piece in _large_pieces(call, size):
        await anyio.to_thread.run_sync(store, piece)
        written += len(piece)
    if written != size:
        raise Refusal(400, "The part is cut off")
    return Response(headers={"ETag": f'"{digest.hexdigest()}"'})


async def complete_parts(call: Call) -> Response:
    """POST /_lfs/OID/complete."""
    oid = check_sha256(call.part("oid"))
    values = await call.json()
    parts = objects_of(values, "parts", _PARTS_LIMIT)
    if (
        values.get("oid") != oid
        or [part.get("partNumber") for part in parts] != list(range(1, len(parts) + 1))
        or not all(part.get("etag") for part in parts)
    ):
        raise Refusal(400, "Parts are missing, or without their ETag")
    if not await anyio.to_thread.run_sync(call.hub.blobs.join_parts, oid):
        raise Refusal(400, "The content is not what its sha256 says")
    _add_object(call, oid)
    return JSONResponse({"oid": oid})


async def verify_object(call: Call) -> Response:
    """POST /ID.git/info/lfs/verify."""
    repo, values = _upload_target(call), await call.json()
    oid = check_sha256(text_of(values, "oid"))
    if not repo.has_object(oid) or call.hub.stored_size(oid) != check_size(values.get("size")):
        raise Refusal(404, "The object is not stored, or has another size")
    return JSONResponse({})


async def xet_write_token(call: Call) -> Response:
    """GET .../xet-write-token/REV. With create_pr the revision means nothing; the client even sends None."""
    commit_target(call)
    return _xet_token(call, "write")


async def xet_read_token(call: Call) -> Response:
    """GET .../xet-read-token/REV."""
    call.readable_repo().resolve(call.revision)
    return _xet_token(call, "read")


def _xet_token(call: Call, kind: str) -> Response:
    expires = int(time.time()) + _TOKEN_SECONDS
    # The store is a folder, and needs no token.
    token, address = f"xet_{kind}_{expires}", call.hub.xet.address
    # hf_xet reads the body, huggingface_hub the headers.
    return JSONResponse(
        {"accessToken": token, "exp": expires, "casUrl": address},
        headers={
            "X-Xet-Cas-Url": address,
            "X-Xet-Access-Token": token,
            "X-Xet-Token-Expiration": str(expires),
        },
    )


def _upload_target(call: Call) -> Repo:
    """Return the repo of an upload. Any token that may write will do, because of pull requests."""
    repo = call.repo()
    call.token_writer("upload to a repository")
    return repo


def _add_object(call: Call, oid: str) -> None:
    """Add an uploaded object to the repo of a signed address, unless that was deleted meanwhile."""
    database, number = call.hub.database, check_number(call.query.get("repo", ""))
    with database.connection:
        for repo in Repo.select(database, "number = ?", number):
            repo.add_objects([oid])


async def _large_pieces(call: Call, size: int) -> AsyncIterator[bytearray]:
    """Return the body in large pieces, so that few of them go from thread to thread.

    Raises:
        Refusal: it is longer than announced.
    """
    piece, received = bytearray(), 0
    async for data in call.request.stream():
        received += len(data)
        if received > size:
            raise Refusal(400, "The content is longer than announced")
        piece += data
        if len(piece) >= PIECE_BYTES:
            yield piece
            piece = bytearray()
    if piece:
        yield piece


def _sample(file: dict[str, Any]) -> bytes:
    try:
        return base64.b64decode(text_of(file, "sample"), validate=True)
    except ValueError as error:
        raise Refusal(400, "The sample is not base64") from error
