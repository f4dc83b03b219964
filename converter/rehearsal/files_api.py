"""Files on their way out: where they are, and their bytes, whole or in ranges."""

from __future__ import annotations

import mimetypes
import re
from collections.abc import AsyncIterator
from urllib.parse import quote

from starlette.responses import Response, StreamingResponse

from converter.rehearsal.call import Call
from converter.rehearsal.history import Entry
from converter.rehearsal.names import check_path, check_sha256, decode, quoted
from converter.rehearsal.replies import Refusal, entry_not_found

_RANGE = re.compile(r"bytes=(?P<first>\d{0,15})-(?P<last>\d{0,15})")
#: What a browser is to show of regular files; all else is offered for download.
_SHOWN = ("image/png", "image/jpeg", "image/webp", "image/gif")


async def resolve(call: Call) -> Response:
    """HEAD or GET /ID/resolve/REV/PATH: a file that git keeps, or a redirect to an LFS object."""
    hub, repo = call.hub, call.repo()
    call.check_files_access(repo)
    commit = hub.history.resolve(repo, call.revision)
    entry = hub.history.entry(repo, commit, check_path(call.part("path")))
    if entry is None:
        raise entry_not_found(commit)
    headers = {"X-Repo-Commit": commit, "ETag": f'"{entry.oid}"'}
    if not entry.is_lfs:
        return _bytes(call, entry.sha256, entry.size, {**headers, "Content-Type": _content_type(entry)})
    headers |= {
        "X-Linked-Etag": f'"{entry.sha256}"',
        "X-Linked-Size": str(entry.size),
        # The client's own headers go to this address only where it is of the same origin, and it is not.
        "Location": f"{hub.files_endpoint}/_files/{entry.sha256}?name={quote(entry.path.rpartition('/')[2], safe='')}"
        f"&signature={hub.sign('file', entry.sha256)}",
    }
    if (file := hub.xet_file(entry.sha256)) is not None:
        kind = call.parts.get("kind") or "models"
        token = f"{hub.endpoint}/api/{kind}/{quoted(repo.identity)}/xet-read-token/{commit}"
        headers |= {"X-Xet-Hash": file.xet_hash, "Link": f'<{token}>; rel="xet-auth"'}
    return Response(status_code=302, headers=headers)


async def show_image(call: Call) -> Response:
    """GET /ID/image/REV/PATH: an image without a redirect, because pages show none from another origin."""
    hub, repo = call.hub, call.repo()
    call.check_files_access(repo)
    commit = hub.history.resolve(repo, call.revision)
    entry = hub.history.entry(repo, commit, check_path(call.part("path")))
    if entry is None or _content_type(entry) not in _SHOWN:
        raise entry_not_found(commit)
    return _bytes(call, entry.sha256, entry.size, {"Content-Type": _content_type(entry)})


async def send_object(call: Call) -> Response:
    """HEAD or GET /_files/SHA256: an LFS object, from another origin than the rest."""
    sha256 = check_sha256(call.part("oid"))
    call.hub.check_signature(call.query.get("signature", ""), "file", sha256)
    size = call.hub.stored_size(sha256)
    if size is None:
        raise Refusal(404, "The object is not stored")
    name = decode(quote(call.query.get("name", ""), safe=""))
    guessed = mimetypes.guess_type(name)[0]
    shown = guessed if guessed in _SHOWN else "application/octet-stream"
    return _bytes(call, sha256, size, {"ETag": f'"{sha256}"', "Content-Type": shown})


def _bytes(call: Call, sha256: str, size: int, headers: dict[str, str]) -> Response:
    """The answer with the bytes that the request asks for.

    Raises:
        Refusal: there are none of these, or the object is not stored.
    """
    first, stop, is_part = _asked_range(call.request.headers.get("range", ""), size)
    headers = {
        **headers,
        "Accept-Ranges": "bytes",
        "Content-Length": str(stop - first),
        "X-Content-Type-Options": "nosniff",
        # Files come from anybody: what a browser opens must not act as a page of the Hub.
        "Content-Security-Policy": "default-src 'none'; sandbox",
        # A browser that is signed in sends its password along with what a page of another site loads.
        "Cross-Origin-Resource-Policy": "same-origin",
    }
    if is_part:
        headers["Content-Range"] = f"bytes {first}-{stop - 1}/{size}"
    status = 206 if is_part else 200
    if call.request.method == "HEAD" or first == stop:
        return StreamingResponse(_nothing(), status, headers)
    return StreamingResponse(call.hub.content(sha256, first, stop), status, headers)


def _asked_range(text: str, size: int) -> tuple[int, int, bool]:
    """First byte, the byte after the last, and whether it is a part. What is no single range is ignored.

    Raises:
        Refusal: it lies beyond the end.
    """
    match = _RANGE.fullmatch(text.strip())
    if match is None or not (match["first"] or match["last"]):
        return 0, size, False
    if match["first"]:
        first, last = int(match["first"]), int(match["last"] or size - 1)
    else:
        first, last = max(size - int(match["last"]), 0), size - 1
    if match["first"] and match["last"] and last < first:
        return 0, size, False
    if first >= size or last < first:
        raise Refusal(416, "Range not satisfiable", headers={"Content-Range": f"bytes */{size}"})
    return first, min(last + 1, size), True


def _content_type(entry: Entry) -> str:
    guessed = mimetypes.guess_type(entry.path)[0]
    return guessed if guessed in _SHOWN else "text/plain; charset=utf-8"


async def _nothing() -> AsyncIterator[bytes]:
    pieces: tuple[bytes, ...] = ()
    for piece in pieces:
        yield piece
