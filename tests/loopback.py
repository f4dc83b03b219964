"""A Hub on this machine with one repo, for tests of the client, and exceptions of the client."""

from __future__ import annotations

import hashlib
import importlib
import json
import re
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.utils.sha import git_hash

from tests.serving import Quiet

COMMIT = "c" * 40
PLACE = "hf://maker/model"
PINNED = f"{PLACE}@{COMMIT}"
TOKEN = "hf_" + "Secret" * 6
#: Files larger than this are in LFS.
GIT_BYTES = 4096


class LoopbackHub:
    """A Hub on this machine that has one repo: a folder. LFS answers under another host name than the rest."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.records: list[Any] = record_files(folder)
        self.page = 1000
        self.faults: dict[str, Callable[[Handler], object]] = {}
        """What answers in place of the Hub, by a part of the path."""
        self.seen: list[tuple[str, str, str]] = []
        """Host, path and Authorization of all requests."""
        self.sent = 0
        self.url = ""


class Handler(Quiet, BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    hub: LoopbackHub

    def do_GET(self) -> None:
        self.hub.seen.append((self.headers["Host"], self.path, self.headers.get("Authorization", "")))
        for part, fault in self.hub.faults.items():
            if part in self.path:
                fault(self)
                return
        route, _, query = self.path.partition("?")
        if "/revision/" in route or route == "/api/models/maker/model":
            self.reply(json.dumps({"id": "maker/model", "sha": COMMIT}).encode())
        elif f"/tree/{COMMIT}" in route:
            self.tree(query)
        elif f"/resolve/{COMMIT}/" in route:
            self.resolve(route.partition(f"/resolve/{COMMIT}/")[2])
        elif route.startswith("/lfs/"):
            self.piece(self.hub.folder / route.removeprefix("/lfs/"))
        else:
            self.reply(b"", 404, {"X-Error-Code": "RepoNotFound"})

    def tree(self, query: str) -> None:
        start = int(query.partition("cursor=")[2] or 0)
        end = start + self.hub.page
        # The Hub may be behind another name, which must not get the token.
        address = f"http://localhost:1/api/models/maker/model/tree/{COMMIT}?recursive=true&cursor={end}"
        more = {"Link": f'<{address}>; rel="next"'} if end < len(self.hub.records) else {}
        self.reply(json.dumps(self.hub.records[start:end]).encode(), headers=more)

    def resolve(self, path: str) -> None:
        record = next((record for record in self.hub.records if record["path"] == path), None)
        if record is None:
            self.reply(b"", 404, {"X-Error-Code": "EntryNotFound"})
        elif "lfs" in record:
            address = f"{self.hub.url.replace('127.0.0.1', 'localhost')}/lfs/{path}?Signature=s"
            self.reply(b"", 302, {"Location": address})
        else:
            self.piece(self.hub.folder / path)

    def piece(self, file: Path) -> None:
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"])
        assert match
        assert self.headers["Accept-Encoding"] == "identity"
        start, last, size = int(match[1]), int(match[2]), file.stat().st_size
        with file.open("rb") as stream:
            stream.seek(start)
            content = stream.read(last + 1 - start)
        # Some servers say that they did not compress it.
        self.reply(content, 206, {"Content-Range": f"bytes {start}-{last}/{size}", "Content-Encoding": "Identity"})

    def reply(
        self, content: bytes, status: int = 200, headers: Mapping[str, str] | None = None, length: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        self.wfile.write(content)
        self.hub.sent += len(content)


def record_files(folder: Path) -> list[Any]:
    records: list[Any] = []
    for file in sorted(folder.rglob("*")):
        path, size = file.relative_to(folder).as_posix(), file.stat().st_size
        if file.is_dir():
            records.append({"type": "directory", "path": path, "oid": "d" * 40, "size": 0})
        elif size <= GIT_BYTES:
            records.append({"type": "file", "path": path, "oid": git_hash(file.read_bytes()), "size": size})
        else:
            sha256 = "0" * 64 if size > 1 << 30 else hashlib.sha256(file.read_bytes()).hexdigest()
            lfs = {"oid": sha256, "size": size, "pointerSize": 130}
            records.append({"type": "file", "path": path, "oid": "e" * 40, "size": size, "lfs": lfs})
    return records


def client_module() -> Any:
    """Httpx or httpx2, whichever the client uses."""
    from huggingface_hub import errors

    return importlib.import_module(errors.HfHubHTTPError.__mro__[1].__module__.partition(".")[0])


def answered(status: int, headers: dict[str, str] | None = None, content: bytes = b"") -> Any:
    """What the client raises when the Hub answers with a status."""
    from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]

    http = client_module()
    request = http.Request(
        "GET", "https://huggingface.co/api/models/a/b", headers={"Authorization": "Bearer other-token"}
    )
    with pytest.raises(OSError, match=r".") as caught:
        hf_raise_for_status(http.Response(status, headers=headers, content=content, request=request))
    return caught.value
