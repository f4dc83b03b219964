"""The Hub that fails on demand: each fault is what it says."""

from __future__ import annotations

import hashlib
import http.client
import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.faulty_hub import FaultyHub
from tests.hubs import ask, commit, get_file, head, lfs_file, make_repo, run_client, upload


def test_faults_of_answers(hub: FaultyHub) -> None:
    repo = make_repo(hub, "faults")
    path = f"/api/models/{repo}"
    answer: dict[str, Any] = {"status": 429, "headers": {"Retry-After": "1"}, "body": "<p>"}
    hub.fault("status", method="GET", path=f"^{path}$", times=2, skip=1, **answer)
    found = [ask(hub, "GET", path) for _ in range(4)]
    assert [answer.status for answer in found] == [200, 429, 429, 200]
    assert (found[1].headers["retry-after"], found[1].body) == ("1", b"<p>")
    hub.fault("delay", path=f"^{path}$", seconds=0.2)
    started = time.monotonic()
    assert ask(hub, "GET", path).status == 200
    assert time.monotonic() - started >= 0.2
    hub.fault("drop_before", method="POST", path="/tag/main$")
    hub.fault("drop_after", method="POST", path="/tag/main$", skip=1)
    hub.forget_requests()
    for tags in ([], ["v1"]):
        with pytest.raises((ConnectionError, http.client.RemoteDisconnected)):
            ask(hub, "POST", f"{path}/tag/main", {"tag": "v1"})
        assert [tag["name"] for tag in ask(hub, "GET", f"{path}/refs").content["tags"]] == tags
    dropped = [item for item in hub.requests() if item["path"].endswith("/tag/main")]
    assert [item["status"] for item in dropped] == [0, 0]
    assert not hub.faults()


def test_faults_of_the_state(hub: FaultyHub) -> None:
    repo = make_repo(hub, "damaged", "lab", visibility="private")
    content = b"\0" * 1000
    sha256 = upload(hub, repo, content)
    commit(hub, repo, {"a.txt": b"text"}, lfs_file("a.bin", content))
    hub.fault("corrupt", sha256=sha256)
    hub.fault("corrupt", sha256=hashlib.sha256(b"text").hexdigest())
    damaged = get_file(hub, f"/{repo}/resolve/main/a.bin").body
    assert (len(damaged), sum(a != b for a, b in zip(damaged, content, strict=True))) == (1000, 1)
    assert ask(hub, "GET", f"/{repo}/resolve/main/a.txt").body != b"text"
    before = head(hub, repo)
    hub.fault("move_head", method="POST", path="/commit/main", repo=repo)
    assert commit(hub, repo, {"b.txt": b"b"}, parentCommit=before).status == 412
    assert head(hub, repo) != before
    assert commit(hub, repo, {"b.txt": b"b"}, parentCommit=head(hub, repo)).status == 200
    hub.fault("forget", sha256=sha256)
    assert commit(hub, repo, {}, lfs_file("b.bin", content)).status == 400


def test_objects_over_xet_can_be_damaged_and_lost(hub: FaultyHub, tmp_path: Path) -> None:
    make_repo(hub, "lost")
    send = (
        "try:\n    add = CommitOperationAdd(sys.argv[1], bytes(range(256)) * 3000)\n"
        '    api.create_commit("alice/lost", [add], commit_message="Add")\n'
        'except Exception as error:\n    found["error"] = str(error)\n'
    )
    assert run_client(hub, tmp_path, send, "a.bin", xet=True) == {}
    content = bytes(range(256)) * 3000
    sha256 = hashlib.sha256(content).hexdigest()
    hub.fault("corrupt", sha256=sha256)
    with suppress(http.client.IncompleteRead, ConnectionError):
        assert get_file(hub, "/alice/lost/resolve/main/a.bin").body != content
    hub.fault("forget", sha256=sha256)
    assert commit(hub, "alice/lost", {}, lfs_file("b.bin", content)).status == 400
    assert run_client(hub, tmp_path, send, "b.bin", xet=True) == {}


def test_the_log_has_no_tokens(hub: FaultyHub) -> None:
    hub.forget_requests()
    make_repo(hub, "logged")
    ask(hub, "GET", "/api/models?author=alice", token=hub.token()[::-1])
    log = hub.requests()
    shown = [(item["method"], item["authorized"], item["status"]) for item in log]
    assert shown == [("POST", True, 200), ("GET", True, 401)]
    assert min(log[0]["received"], log[0]["sent"]) > 0
    assert not any(word in json.dumps(log) for word in ("Bearer", hub.token(), hub.token()[::-1]))
