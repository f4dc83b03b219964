"""The connection to one repo, on a local Hub: what may be repeated, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import CommitOperationAdd, close_session

from converter.console import SILENT
from converter.errors import HubError, ReleaseError
from converter.hub.retry import Retry
from converter.publication.commit import Target, make_commit
from converter.publication.files import Difference, hash_files
from converter.publication.options import PublishOptions
from converter.publication.others import OtherFiles
from converter.publication.preflight import FitRelease
from converter.publication.publish import _Publication
from converter.publication.session import HubSession
from converter.publication.upload import upload
from tests.faulty_hub import FaultyHub
from tests.hubs import commit, make_repo
from tests.releases import MANIFEST
from tests.reporters import Notes


@pytest.fixture
def session(hub: FaultyHub, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubSession]:
    """Its user and a private repo; settings say that the token is sent on request only, and files by LFS."""
    close_session()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.endpoint)
    for name in ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "HF_HUB_DISABLE_XET"):
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", True)
    monkeypatch.setenv("HF_TOKEN", hub.token())
    yield HubSession(make_repo(hub, request.node.name[-40:], private=True), Retry(1, attempts=1))
    hub.clear_faults()
    close_session()


def test_what_was_done_already_may_be_repeated(session: HubSession) -> None:
    head = session.refs().head("main") or ""
    for _ in range(2):
        session.create(private=True)
        session.create_branch("next", "main")
        session.create_tag("v1", head)
    refs = session.refs()
    assert (refs.branches, refs.tags) == ({"main": head, "next": head}, {"v1": head})
    assert [*session.files_at(head).files] == [".gitattributes"]


def test_what_errors_say_of_a_commit(session: HubSession, hub: FaultyHub, tmp_path: Path) -> None:
    """Some mean for certain that none was made; after the others, the branch says whether it was."""
    for name in ("a.bin", MANIFEST):
        (tmp_path / name).write_bytes(b"{}")
    release = FitRelease(tmp_path, tuple(hash_files(tmp_path, ["a.bin", MANIFEST])))
    parent, other = session.refs().head("main") or "", [CommitOperationAdd("c.txt", b"c")]

    def said(status: int, path: str = "/commit/", branch: str = "main") -> str:
        hub.fault("status", status=status, path=path)
        with pytest.raises(HubError) as caught:
            make_commit(session, release, Target(branch, parent), [CommitOperationAdd("b.txt", b"b")], "Mine")
        return str(caught.value).removeprefix(f"{session.address}: ")

    assert said(503).startswith("committing: the Hub answers with status 503")
    assert said(409, "/gone", "gone").startswith("gone has changed since it was read")
    # Another commit names this release, but has other files.
    new = session.api.create_commit(session.repository, other, commit_message=release.manifest_sha256).oid
    for status in (400, 407, 408, 409, 412, 503):
        start = f"committing: the Hub answers with status {status}" if status < 408 else "main has changed since"
        assert said(status).startswith(start)
    session.create_tag("v1", parent)
    session.create_branch("next", parent)
    refs, target = session.refs(), Target("main", new)
    publication = _Publication(session, release, PublishOptions(tag="v1", revision="next"), SILENT)
    assert publication._choose_target(refs) == Target("next", parent)
    with pytest.raises(HubError, match="tag v1 points to"):
        publication._refuse_taken_tag(refs, target, Difference((), ()))
    with pytest.raises(HubError, match="tag v1 points to"):
        publication._tag("v1", new)
    # What is missing is not always a file that was uploaded.
    for path in ("/preupload/", "/batch"):
        hub.fault("status", status=404, path=path)
        with pytest.raises(HubError, match=r"uploading a\.bin and 1 more: the Hub has nothing at this address"):
            upload(session, Difference(release.files, ()), "main")
    # Even a file that is on the Hub already must not have changed.
    (tmp_path / "a.bin").write_bytes(b"[]")
    with pytest.raises(ReleaseError, match=r"a\.bin: has changed since it was examined"):
        publication._upload_and_commit(target, Difference((), ("c.txt",)))


def test_manifests_on_the_hub_may_be_anything(
    session: HubSession, hub: FaultyHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only files that they list by their exact paths are deleted."""
    monkeypatch.setattr("converter.publication.others.MAXIMUM_SMALL_BYTES", 200_000)
    (tmp_path / MANIFEST).write_bytes(b"{}")
    files = tuple(hash_files(tmp_path, [MANIFEST]))

    def decided(content: bytes, *, prune: bool = False) -> tuple[list[str], list[str]]:
        theirs = {"a": b"a", "b/c": b"c", ".gitattributes": b"", "None": b"", MANIFEST: content}
        oid = commit(hub, session.repository, theirs).content["commitOid"]
        notes = Notes()
        difference = OtherFiles(files, prune, True, notes).difference(session.files_at(oid))
        assert {*difference.deleted, *difference.kept} == theirs.keys() - {".gitattributes", MANIFEST}
        return [*difference.deleted], [note.partition(f"@{oid}/")[2].partition(";")[0] for note in notes.texts]

    names = ["a", "/a", "./a", "../a", "b", "b/", "b/*", "*", ".gitattributes", MANIFEST, "gone"]
    assert decided(json.dumps({"files": [{"name": name} for name in names]}).encode()) == (["a"], [])
    odd: list[Any] = [
        3,
        None,
        [],
        {},
        {"name": None},
        {"name": 3},
        {"name": ["a"]},
        {"name": {}},
        {"name": "b/c", "bytes": -1},
    ]
    assert decided(json.dumps({"files": odd}).encode()) == (["b/c"], [])
    for content in (b'{"files": {"name": "a"}}', b'{"files": "a"}', b"{}", b'{"files": null}'):
        assert decided(content) == ([], [])
    longest = b'{"files": [{"name": "a"}]}'.ljust(200_000)
    assert decided(longest) == (["a"], [])
    for content, said in (
        (longest + b" ", "has 200001 bytes"),
        (b"\xff", "its content is not UTF-8 text (byte 0)"),
        (b'["a"]', "its content is a JSON list, not an object"),
        (b"[" * 100_000, "its content is nested too deeply"),
        (b'{"files": [{"name": "a"}], "files": []}', "its content names files twice"),
        (b"version https://git-lfs", "its content is not JSON: Expecting value: line 1 column 1 (char 0)"),
    ):
        assert decided(content) == ([], [f"{MANIFEST}: {said}"])
    assert decided(b"", prune=True) == (["None", "a", "b/c"], [])
    # A dry run asks nobody, not even one who would agree.
    monkeypatch.setattr(Notes, "confirm", lambda *_: True)
    remote = session.files_at(commit(hub, session.repository, {"adapter_config.json": b"{}"}).content["commitOid"])
    assert "adapter_config.json" in OtherFiles(files, False, True, Notes()).difference(remote).deleted
    with pytest.raises(HubError, match=r"adapter_config\.json may be loaded in place"):
        OtherFiles(files, False, False, Notes()).difference(remote)


def test_pull_requests_are_known_by_their_titles(session: HubSession) -> None:
    numbers = [session.open_pull_request(title, "alice") for title in ("One", "Two", "One", "Two")]
    assert numbers == [1, 2, 1, 2]
    for _ in range(2):
        session.offer_pull_request(2)
    found = [session.api.get_discussion_details(session.repository, number).status for number in (1, 2)]
    assert found == ["draft", "open"]
    assert session.open_pull_request("Two", "alice") == 2


def test_refusals_of_the_hub(session: HubSession, hub: FaultyHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.fault("status", status=403, headers={"X-Error-Code": "GatedRepo"}, path="/api/models/")
    with pytest.raises(HubError, match="the repo is gated"):
        session.describe()
    for body, said in (
        ("{}", "status 400"),
        (f'{{"errors": [{{"message": "not {hub.token()}"}}]}}', "the card: not …"),
    ):
        hub.fault("status", status=400, body=body, path="/validate-yaml")
        with pytest.raises(HubError, match=said):
            session.check_card("")
        assert hub.requests()[-1]["authorized"]
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "/nowhere")
    with pytest.raises(HubError, match="no token was found"):
        session.user()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://name:word@hub.example")
    assert HubSession("a/b", Retry(1)).page == "https://hub.example/a/b"
