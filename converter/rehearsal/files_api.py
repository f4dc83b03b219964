"""Routes from which files are downloaded, complete or in ranges."""

from __future__ import annotations

import mimetypes
import re
from urllib.parse import quote, urlencode

from starlette.responses import Response, StreamingResponse

from converter.rehearsal.call import Call
from converter.rehearsal.names import check_path, check_sha256
from converter.rehearsal.replies import Refusal, entry_not_found

_RANGE = re.compile(r"bytes=(?P<first>\d{0,15})-(?P<last>\d{0,15})")
#: Types that a browser may show; it gets other files as text or as a download.
_SHOWN = ("image/png", "image/jpeg", "image/webp", "image/gif")


async def resolve(call: Call) -> Response:
    """GET /ID/resolve/REV/PATH: a file that git keeps, or a redirect to an LFS object."""
    hub, repo = call.hub, call.readable_repo()
    commit = repo.resolve(call.revision)
    entry = repo.tree(commit).get(check_path(call.part("path")))
    if entry is None:
        raise entry_not_found(commit)
    headers = {"X-Repo-Commit": commit, "ETag": f'"{entry.oid}"'}
    if not entry.is_lfs:
        # A browser that is signed in sends its password with every request that a page of another site makes.
        headers["Cross-Origin-Resource-Policy"] = "same-origin"
        headers["Content-Type"] = _content_type(entry.path, "text/plain; charset=utf-8")
        return _bytes(call, entry.sha256, entry.size, headers)
    query = urlencode({"name": entry.path.rpartition("/")[2]})
    headers |= {
        "X-Linked-Etag": f'"{entry.sha256}"',
        "X-Linked-Size": str(entry.size),
        "Location": hub.signed(f"/_files/{entry.sha256}?{query}"),
    }
    if (file := hub.xet.find(entry.sha256)) is not None:
        token = f"{hub.endpoint}/api/models/{quote(repo.identity)}/xet-read-token/{commit}"
        headers |= {"X-Xet-Hash": file.xet_hash, "Link": f'<{token}>; rel="xet-auth"'}
    return Response(status_code=302, headers=headers)


async def send_object(call: Call) -> Response:
    """GET /_files/SHA256: an LFS object, from another origin than the rest, for everyone who has its signed address."""
    sha256 = check_sha256(call.part("oid"))
    size = call.hub.stored_size(sha256)
    if size is None:
        raise Refusal(404, "The object is not stored")
    content_type = _content_type(call.query.get("name", ""), "application/octet-stream")
    return _bytes(call, sha256, size, {"ETag": f'"{sha256}"', "Content-Type": content_type})


def _bytes(call: Call, sha256: str, size: int, headers: dict[str, str]) -> Response:
    """Answer with the bytes that the request asks for.

    Raises:
        Refusal: the range is beyond the end, or the object is not stored.
    """
    first, stop, is_part = _asked_range(call.request.headers.get("range", ""), size)
    headers = {
        **headers,
        "Accept-Ranges": "bytes",
        "Content-Length": str(stop - first),
        "X-Content-Type-Options": "nosniff",
        # Anyone may upload a file: what a browser opens must not act as a page of the Hub.
        "Content-Security-Policy": "default-src 'none'; sandbox",
    }
    if is_part:
        headers["Content-Range"] = f"bytes {first}-{stop - 1}/{size}"
    status = 206 if is_part else 200
    if call.request.method == "HEAD":
        return Response(status_code=status, headers=headers)
    return StreamingResponse(call.hub.content(sha256, first, stop), status, headers)


def _asked_range(text: str, size: int) -> tuple[int, int, bool]:
    """Return the first byte, the byte after the last, and whether that is a part. Only single ranges are understood.

    Raises:
        Refusal: the range is beyond the end.
    """
    match = _RANGE.fullmatch(text.strip())
    if match is None or not (match["first"] or match["last"]):
        return 0, size, False
    if match["first"]:
        first, last = int(match["first"]), int(match["last"] or size - 1)
    else:
        first, last = max(size - int(match["last"]), 0), size - 1
    if first >= size or last < first:
        raise Refusal(416, "Range not satisfiable", headers={"Content-Range": f"bytes */{size}"})
    return first, min(last + 1, size), True


def _content_type(path: str, default: str) -> str:
    guessed = mimetypes.guess_type(path)[0]
    return guessed if guessed in _SHOWN else default
