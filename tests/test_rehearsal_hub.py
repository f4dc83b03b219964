"""The local Hub: huggingface_hub works on it as it is, it refuses what the real one refuses, and it fails on demand."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converter.errors import DependencyError, OutputError, UsageError
from converter.presentation.card.metadata import MetadataReport
from converter.rehearsal.card_metadata import check_card
from converter.rehearsal.lz4 import decompress_frame
from converter.rehearsal.modes import GITATTRIBUTES, is_ignored, is_lfs
from converter.rehearsal.process import RunningHub, running_hub
from converter.rehearsal.settings import Account, HubSettings
from converter.schemas import load_schema
from tests.conftest import ROOT, command, snapshot
from tests.hubs import Answer, ask, commit, head, lfs_file, make_repo, run_client, small_hub, upload

CARD = (
    b"---\nlicense: mit\nbase_model: a/b\ntags: [x]\n---\n"
    b"# A <b>card</b>\n\n![one](images/one.png) [a page](page.html)\n"
)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningHub]:
    with running_hub(small_hub(tmp_path_factory.mktemp("hub"))) as running:
        yield running


@pytest.fixture(autouse=True)
def _no_faults_are_left(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "hub" in request.fixturenames:
        request.getfixturevalue("hub").clear_faults()


def make_release(folder: Path, seed: int) -> Path:
    """Files of all kinds that uploads tell apart: regular, in one piece, in parts, well and badly compressible."""
    generator = np.random.default_rng(seed)
    (folder / "transformer").mkdir(parents=True)
    halves = (generator.standard_normal(500_000).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    (folder / "transformer" / "weights.safetensors").write_bytes(halves.tobytes())
    (folder / "noise.bin").write_bytes(generator.bytes(1_300_001))
    (folder / "words.bin").write_bytes(b"lens%d " % seed * 50_001)
    (folder / "README.md").write_bytes(CARD)
    (folder / "config.json").write_text("{}")
    (folder / "empty.txt").write_text("")
    (folder / "odd name #1 ü.txt").write_text("odd\n")
    return folder


JOURNEY = """
repo, folder = sys.argv[1], Path(sys.argv[2])
found["who"] = api.whoami()["name"]
api.create_repo(repo)
api.create_repo(repo, exist_ok=True)
api.auth_check(repo, write=True)
first = api.model_info(repo).sha
paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
additions = [CommitOperationAdd(str(path.relative_to(folder)), str(path)) for path in paths]
made = api.create_commit(repo, additions, commit_message="All", parent_commit=first)
found["head"] = made.oid == api.model_info(repo).sha
again = api.create_commit(
    repo, [CommitOperationAdd(str(path.relative_to(folder)), str(path)) for path in paths], commit_message="Again"
)
found["unchanged"] = again.oid == made.oid
api.create_tag(repo, tag="v1", revision=made.oid)
found["snapshot"] = snapshot_download(repo, revision="v1")
found["files"] = {
    file.path: [file.size, file.lfs.sha256 if file.lfs else file.blob_id, bool(file.xet_hash)]
    for file in api.list_repo_tree(repo, recursive=True) if hasattr(file, "blob_id")
}
(info,) = api.get_paths_info(repo, ["config.json", "nothing"], expand=True)
found["changed in"] = info.last_commit.oid == made.oid
check = api.verify_repo_checksums(repo, local_dir=str(folder))
found["check"] = [len(check.mismatches), list(check.missing_paths), list(check.extra_paths)]
address = hf_hub_url(repo, "noise.bin", revision="v1")
part = get_session().get(
    address, headers={**build_hf_headers(), "Range": "bytes=1000000-1000099"}, follow_redirects=True
)
found["part"] = [part.status_code, part.headers["content-range"], part.content.hex()]
found["exists"] = [api.file_exists(repo, "noise.bin"), api.file_exists(repo, "nothing")]
offered = api.create_commit(
    repo, [CommitOperationAdd("more.bin", b"\\0more"), CommitOperationDelete("config.json")],
    commit_message="Offer", create_pr=True,
)
found["pull request"] = [offered.pr_num, offered.pr_revision]
found["before merge"] = api.model_info(repo).sha == made.oid
api.merge_pull_request(repo, offered.pr_num)
found["after merge"] = sorted(api.list_repo_files(repo))
draft = api.create_pull_request(repo, "A draft")
api.create_commit(
    repo, [CommitOperationAdd("draft.txt", b"draft")], commit_message="Draft", revision=draft.git_reference
)
found["draft"] = [draft.status, api.change_discussion_status(repo, draft.num, "open").new_status]
found["offers"] = [
    [item.num, item.status] for item in api.get_repo_discussions(
        repo, discussion_type="pull_request", discussion_status="open", author="alice"
    )
]
details = api.get_discussion_details(repo, 1)
found["details"] = [details.status, details.target_branch, [event.type for event in details.events]]
api.create_branch(repo, branch="side", revision="v1")
refs = api.list_repo_refs(repo, include_pull_requests=True)
found["refs"] = [[ref.name for ref in part] for part in (refs.branches, refs.tags, refs.pull_requests)]
found["titles"] = [item.title for item in api.list_repo_commits(repo)]
api.super_squash_history(repo, branch="main")
found["squashed"] = len(api.list_repo_commits(repo))
"""


@pytest.mark.parametrize("xet", [False, True], ids=["lfs", "xet"])
def test_a_release_goes_through(hub: RunningHub, tmp_path: Path, xet: bool) -> None:
    hub.forget_requests()
    # What one way has brought need not go the other.
    release = make_release(tmp_path / "release", seed=int(xet))
    repo = f"lab/journey-{xet}"
    found = run_client(hub, tmp_path / "home", JOURNEY, repo, release, xet=xet)
    assert found["who"] == "alice"
    assert found["head"]
    assert found["unchanged"]
    downloaded = {path: data for path, data in snapshot(Path(found["snapshot"])).items() if path != ".gitattributes"}
    assert downloaded == snapshot(release)
    for path, data in snapshot(release).items():
        size, identity, is_xet = found["files"][path]
        assert size == len(data)
        large = path.endswith((".bin", ".safetensors"))
        assert is_xet == (xet and large)
        git = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
        assert identity == (hashlib.sha256(data).hexdigest() if large else git)
    assert found["changed in"]
    assert found["check"] == [0, [".gitattributes"], []]
    noise = (release / "noise.bin").read_bytes()
    assert found["part"] == [206, "bytes 1000000-1000099/1300001", noise[1_000_000:1_000_100].hex()]
    assert found["exists"] == [True, False]
    assert found["pull request"] == [1, "refs/pr/1"]
    assert found["before merge"]
    expected = {*snapshot(release), ".gitattributes", "more.bin"} - {"config.json"}
    assert found["after merge"] == sorted(expected)
    assert found["draft"] == ["draft", "open"]
    assert found["offers"] == [[2, "open"]]
    assert found["details"] == ["merged", "refs/heads/main", ["comment", "commit", "status-change"]]
    assert found["refs"] == [["main", "side"], ["v1"], ["pr/1", "pr/2"]]
    assert found["titles"] == ["Offer (#1)", "All", "initial commit"]
    assert found["squashed"] == 1
    log = hub.requests()
    assert any("/part/2" in item["path"] for item in log) != xet
    assert any("xet-read-token" in item["path"] for item in log) == xet
    # The token goes to the Hub alone, and not to where large files are.
    assert not any(item["authorized"] for item in log if item["path"].startswith(("/_files", "/_lfs")))
    assert all(item["path"].count("refs%2Fpr%2F") for item in log if item["path"].endswith("/commit/refs%2Fpr%2F2"))
    if xet:
        # All three ways in which hf_xet packs chunks are read, in ranges that begin and end anywhere.
        for path in ("noise.bin", "words.bin", "transformer/weights.safetensors"):
            _check_ranges(hub, f"{repo}/resolve/v1/{path}", (release / path).read_bytes())


def _check_ranges(hub: RunningHub, path: str, content: bytes) -> None:
    place = ask(hub, "GET", f"/{path}").headers["location"].partition("/_files")[2]
    for first, last in ((0, len(content) - 1), (65_000, 200_001), (len(content) - 1, len(content) - 1)):
        found = ask(hub, "GET", f"/_files{place}", headers={"Range": f"bytes={first}-{last}"}, token="")
        assert found.status == 206
        assert found.body == content[first : last + 1]


REFUSALS = """
from huggingface_hub import errors
def attempt(name, call):
    try:
        call()
    except Exception as error:
        response = getattr(error, "response", None)
        found[name] = [type(error).__name__, response.status_code if response is not None else 0, str(error)]
    else:
        found[name] = ["", 200, ""]
tokens = json.loads(os.environ["TOKENS"])
mine, other, reader = (HfApi(token=tokens[name]) for name in ("alice", "bob", "reader"))
nobody, wrong = HfApi(token=False), HfApi(token="hf_" + "x" * 34)
add = lambda: [CommitOperationAdd("a.txt", b"a")]
write = lambda api, repo, **values: api.create_commit(repo, add(), commit_message="Mine", **values)
attempt("wrong who", wrong.whoami)
attempt("wrong model", lambda: wrong.model_info("alice/secret"))
attempt("missing", lambda: mine.model_info("alice/nothing"))
for name, api in (("other", other), ("nobody", nobody)):
    attempt(f"{name} private", lambda: api.model_info("alice/secret"))
    attempt(f"{name} gated", lambda: api.hf_hub_download("alice/gated", "README.md"))
    attempt(f"{name} gated info", lambda: api.model_info("alice/gated"))
attempt("own private", lambda: mine.hf_hub_download("alice/secret", "README.md"))
attempt("own gated", lambda: mine.hf_hub_download("alice/gated", "README.md"))
attempt("other commit", lambda: write(other, "alice/gated"))
attempt("other offer", lambda: write(other, "alice/gated", create_pr=True))
attempt("other own offer", lambda: write(other, "alice/gated", revision="refs/pr/1"))
attempt("other merge", lambda: other.merge_pull_request("alice/gated", 1))
attempt("reader commit", lambda: write(reader, "lab/shared"))
attempt("reader tag", lambda: reader.create_tag("lab/shared", tag="x"))
attempt("reader auth", lambda: reader.auth_check("lab/shared", write=True))
attempt("reader read", lambda: reader.hf_hub_download("lab/shared", ".gitattributes"))
attempt("create", lambda: mine.create_repo("bob/mine"))
attempt("revision", lambda: mine.model_info("alice/gated", revision="nothing"))
attempt("entry", lambda: mine.hf_hub_download("alice/gated", "nothing"))
attempt("delete", lambda: mine.create_commit(
    "alice/gated", [CommitOperationDelete("nothing")], commit_message="Delete"))
attempt("tag", lambda: (mine.create_tag("alice/gated", tag="t"), mine.create_tag("alice/gated", tag="t")))
attempt("stale", lambda: write(mine, "alice/gated", parent_commit="0" * 40))
attempt("card", lambda: mine.create_commit("alice/gated", [CommitOperationAdd(
    "README.md", b"---\\nlicense: [3]\\n---\\n")], commit_message="Card"))
attempt("secret", lambda: mine.create_commit("alice/gated", [CommitOperationAdd(
    "a.py", ("token = '" + tokens["alice"] + "'").encode())], commit_message="Secret"))
attempt("ignored", lambda: mine.create_commit("alice/gated", [
    CommitOperationAdd(".gitignore", b"*.log\\n"), CommitOperationAdd("a.log", b"a")], commit_message="Ignored"))
found["files"] = mine.list_repo_files("alice/gated")
"""


def test_refusals_are_those_that_the_client_knows(hub: RunningHub, tmp_path: Path) -> None:
    make_repo(hub, "secret", visibility="private")
    make_repo(hub, "gated")
    make_repo(hub, "shared", "lab")
    for name in ("secret", "gated"):
        assert commit(hub, f"alice/{name}", {"README.md": CARD}).status == 200
    assert ask(hub, "PUT", "/api/models/alice/gated/settings", {"gated": "auto"}).status == 200
    tokens = json.dumps({account.name: account.token for account in hub.settings.accounts})
    found = run_client(hub, tmp_path, REFUSALS, TOKENS=tokens)
    kinds = {name: tuple(value[:2]) for name, value in found.items() if name != "files"}
    assert kinds == {
        "wrong who": ("HfHubHTTPError", 401),
        "wrong model": ("HfHubHTTPError", 401),
        "missing": ("RepositoryNotFoundError", 404),
        "other private": ("RepositoryNotFoundError", 404),
        "nobody private": ("RepositoryNotFoundError", 401),
        "other gated": ("GatedRepoError", 403),
        "nobody gated": ("GatedRepoError", 401),
        "other gated info": ("", 200),
        "nobody gated info": ("", 200),
        "own private": ("", 200),
        "own gated": ("", 200),
        "other commit": ("HfHubHTTPError", 403),
        "other offer": ("", 200),
        "other own offer": ("", 200),
        "other merge": ("HfHubHTTPError", 403),
        "reader commit": ("HfHubHTTPError", 403),
        "reader tag": ("HfHubHTTPError", 403),
        "reader auth": ("HfHubHTTPError", 403),
        "reader read": ("", 200),
        "create": ("HfHubHTTPError", 403),
        "revision": ("RevisionNotFoundError", 404),
        "entry": ("RemoteEntryNotFoundError", 404),
        "delete": ("RemoteEntryNotFoundError", 404),
        "tag": ("HfHubHTTPError", 409),
        "stale": ("HfHubHTTPError", 412),
        "card": ("ValueError", 0),
        "secret": ("BadRequestError", 400),
        "ignored": ("", 200),
    }
    assert "use a write token" in found["reader commit"][2]
    assert "A commit has happened since" in found["stale"][2]
    assert "license 3 is not text" in found["card"][2]
    assert "valid Hugging Face secrets" in found["secret"][2]
    assert found["files"] == [".gitattributes", ".gitignore", "README.md"]


def test_objects_must_be_stored_before_they_are_committed(hub: RunningHub) -> None:
    repo, content = make_repo(hub, "objects"), b"\0content"
    before = head(hub, repo)
    answer = commit(hub, repo, {"other.txt": b"x"}, lfs_file("a.bin", content))
    assert answer.status == 400
    assert "an LFS pointer pointed to a file that does not exist" in answer.content["error"]
    upload(hub, repo, content)
    answer = commit(hub, repo, {}, lfs_file("a.bin", content + b"?", hashlib.sha256(content).hexdigest()))
    assert (answer.status, "size of an LFS file is wrong" in answer.content["error"]) == (400, True)
    assert head(hub, repo) == before
    assert commit(hub, repo, {}, lfs_file("a.bin", content), parentCommit=before).status == 200
    # What is not there any more cannot be committed anew.
    hub.fault("forget", sha256=hashlib.sha256(content).hexdigest())
    assert commit(hub, repo, {}, lfs_file("b.bin", content)).status == 400


def test_what_is_uploaded_is_what_was_announced(hub: RunningHub) -> None:
    repo = make_repo(hub, "announced")
    content = b"\0" * 500_000
    wanted = {"operation": "upload", "objects": [{"oid": hashlib.sha256(content).hexdigest(), "size": len(content)}]}
    batch = ask(hub, "POST", f"/{repo}.git/info/lfs/objects/batch", wanted).content["objects"][0]
    path = batch["actions"]["upload"]["href"].partition("/_lfs")[2]
    for sent in (content[1:], b"\1" + content[1:], content + b"\0"):
        assert ask(hub, "PUT", f"/_lfs{path}", sent, token="").status == 400
    assert ask(hub, "PUT", f"/_lfs{path[:-1]}!", content, token="").status == 403
    assert "actions" in ask(hub, "POST", f"/{repo}.git/info/lfs/objects/batch", wanted).content["objects"][0]
    assert ask(hub, "PUT", f"/_lfs{path}", content, token="").headers["etag"]
    assert "actions" not in ask(hub, "POST", f"/{repo}.git/info/lfs/objects/batch", wanted).content["objects"][0]
    assert not list((hub.settings.folder / "incoming").iterdir())


def test_parts_must_make_up_what_was_announced(hub: RunningHub) -> None:
    repo, content = make_repo(hub, "parts"), b"\3" * 1_000_001
    sha256 = hashlib.sha256(content).hexdigest()
    wanted = {"operation": "upload", "transfers": ["multipart"], "objects": [{"oid": sha256, "size": len(content)}]}

    def place(address: str) -> str:
        return "/_lfs" + address.partition("/_lfs")[2]

    for last, status in ((b"\4" * 200_001, 400), (b"\3" * 200_001, 200)):
        batch = ask(hub, "POST", f"/{repo}.git/info/lfs/objects/batch", wanted).content["objects"][0]
        action = batch["actions"]["upload"]
        pieces = {"1": content[:400_000], "2": content[:400_000], "3": last}
        tags = [ask(hub, "PUT", place(action["header"][number]), pieces[number], token="") for number in pieces]
        parts = [{"partNumber": number, "etag": answer.headers["etag"]} for number, answer in enumerate(tags, start=1)]
        assert ask(hub, "PUT", place(action["header"]["3"]), b"short", token="").status == 400
        assert ask(hub, "POST", place(action["href"]), {"oid": sha256, "parts": parts[1:]}).status == 400
        assert ask(hub, "PUT", place(action["header"]["3"]), last, token="").status == 200
        assert ask(hub, "POST", place(action["href"]), {"oid": sha256, "parts": parts}).status == status
    verify = ask(hub, "POST", f"/{repo}.git/info/lfs/verify", {"oid": sha256, "size": len(content)})
    assert verify.status == 200
    assert ask(hub, "POST", f"/{repo}.git/info/lfs/verify", {"oid": sha256, "size": 1}).status == 404


def test_hostile_requests_are_refused(hub: RunningHub) -> None:
    repo = make_repo(hub, "hostile")
    before = head(hub, repo)
    for path in ("../x", "/etc/passwd", "a//b", "a/../b", ".git/config", "a\0b", "a\\b", "", "a/", "x" * 2000):
        assert commit(hub, repo, {path: b"x"}).status == 400, path
    assert commit(hub, repo, {"a": b"x", "a/b": b"x"}).status == 400
    for name in ("..", "a/b", ".", "a..b", "a b", "", "x" * 97, "a.git", None, 3):
        assert ask(hub, "POST", "/api/repos/create", {"name": name}).status == 400, name
    for path in (
        "/api/models/alice/%2e%2e/tree/main",
        f"/{repo}/resolve/main/%2e%2e%2f%2e%2e%2fhub.sqlite",
        f"/{repo}/resolve/%2e%2e/README.md",
        f"/{repo}/resolve/main/%ff",
        f"/api/models/{repo}/tree/main/%2e%2e",
        f"/_files/{'0' * 64}",
        f"/_files/{'0' * 63}%2f",
        f"/_lfs/{'0' * 64}/part/0",
        "/_control/requests",
    ):
        assert ask(hub, "GET", path).status in (400, 403, 404, 405), path
    long = ask(hub, "POST", "/api/repos/create", b'{"name": "' + b"x" * 9_000_000 + b'"}')
    assert long.status == 413
    for body in (b"{", b"[]", b"[" * 100_000, b"\xff", b'{"key": 1}\n{}'):
        assert ask(hub, "POST", "/api/repos/create", body).status == 400
        assert ask(hub, "POST", f"/api/models/{repo}/commit/main", body).status == 400
        assert ask(hub, "POST", f"/{repo}.git/info/lfs/objects/batch", body).status == 400
    batch = {"operation": "upload", "objects": ["x"]}
    assert ask(hub, "POST", f"/{repo}.git/info/lfs/objects/batch", batch).status == 400
    batch["objects"] = [{"oid": "../../x", "size": 1}]  # type: ignore[list-item]
    assert ask(hub, "POST", f"/{repo}.git/info/lfs/objects/batch", batch).status == 400
    assert ask(hub, "GET", "/", headers={"Host": "evil.example"}).status == 421
    assert ask(hub, "GET", f"/api/models/{repo}/tree/main?cursor=-1").status == 400
    assert ask(hub, "GET", f"/api/models/{repo}/discussions?p=x").status == 400
    assert head(hub, repo) == before


def test_ranges(hub: RunningHub) -> None:
    repo = make_repo(hub, "ranges")
    assert commit(hub, repo, {"a.txt": b"0123456789"}).status == 200
    for asked, status, body in (
        ("", 200, b"0123456789"),
        ("bytes=2-4", 206, b"234"),
        ("bytes=7-", 206, b"789"),
        ("bytes=-3", 206, b"789"),
        ("bytes=8-100", 206, b"89"),
        ("bytes=0-1,4-5", 200, b"0123456789"),
    ):
        found = ask(hub, "GET", f"/{repo}/resolve/main/a.txt", headers={"Range": asked} if asked else {})
        assert (found.status, found.body) == (status, body)
        assert found.headers["content-length"] == str(len(body))
        assert found.headers["x-repo-commit"] == head(hub, repo)
    beyond = ask(hub, "GET", f"/{repo}/resolve/main/a.txt", headers={"Range": "bytes=10-"})
    assert (beyond.status, beyond.headers["content-range"]) == (416, "bytes */10")
    nothing = ask(hub, "HEAD", f"/{repo}/resolve/main/a.txt")
    assert (nothing.body, nothing.headers["content-length"]) == (b"", "10")


def test_of_two_commits_on_one_parent_one_wins(hub: RunningHub) -> None:
    repo = make_repo(hub, "race")
    parent = head(hub, repo)
    found: list[int] = []
    threads = [
        threading.Thread(
            target=lambda name=name: found.append(commit(hub, repo, {name: b"x" * 300_000}, parentCommit=parent).status)
        )
        for name in "abcdef"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [200, *[412] * 5]
    assert len(ask(hub, "GET", f"/api/models/{repo}/commits/main").content) == 2


def test_merging_refuses_conflicts(hub: RunningHub) -> None:
    repo = make_repo(hub, "conflict")
    commit(hub, repo, {"a.txt": b"1", "b.txt": b"1"})
    opened = ask(hub, "POST", f"/api/models/{repo}/discussions", {"title": "Offer", "pullRequest": True}).content["num"]
    assert commit(hub, repo, {"a.txt": b"2", "b.txt": b"2"}, revision="refs%2Fpr%2F1").status == 200
    assert ask(hub, "POST", f"/api/models/{repo}/discussions/{opened}/merge").status == 400
    ask(hub, "POST", f"/api/models/{repo}/discussions/{opened}/status", {"status": "open"})
    assert commit(hub, repo, {"a.txt": b"3"}).status == 200
    before = head(hub, repo)
    refused = ask(hub, "POST", f"/api/models/{repo}/discussions/{opened}/merge")
    assert (refused.status, refused.content["filesWithConflicts"]) == (409, ["a.txt"])
    assert head(hub, repo) == before
    assert commit(hub, repo, {"a.txt": b"2"}).status == 200
    assert ask(hub, "POST", f"/api/models/{repo}/discussions/{opened}/merge").status == 200
    assert ask(hub, "GET", f"/{repo}/resolve/main/b.txt").body == b"2"


def test_state_survives_a_crash(tmp_path: Path) -> None:
    settings = small_hub(tmp_path / "hub")
    content = bytes(range(256)) * 1000
    with running_hub(settings) as first:
        repo = make_repo(first, "kept", visibility="private")
        sha256 = upload(first, repo, content)
        made = commit(first, repo, {"a.txt": b"a"}, lfs_file("a.bin", content)).content["commitOid"]
        ask(first, "POST", f"/api/models/{repo}/tag/main", {"tag": "v1"})
        with pytest.raises(OutputError, match="state of the Hub"), running_hub(settings):
            pass
        # An upload is on its way when the process ends.
        connection = http.client.HTTPConnection(first.endpoint.removeprefix("http://"))
        connection.putrequest("POST", f"/api/models/{repo}/commit/main")
        for header in (("Authorization", f"Bearer {first.token()}"), ("Content-Length", "1000000")):
            connection.putheader(*header)
        connection.endheaders(b'{"key": "header", "value": {"summary": "Half"}}\n')
        first.kill()
        connection.close()
    text = b"".join(path.read_bytes() for path in (tmp_path / "hub").rglob("*") if path.is_file())
    assert not any(account.token.encode() in text for account in settings.accounts)
    with running_hub(settings) as second:
        assert head(second, repo) == head(second, repo, "v1") == made
        assert second.endpoint != first.endpoint
        place = ask(second, "GET", f"/{repo}/resolve/v1/a.bin").headers["location"].partition("/_files")[2]
        assert ask(second, "GET", f"/_files{place}").body == content
        assert ask(second, "GET", f"/api/models/{repo}", token="").status == 401
        assert upload(second, repo, content) == sha256
        process = second.process
    assert process.returncode == 0


def test_faults_of_answers(hub: RunningHub) -> None:
    repo = make_repo(hub, "faults")
    path = f"/api/models/{repo}"
    hub.fault(
        "status", method="GET", path=f"^{path}$", times=2, skip=1, status=429, headers={"Retry-After": "1"}, body="<p>"
    )
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
    for wrong in ({"action": "nothing"}, {"action": "delay"}, {"action": "status", "path": "["}):
        with pytest.raises(UsageError, match="refuses"):
            hub.fault(**wrong)


def test_faults_of_the_state(hub: RunningHub) -> None:
    repo = make_repo(hub, "damaged", "lab", visibility="private")
    content = b"\0" * 1000
    sha256 = upload(hub, repo, content)
    commit(hub, repo, {"a.txt": b"text"}, lfs_file("a.bin", content))
    hub.fault("corrupt", sha256=sha256)
    hub.fault("corrupt", sha256=hashlib.sha256(b"text").hexdigest())
    place = ask(hub, "GET", f"/{repo}/resolve/main/a.bin").headers["location"].partition("/_files")[2]
    damaged = ask(hub, "GET", f"/_files{place}").body
    assert (len(damaged), sum(a != b for a, b in zip(damaged, content, strict=True))) == (1000, 1)
    assert ask(hub, "GET", f"/{repo}/resolve/main/a.txt").body != b"text"
    hub.fault("quota", bytes=1500)
    upload(hub, repo, b"\1" * 400)
    with pytest.raises(AssertionError, match="storage limit reached"):
        upload(hub, repo, b"\1" * 501)
    assert commit(hub, repo, {}, lfs_file("b.bin", b"\1" * 400)).status == 200
    before = head(hub, repo)
    hub.fault("move_head", method="POST", path="/commit/main", repo=repo)
    assert commit(hub, repo, {"b.txt": b"b"}, parentCommit=before).status == 412
    assert head(hub, repo) != before
    assert commit(hub, repo, {"b.txt": b"b"}, parentCommit=head(hub, repo)).status == 200


def test_objects_over_xet_can_be_damaged_and_lost(hub: RunningHub, tmp_path: Path) -> None:
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
    place = ask(hub, "GET", "/alice/lost/resolve/main/a.bin").headers["location"].partition("/_files")[2]
    try:
        damaged = ask(hub, "GET", f"/_files{place}").body
    except (http.client.IncompleteRead, ConnectionError):
        damaged = b""
    assert damaged != content
    hub.fault("forget", sha256=sha256)
    assert commit(hub, "alice/lost", {}, lfs_file("b.bin", content)).status == 400
    assert run_client(hub, tmp_path, send, "b.bin", xet=True) == {}


def test_the_log_has_no_tokens(hub: RunningHub) -> None:
    hub.forget_requests()
    make_repo(hub, "logged")
    ask(hub, "GET", "/api/models?author=alice", token=hub.token()[::-1])
    log = hub.requests()
    assert [(item["method"], item["authorized"], item["status"]) for item in log] == [
        ("POST", True, 200),
        ("GET", True, 401),
    ]
    assert log[0]["received"] > 0
    assert log[0]["sent"] > 0
    assert not any(word in json.dumps(log) for word in ("Bearer", hub.token(), hub.token()[::-1]))
    assert hub.bytes_sent() == sum(item["sent"] for item in log)


def test_large_uploads_need_little_memory(hub: RunningHub) -> None:
    repo = make_repo(hub, "large")

    def memory(kind: str) -> int:
        status = Path("/proc", str(hub.process.pid), "status").read_text()
        return int(re.findall(rf"{kind}:\s+(\d+) kB", status)[0])

    # Forgets the highest use so far.
    Path("/proc", str(hub.process.pid), "clear_refs").write_text("5")
    before = memory("VmRSS")
    upload(hub, repo, b"\7" * 150_000_000)
    assert memory("VmHWM") - before < 60_000


def test_pages(hub: RunningHub) -> None:
    repo = make_repo(hub, "shown")
    image = b"\x89PNG\r\n\x1a\nxx"
    upload(hub, repo, image)
    evil = {"README.md": CARD + b"<script>alert(1)</script>", "<script>.txt": b"x", "page.html": b"<script></script>"}
    assert commit(hub, repo, evil, lfs_file("images/one.png", image)).status == 200
    made = head(hub, repo)
    offer = {"title": "<script>", "description": "<script>", "pullRequest": True}
    assert ask(hub, "POST", f"/api/models/{repo}/discussions", offer).status == 200
    assert commit(hub, repo, {"a.txt": b"a"}, revision="refs%2Fpr%2F1", summary="<script>").status == 200
    wanted = {
        "": [
            f'src="/{repo}/image/{made}/images/one.png"',
            f'href="/{repo}/resolve/{made}/page.html"',
            "card",
            "Discussions (1)",
        ],
        "/card/main": ["license: mit"],
        "/tree/main": ["images/one.png", "&lt;script&gt;.txt", "5 files", "refs/pr/1", "LFS"],
        f"/tree/{made}": ["images/one.png"],
        "/commits/main": ["A commit", "initial commit"],
        f"/commit/{made}": ["images/one.png", "added", "4 files"],
        "/discussions": ["&lt;script&gt;", "draft"],
        "/discussions/1": ["&lt;script&gt;", "a.txt", "1 file", f"/{repo}/tree/refs%2Fpr%2F1"],
    }
    for path, texts in wanted.items():
        page = ask(hub, "GET", f"/{repo}{path}", token="")
        assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8"), path
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert page.headers["cross-origin-resource-policy"] == "same-origin"
        assert b"<script" not in page.body
        assert [text for text in texts if text not in page.body.decode()] == [], path
    shown = ask(hub, "GET", f"/{repo}/image/main/images/one.png", token="")
    assert (shown.body, shown.headers["cross-origin-resource-policy"]) == (image, "same-origin")
    assert ask(hub, "GET", f"/{repo}/resolve/main/page.html").headers["content-type"].startswith("text/plain")


def test_pages_of_private_repos_are_for_those_who_sign_in(hub: RunningHub) -> None:
    repo = make_repo(hub, "hidden", private=True)
    assert commit(hub, repo, {"README.md": CARD}).status == 200

    def look(path: str, name: str = "", password: str = "", method: str = "GET") -> Answer:
        pair = base64.b64encode(f"{name}:{password}".encode()).decode()
        sent = {"Authorization": f"Basic {pair}"} if name else {}
        return ask(hub, method, path, token="", headers={"Accept": "text/html,*/*;q=0.8", **sent})

    asked = look(f"/{repo}")
    assert (asked.status, asked.headers["content-type"]) == (401, "text/html; charset=utf-8")
    assert asked.headers["www-authenticate"].startswith("Basic ")
    assert b"Lens" not in asked.body
    for name, password in (("alice", "wrong"), ("bob", hub.token("alice")), ("bob", hub.token("bob"))):
        assert look(f"/{repo}", name, password).status in (401, 404)
    assert (look("/", "alice", hub.token()).status, look("/sign-in").status) == (200, 401)
    assert repo.encode() in look("/sign-in", "alice", hub.token()).body
    for path in ("", "/tree/main", "/commits/main", "/resolve/main/README.md"):
        assert look(f"/{repo}{path}", "alice", hub.token()).status == 200
    listed = [look("/", name, hub.token(name) if name else "").body for name in ("alice", "bob", "")]
    assert [repo.encode() in body for body in listed] == [True, False, False]
    # A browser sends them wherever a page of another site leads it: they open what shows, never what changes.
    for method, path in (("GET", "/api/whoami-v2"), ("POST", "/api/repos/create"), ("GET", f"/api/models/{repo}")):
        refused = look(path, "alice", hub.token(), method)
        assert (refused.status, "www-authenticate" in refused.headers) == (401, False)
    # What is no browser is answered as the Hub does.
    plain = ask(hub, "GET", f"/{repo}/resolve/main/README.md", token="")
    assert (plain.status, plain.headers["content-type"]) == (401, "application/json")


def test_rules_of_git_mean_what_git_says(tmp_path: Path) -> None:
    rules = "*.log\n!keep.log\n/top.txt\nbuild/\ndocs/**/x.txt\n# no\na?c\n[ab].md\n"
    paths = [
        "a.log", "d/a.log", "keep.log", "top.txt", "d/top.txt", "build/x", "d/build/x", "build", "docs/x.txt",
        "docs/a/b/x.txt", "abc", "abbc", "a.md", "c.md", "x/b.md", "saved_model/a/b", "saved_model/a", "x.safetensors",
        "d/y.bin", "z.tar.gz", "tfevents.1", "my.tfevents.2", "README.md",
    ]  # fmt: skip
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    (tmp_path / ".gitignore").write_text(rules)
    (tmp_path / ".gitattributes").write_bytes(GITATTRIBUTES)
    git = ["git", "-C", str(tmp_path)]
    given = "\n".join(paths)
    found = subprocess.run([*git, "check-ignore", "--stdin"], input=given, capture_output=True, text=True, check=True)
    assert [path for path in paths if is_ignored(path, rules)] == found.stdout.split()
    found = subprocess.run(
        [*git, "check-attr", "--stdin", "filter"], input=given, capture_output=True, text=True, check=True
    )
    expected = [line.split(":")[0] for line in found.stdout.splitlines() if line.endswith(" lfs")]
    assert [path for path in paths if is_lfs(path, 1, b"x", GITATTRIBUTES.decode())] == expected
    assert is_lfs("a.txt", 11 * 2**20, b"x", "")
    assert is_lfs("a.png", 1, b"\x89PNG\0", "")
    assert not is_lfs("a.txt", 512, b"x" * 511 + b"\xc3", "")
    assert not is_lfs("a.bin", 0, b"", GITATTRIBUTES.decode())


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("license: apache-2.0\nbase_model: [a/b]\nbase_model_relation: quantized\npipeline_tag: text-to-image", ""),
        ("license: other\nlicense_name: my-1.0\nlicense_link: LICENSE.md\nlanguage: [en]\ntags: [a]", ""),
        ("license: [mit, 3]", "license"),
        ("base_model: a/b/c", "base_model"),
        ("base_model_relation: other", "base_model_relation"),
        ("pipeline_tag: draw me", "pipeline_tag"),
        ("pipeline_tag: [text-to-image]", "pipeline_tag"),
        ("tags: a", "tags"),
        ("language: no", "language"),
        ("license_name: My License", "license_name"),
        ("license_link: ../LICENSE", "license_link"),
        ("model-index: {}", "model-index"),
        ("a: [", "not YAML in line"),
        ("- a", "not a mapping"),
        ("a: !!python/object:os.system {}", "not YAML"),
    ],
)
def test_metadata_of_cards(metadata: str, message: str) -> None:
    found = check_card(f"---\n{metadata}\n---\n# Card\n")
    assert not found.warnings
    assert message in " ".join(found.errors)
    assert bool(found.errors) == bool(message)


def test_cards_without_metadata_are_warned_of() -> None:
    for card in ("# Card\n", "", "---\n---\n", "----\na: 1\n----\n"):
        assert check_card(card) == MetadataReport((), ("empty or missing yaml metadata in repo card",))


def test_broken_lz4_is_refused() -> None:
    frame = lz4_frame(b"\x40lens\x04\x00\x50")
    for data in (b"", b"x" * 20, frame[:15], frame[:18], frame.replace(b"\x04\x00", b"\x05\x00")):
        with pytest.raises(ValueError, match="LZ4"):
            decompress_frame(data, 100)


@settings(max_examples=300)
@given(
    sequences=st.lists(st.tuples(st.binary(min_size=1, max_size=40), st.floats(0, 1), st.integers(0, 50)), max_size=6),
    last=st.binary(max_size=20),
    spare=st.sampled_from([0, 0, 7, -1, -9]),
    change=st.none() | st.tuples(st.integers(0, 1000), st.integers(0, 255)),
)
def test_lz4_blocks_are_unpacked_as_the_format_says(
    sequences: list[tuple[bytes, float, int]], last: bytes, spare: int, change: tuple[int, int] | None
) -> None:
    block, size = bytearray(), 0
    for literals, place, length in [*sequences, (last, 0.0, -4)]:
        size += len(literals)
        block.append(min(len(literals), 15) << 4 | max(min(length, 15), 0))
        block += (bytes([len(literals) - 15]) if len(literals) >= 15 else b"") + literals
        if length >= 0:
            distance = 1 + int(place * (size - 1))
            block += distance.to_bytes(2, "little") + (bytes([length - 15]) if length >= 15 else b"")
        size += length + 4
    if change is not None:
        block[change[0] % len(block)] = change[1]
    limit = max(size + spare, 0)
    wanted = unpacked(bytes(block), limit)
    if wanted is None:
        with pytest.raises(ValueError, match="LZ4"):
            decompress_frame(lz4_frame(bytes(block)), limit)
    else:
        assert decompress_frame(lz4_frame(bytes(block)), limit) == wanted


def lz4_frame(block: bytes) -> bytes:
    return bytes.fromhex("04224d18604082") + len(block).to_bytes(4, "little") + block + bytes(4)


def unpacked(block: bytes, limit: int) -> bytes | None:
    """What the bytes of a block say, read one by one; None where they make no sense."""
    stream, output = iter(block), bytearray()

    def length(nibble: int) -> int:
        while nibble >= 15 and (byte := next(stream)) == 255:
            nibble += 255
        return nibble + byte if nibble >= 15 else nibble

    try:
        for token in stream:
            output += bytes(next(stream) for _ in range(length(token >> 4)))
            if len(output) > limit:
                return None
            low = next(stream, None)
            if low is None:
                return bytes(output)
            distance = low | next(stream) << 8
            count = length(token & 15) + 4
            if not 0 < distance <= len(output) or len(output) + count > limit:
                return None
            for _ in range(count):
                output.append(output[-distance])
    except (StopIteration, RuntimeError):
        return None
    return bytes(output)


def test_serve_says_where_it_is_and_ends_with_ctrl_c(tmp_path: Path) -> None:
    process = subprocess.Popen(
        command("hub", "serve", "--json", "--folder", tmp_path, "--account", "ann:read"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout is not None
    text = "".join(iter(process.stdout.readline, "}\n")) + "}"
    result = json.loads(text)
    jsonschema.validate(result, load_schema("hub"))
    account = result["accounts"][0]
    running = RunningHub(result["endpoint"], HubSettings(tmp_path, (Account("ann", account["token"]),)), process)
    assert ask(running, "GET", "/api/whoami-v2").content["auth"]["accessToken"]["role"] == "read"
    assert ask(running, "GET", "/_control/requests", headers={"X-Control-Secret": ""}).status == 404
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 130
    assert "Traceback" not in errors


def test_the_hub_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    program = (
        "import sys, os\nfrom pathlib import Path\nfrom converter.rehearsal.process import running_hub\n"
        "from converter.rehearsal.settings import HubSettings\n"
        "with running_hub(HubSettings(Path(sys.argv[1]))) as hub:\n"
        "    print(hub.process.pid, flush=True)\n    os._exit(9)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 9, done.stderr
    deadline = time.monotonic() + 10
    while Path("/proc", done.stdout.strip(), "exe").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_taken_port_and_missing_packages_are_told(
    hub: RunningHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = int(hub.endpoint.rpartition(":")[2])
    with pytest.raises(UsageError, match="Address already in use"), running_hub(HubSettings(tmp_path, port=port)):
        pass
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "uvicorn" else os)
    with pytest.raises(DependencyError, match="uvicorn") as caught, running_hub(HubSettings(tmp_path)):
        pass
    assert "pip install 'lensconv[rehearsal]'" in caught.value.hint
