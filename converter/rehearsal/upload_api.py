"""Content on its way in: which files go where, LFS objects in one piece or in parts, and tokens for Xet."""

from __future__ import annotations

import base64
import binascii
import hashlib
import time
from collections.abc import AsyncIterator
from typing import Any

import anyio.to_thread
from starlette.responses import Response

from converter.rehearsal.blobs import PIECE_BYTES
from converter.rehearsal.call import Call, text_of
from converter.rehearsal.discussions import commit_target
from converter.rehearsal.history import Repo
from converter.rehearsal.modes import is_ignored, is_lfs
from converter.rehearsal.names import check_path, check_sha256, check_size
from converter.rehearsal.replies import Refusal, reply

#: Files in one request, as the Hub limits them.
_FILES_LIMIT = 1000
#: Bytes of an LFS object that the Hub refuses: https://huggingface.co/docs/hub/storage-limits
_OBJECT_LIMIT = 500 * 10**9
#: Parts of an upload, as S3 limits them.
_PARTS_LIMIT = 10_000
_TOKEN_SECONDS = 3600


async def preupload(call: Call) -> Response:
    """POST .../preupload/REV: which files go where, and what the repo has in their places."""
    repo = commit_target(call)
    values = await call.json()
    files = _objects(values, "files")
    commit = call.hub.history.resolve(repo, call.revision)
    tree = call.hub.history.tree(repo, commit)
    ignore_rules = text_of(values, "gitIgnore") or call.hub.text(repo, commit, ".gitignore")
    attributes = call.hub.text(repo, commit, ".gitattributes")
    answers = []
    for file in files:
        path, size = check_path(file.get("path")), check_size(file.get("size"))
        goes_to_lfs = is_lfs(path, size, _decode(file.get("sample", "")), attributes)
        answer: dict[str, Any] = {
            "path": path,
            "uploadMode": "lfs" if goes_to_lfs else "regular",
            "shouldIgnore": is_ignored(path, ignore_rules),
        }
        if path in tree:
            answer["oid"] = tree[path].sha256 if tree[path].is_lfs else tree[path].oid
        answers.append(answer)
    return reply({"files": answers})


async def lfs_batch(call: Call) -> Response:
    """POST /ID.git/info/lfs/objects/batch: which objects are missing, and where they go."""
    repo = _upload_target(call)
    values = await call.json()
    if values.get("operation") != "upload":
        raise Refusal(400, "Only uploads are batched here")
    objects = _objects(values, "objects")
    wanted = [(check_sha256(item.get("oid")), check_size(item.get("size"))) for item in objects]
    call.hub.check_quota(repo, sum(size for _, size in wanted))
    takes_parts = "multipart" in (values.get("transfers") or [])
    answers = [_lfs_answer(call, repo, oid, size, takes_parts) for oid, size in wanted]
    has_parts = any("chunk_size" in item.get("actions", {}).get("upload", {}).get("header", {}) for item in answers)
    return reply({"transfer": "multipart" if has_parts else "basic", "objects": answers})


def _lfs_answer(call: Call, repo: Repo, oid: str, size: int, takes_parts: bool) -> dict[str, Any]:
    hub = call.hub
    if size > _OBJECT_LIMIT:
        return {"oid": oid, "size": size, "error": {"code": 413, "message": "The file is too large"}}
    if hub.stored_size(oid) == size:
        return {"oid": oid, "size": size}
    verify = {"href": f"{hub.endpoint}/{repo.page}.git/info/lfs/verify"}
    place = f"{hub.files_endpoint}/_lfs/{oid}"
    if not takes_parts or size <= hub.settings.multipart_bytes:
        upload: dict[str, Any] = {"href": f"{place}?size={size}&signature={hub.sign('put', oid, size)}"}
    else:
        step = hub.settings.part_bytes
        parts = range(1, -(-size // step) + 1)
        sizes = {number: min(step, size - (number - 1) * step) for number in parts}
        upload = {
            "href": f"{place}/complete?signature={hub.sign('complete', oid)}",
            "header": {"chunk_size": str(step)}
            | {
                str(number): f"{place}/part/{number}?size={sizes[number]}&"
                f"signature={hub.sign('part', oid, number, sizes[number])}"
                for number in parts
            },
        }
    return {"oid": oid, "size": size, "authenticated": True, "actions": {"upload": upload, "verify": verify}}


async def put_object(call: Call) -> Response:
    """PUT /_lfs/OID."""
    oid, size = check_sha256(call.part("oid")), _signed_size(call)
    call.hub.check_signature(call.query.get("signature", ""), "put", oid, size)
    draft = call.hub.blobs.draft()
    try:
        async for piece in _large_pieces(call, size):
            await anyio.to_thread.run_sync(draft.write, piece)
        if draft.sha256 != oid or draft.size != size:
            raise Refusal(400, "The content is not what its sha256 and size say")
        call.hub.blobs.keep(draft)
    finally:
        draft.discard()
    return Response(headers={"ETag": f'"{oid}"'})


async def put_part(call: Call) -> Response:
    """PUT /_lfs/OID/part/N."""
    oid, number, size = check_sha256(call.part("oid")), int(call.part("number")), _signed_size(call)
    call.hub.check_signature(call.query.get("signature", ""), "part", oid, number, size)
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
    call.hub.check_signature(call.query.get("signature", ""), "complete", oid)
    values = await call.json()
    parts = _objects(values, "parts", _PARTS_LIMIT)
    if (
        values.get("oid") != oid
        or [part.get("partNumber") for part in parts] != list(range(1, len(parts) + 1))
        or not all(part.get("etag") for part in parts)
    ):
        raise Refusal(400, "Parts are missing, or without their ETag")
    if not await anyio.to_thread.run_sync(call.hub.blobs.join_parts, oid):
        raise Refusal(400, "The content is not what its sha256 says")
    return reply({"oid": oid})


async def verify_object(call: Call) -> Response:
    """POST /ID.git/info/lfs/verify."""
    _upload_target(call)
    values = await call.json()
    if call.hub.stored_size(check_sha256(values.get("oid"))) != check_size(values.get("size")):
        raise Refusal(404, "The object is not stored, or has another size")
    return reply({})


async def xet_write_token(call: Call) -> Response:
    """GET .../xet-write-token/REV. With create_pr the revision says nothing; the client even sends None."""
    repo = commit_target(call)
    call.hub.check_quota(repo, 0)
    return _xet_token(call, "write")


async def xet_read_token(call: Call) -> Response:
    """GET .../xet-read-token/REV."""
    repo = call.repo()
    call.check_files_access(repo)
    call.hub.history.resolve(repo, call.revision)
    return _xet_token(call, "read")


def _xet_token(call: Call, kind: str) -> Response:
    expires = int(time.time()) + _TOKEN_SECONDS
    token = f"xet_{kind}_{call.hub.sign('xet', kind, expires)[:32]}"
    address = call.hub.xet.address
    return reply(
        {"accessToken": token, "exp": expires, "casUrl": address},
        headers={
            "X-Xet-Cas-Url": address,
            "X-Xet-Access-Token": token,
            "X-Xet-Token-Expiration": str(expires),
        },
    )


def _upload_target(call: Call) -> Repo:
    """The repo that content goes to. A pull request may bring content from whoever has a token to write."""
    repo = call.repo()
    viewer = call.user()
    if viewer.role != "write":
        raise Refusal(403, "Forbidden: you must use a write token to upload files")
    return repo


def _signed_size(call: Call) -> int:
    text = call.query.get("size", "")
    if not text.isascii() or not text.isdecimal():
        raise Refusal(400, "Invalid size")
    return int(text)


async def _large_pieces(call: Call, size: int) -> AsyncIterator[bytearray]:
    """The body in large pieces, so that few of them go from thread to thread.

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


def _objects(values: dict[str, Any], name: str, limit: int = _FILES_LIMIT) -> list[dict[str, Any]]:
    objects = values.get(name)
    if not isinstance(objects, list) or len(objects) > limit or not all(isinstance(item, dict) for item in objects):
        raise Refusal(400, f'"{name}" must be an array of at most {limit} objects')
    return objects


def _decode(text: object) -> bytes:
    if not isinstance(text, str):
        raise Refusal(400, "The sample is no base64")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refusal(400, "The sample is no base64") from error
