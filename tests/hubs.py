"""Settings of a local Hub for tests, and two ways to use it: huggingface_hub in its own process, and plain HTTP."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from converter.rehearsal.process import RunningHub
from converter.rehearsal.settings import Account, HubSettings
from tests.conftest import run_python

CARD = (
    b"---\nlicense: mit\nbase_model: a/b\ntags: [x]\n---\n"
    b"# A <b>card</b>\n\n![one](images/one.png) [a page](page.html)\n"
)
#: What every program for the client begins with.
_PRELUDE = """
import json, os, sys, warnings
from pathlib import Path
from huggingface_hub import (
    CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download, snapshot_download
)
api, found = HfApi(), {}
"""


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    """By their names in small letters."""
    body: bytes

    @property
    def content(self) -> Any:
        return json.loads(self.body)


def small_hub(folder: Path) -> HubSettings:
    """Return settings of a Hub with three accounts and low limits."""
    accounts = (Account.new("alice", "write", "lab"), Account.new("bob"), Account.new("reader", "read", "lab"))
    return HubSettings(folder, accounts, multipart_bytes=1_000_000, part_bytes=400_000, page_entries=3)


def run_client(
    hub: RunningHub, home: Path, program: str, *arguments: object, xet: bool = False, **variables: str
) -> dict[str, Any]:
    """Run a program with huggingface_hub, and return what it puts into ``found``."""
    environment = hub.environment(os.environ, home, xet=xet) | variables
    done = run_python(f"{_PRELUDE}\n{program}\nprint(json.dumps(found))", *arguments, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def ask(
    hub: RunningHub,
    method: str,
    path: str,
    body: object = None,
    *,
    token: str | None = None,
    headers: dict[str, str] | None = None,
) -> Answer:
    """Send one request, a body that is not bytes as JSON; a token of None is the first account's, an empty one none."""
    address = urlsplit(hub.endpoint)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=30)
    shown = hub.token() if token is None else token
    sent = {**({"Authorization": f"Bearer {shown}"} if shown else {}), **(headers or {})}
    content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    try:
        connection.request(method, path, content, sent)
        response = connection.getresponse()
        found = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, found, response.read())
    finally:
        connection.close()


def make_repo(hub: RunningHub, name: str, owner: str = "alice", **values: object) -> str:
    """Make a repo, and return ``OWNER/NAME``."""
    answer = ask(hub, "POST", "/api/repos/create", {"name": name, "organization": owner, **values})
    assert answer.status == 200, answer.body
    return f"{owner}/{name}"


def commit(
    hub: RunningHub, repo: str, files: dict[str, bytes], *operations: Any, revision: str = "main", **header: str
) -> Answer:
    lines: list[dict[str, Any]] = [{"key": "header", "value": {"summary": "A commit", "description": "", **header}}]
    for path, content in files.items():
        text = base64.b64encode(content).decode()
        lines.append({"key": "file", "value": {"path": path, "content": text, "encoding": "base64"}})
    body = b"\n".join(json.dumps(line).encode() for line in [*lines, *operations])
    return ask(hub, "POST", f"/api/models/{repo}/commit/{revision}", body)


def get_file(hub: RunningHub, path: str, **options: Any) -> Answer:
    """Follow the redirect from the path of a large file, and return what is there."""
    place = ask(hub, "GET", path).headers["location"].partition("/_files")[2]
    return ask(hub, "GET", f"/_files{place}", **options)


def upload(hub: RunningHub, repo: str, content: bytes) -> str:
    """Store an LFS object in one piece, and return its sha256."""
    sha256 = hashlib.sha256(content).hexdigest()
    wanted = {"operation": "upload", "objects": [{"oid": sha256, "size": len(content)}]}
    item = ask(hub, "POST", f"/{repo}.git/info/lfs/objects/batch", wanted).content["objects"][0]
    if "actions" in item:
        address = urlsplit(item["actions"]["upload"]["href"])
        assert ask(hub, "PUT", f"{address.path}?{address.query}", content, token="").status == 200
    return sha256


def lfs_file(path: str, content: bytes) -> dict[str, Any]:
    oid = hashlib.sha256(content).hexdigest()
    return {"key": "lfsFile", "value": {"path": path, "algo": "sha256", "oid": oid, "size": len(content)}}


def head(hub: RunningHub, repo: str, revision: str = "main") -> str:
    answer = ask(hub, "GET", f"/api/models/{repo}/revision/{revision.replace('/', '%2F')}")
    assert answer.status == 200, answer.body
    return str(answer.content["sha"])


def without_progress(text: str) -> str:
    """What a command has said, in one line, without the progress that it shows on slow machines."""
    lines = (line for line in text.splitlines() if not re.match(r"[a-z ]+: [0-9.]+( [kMG]?B)? of ", line))
    return " ".join(" ".join(lines).split())
