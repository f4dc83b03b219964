"""Releases that the real client publishes on a real local Hub."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from converter.publication.files import noted_files
from converter.rehearsal.settings import Account, HubSettings
from converter.schemas import load_schema
from tests.conftest import forget_file, list_file, run_process, run_python, snapshot
from tests.expected import check_expected
from tests.faulty_hub import FaultyHub, faulty_hub
from tests.hubs import without_progress
from tests.releases import FRONT_MATTER, MANIFEST, WEIGHTS, write_card


@pytest.fixture
def release(release: Path) -> Path:
    """A release with a card."""
    write_card(release, "Tiny")
    return release


PUBLISH = """
import sys
from converter.cli.main import main
from converter.publication import publish
publish.TRUSTED_BYTES = int(sys.argv[1] or publish.TRUSTED_BYTES)
main(sys.argv[2:])
"""


@dataclass
class Publisher:
    """A user with a release and a Hub, and a log of what each command has said."""

    hub: FaultyHub
    release: Path
    environment: dict[str, str]
    repository: str
    log: list[str]

    def publish(self, *options: str, trusted_from: int | None = None) -> dict[str, Any]:
        """Publish in a process of its own, as HF_ENDPOINT and HF_HUB_DISABLE_XET are read when the client is imported;
        return the receipt. From so many bytes on what uploads a file hashes it."""
        line = ("publish", self.release, self.repository, "--patience=20", *options)
        done = run_python(PUBLISH, trusted_from or "", *line, flags=("-W", "error"), env=self.environment)
        assert "Traceback" not in done.stderr, done.stderr
        assert not any(account.token in done.stdout + done.stderr for account in self.hub.settings.accounts)
        kept = self.release / ".lensconv" / "receipt.json"
        text = done.stdout or (kept.read_text() if kept.exists() and not done.returncode else "{}")
        receipt: dict[str, Any] = json.loads(text)
        self.log.append(
            " ".join([*options, "=>", str(done.returncode), without_progress(done.stderr), self._shown(receipt)])
        )
        return receipt

    def _shown(self, receipt: dict[str, Any]) -> str:
        """A receipt without what its release says, which is checked here."""
        if not receipt:
            return ""
        jsonschema.validate(receipt, load_schema("publish"))
        content = (self.release / MANIFEST).read_bytes()
        manifest = {"name": MANIFEST, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        files = sorted([*json.loads(content)["files"], manifest], key=lambda file: str(file["name"]))
        sizes = {file["name"]: file["bytes"] for file in files}
        total, added = sum(sizes.values()), sum(sizes[name] for name in receipt["added"])
        expected = {"files": files, "manifest_sha256": manifest["sha256"], "total_bytes": total, "added_bytes": added}
        assert {name: receipt[name] for name in expected} == expected
        rest = {name: value for name, value in receipt.items() if name not in expected}
        if rest["read_back"] is not None:
            rest["read_back"]["bytes"] = {added: "added", total: "all"}[rest["read_back"]["bytes"]]
        return json.dumps(rest | ({"added": "all"} if added == total else {}))

    def text(self) -> str:
        """The log, with names in place of what differs from run to run."""
        text = "".join(f"{line.strip()}\n" for line in self.log)
        for value, name in ((self.hub.endpoint, "<hub>"), (str(self.release), "<release>")):
            text = text.replace(value, name)
        for number, commit in enumerate(dict.fromkeys(re.findall(r"\b[0-9a-f]{40}\b", text)), start=1):
            text = text.replace(commit, f"<{number}>").replace(commit[:12], f"<{number}>")
        return text

    def api(self) -> Any:
        """A client of the same Hub in this process."""
        from huggingface_hub import HfApi

        return HfApi(endpoint=self.hub.endpoint, token=self.hub.account.token)

    def put(self, files: dict[str, bytes], *operations: Any) -> None:
        """Commit files as somebody else would, and more operations."""
        from huggingface_hub import CommitOperationAdd

        self.api().create_repo(self.repository, exist_ok=True)
        added = [CommitOperationAdd(*file) for file in files.items()]
        self.api().create_commit(self.repository, [*added, *operations], commit_message="Theirs")

    def note_history(self) -> None:
        """Add the user's commits on main, the newest first, to the last line of the log."""
        history = self.api().list_repo_commits(self.repository) if self.api().repo_exists(self.repository) else []
        own = [commit.commit_id for commit in history if commit.title != "A commit of someone else"]
        self.log[-1] = " ".join([self.log[-1].strip(), "main:", *own])


@pytest.fixture(scope="module", params=["lfs", "xet"])
def transport(request: pytest.FixtureRequest) -> str:
    """How files are uploaded."""
    return str(request.param)


@pytest.fixture(scope="module")
def hub(transport: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyHub]:
    """A Hub for all tests with one transport; each has its own repo."""
    accounts = (Account.new("owner"), Account.new("reader", "read"), Account.new("stranger"))
    with faulty_hub(HubSettings(tmp_path_factory.mktemp(transport), accounts)) as running:
        yield running


@pytest.fixture
def publisher(
    request: pytest.FixtureRequest, hub: FaultyHub, transport: str, release: Path, tmp_path: Path
) -> Iterator[Publisher]:
    """A user who publishes; all that the commands say is compared with what is kept under the test's name."""
    environment = hub.environment(os.environ, tmp_path / "home", xet=transport == "xet")
    environment |= {"HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "1", "HF_XET_CLIENT_RETRY_BASE_DELAY": "10ms"}
    name = request.node.name.partition("[")[0].removeprefix("test_").replace("_", "-")
    user = Publisher(hub, release, environment, f"owner/{name}", [])
    yield user
    hub.clear_faults()
    user.note_history()
    check_expected(f"publish/{name}.txt", user.text())


only_lfs = pytest.mark.parametrize("transport", ["lfs"], indirect=True)


def test_whole_and_once(publisher: Publisher) -> None:
    before = snapshot(publisher.release)
    publisher.publish("--tag=v1")
    folder = Path(publisher.api().snapshot_download(publisher.repository, cache_dir=publisher.release.parent / "cache"))
    found = {name: content for name, content in snapshot(folder).items() if name != ".gitattributes"}
    assert found == before

    # Also what is on the Hub already is hashed, to know that it is the same.
    (publisher.release / ".lensconv" / "checksums.json").unlink()
    publisher.publish("--tag=v1", trusted_from=1 << 20)
    assert WEIGHTS in noted_files(publisher.release)
    publisher.publish("--read-back", "--json", "--create-pr")
    write_card(publisher.release, "Another")
    publisher.publish("--tag=v1")


@only_lfs
def test_what_would_be_done_is_not_done(publisher: Publisher) -> None:
    publisher.publish("--dry-run", "--private", "--json", trusted_from=1 << 20)
    assert WEIGHTS in noted_files(publisher.release)
    assert not publisher.api().repo_exists(publisher.repository)
    publisher.publish("--private", "--receipt=/nowhere/at/all")
    write_card(publisher.release, "Another", "new-1.0")
    (publisher.release / "vae" / "config.json").touch()
    publisher.publish("--dry-run", "--create-pr")
    publisher.publish("--dry-run", "--json", "--revision=next")
    refs = publisher.api().list_repo_refs(publisher.repository, include_pull_requests=True)
    assert (len(refs.branches), refs.pull_requests) == (1, [])
    publisher.publish(f"--revision={'n' * 100}", f"--message={'N' * 200}")
    commits = publisher.api().list_repo_commits(publisher.repository, revision="n" * 100)
    assert [commit.title for commit in commits] == ["N" * 200, "Publish the release", "initial commit"]
    publisher.api().update_repo_settings(publisher.repository, private=False)
    publisher.publish("--private")


@only_lfs
def test_answers_that_end_it(publisher: Publisher) -> None:
    publisher.hub.fault("status", status=200, body="[]", path="/whoami-v2")
    publisher.publish()
    for options in (("--dry-run",), ()):
        publisher.hub.fault("status", status=400, body='{"errors": [{"message": "no"}]}', path="/validate-yaml")
        publisher.publish(*options)
    moved = {"Location": "/api/models/owner/another"}
    publisher.api().create_repo("owner/another", exist_ok=True)
    publisher.hub.fault("status", status=307, headers=moved, path=f"/api/models/{publisher.repository}$")
    publisher.publish()
    for key in ("other", "pullRequests"):
        body = json.dumps({name: [] for name in ("tags", "converts", "branches", key)})
        publisher.hub.fault("status", status=200, body=body, path="/refs")
        publisher.publish()
    # The Hub's reason is reported, even if the branch has changed meanwhile.
    publisher.hub.fault("move_head", repo=publisher.repository, path="/commit/main")
    publisher.hub.fault("status", status=403, path="/commit/main")
    publisher.publish()
    publisher.hub.fault("status", status=200, body="{}", path="/tag/")
    publisher.publish("--tag=v1")
    publisher.hub.fault("delay", seconds=2, path="/refs", times=0)
    publisher.publish("--patience=1")


def test_a_commit_whose_answer_is_lost(publisher: Publisher) -> None:
    """It is found again, even below a later one."""
    publisher.hub.fault("drop_after", method="POST", path="/commit/main")
    if "HF_HUB_DISABLE_XET" in publisher.environment:
        publisher.hub.fault("move_head", repo=publisher.repository, path="/refs", skip=1)
    publisher.publish()
    assert publisher.hub.faults() == []


@only_lfs
def test_uploads_that_are_lost(publisher: Publisher) -> None:
    """A proxy takes an upload in place of the storage, or the storage loses it: it is sent once more."""
    list_file(publisher.release, "extra.bin", os.urandom(1000))
    publisher.hub.fault("status", status=200, method="PUT", path="/_lfs/")
    publisher.publish()
    for times in (1, 2):
        content = os.urandom(1000)
        list_file(publisher.release, "extra.bin", content)
        sha256 = hashlib.sha256(content).hexdigest()
        publisher.hub.fault("forget", sha256=sha256, method="POST", path="/commit/main", times=times)
        publisher.publish()
    assert publisher.hub.faults() == []


def test_a_head_that_moved(publisher: Publisher) -> None:
    publisher.publish()
    # An older commit of this release is not the one that was to be made.
    publisher.hub.fault("move_head", repo=publisher.repository)
    write_card(publisher.release, "Another")
    publisher.hub.fault("move_head", repo=publisher.repository, method="POST", path="/commit/main")
    publisher.publish()


def test_a_file_that_changes_meanwhile(publisher: Publisher) -> None:
    # A content that no other test uses: over Xet, the Hub may now have another one under its name.
    list_file(publisher.release, "long.bin", b"y" * (11 << 20))
    publisher.hub.fault("delay", method="POST", path="/preupload/", seconds=1.5)

    def change() -> None:
        # The pause has begun when the fault is used up.
        while publisher.hub.faults():
            time.sleep(0.05)
        (publisher.release / "long.bin").write_bytes(b"x" * (11 << 20))

    thread = threading.Thread(target=change)
    thread.start()
    publisher.publish()
    thread.join()


def test_a_long_file(publisher: Publisher) -> None:
    """It is compared with the manifest while it is uploaded."""
    list_file(publisher.release, "long.bin", bytes(11 << 20))
    with (publisher.release / "long.bin").open("r+b") as stream:
        stream.write(b"x")
        for options in ((), ("--dry-run",), ()):
            stream.flush()
            publisher.publish(*options, trusted_from=1 << 20)
        stream.seek(0)
        stream.write(b"\0")
    files = publisher.publish(trusted_from=1 << 20)["files"]
    assert set(noted_files(publisher.release)) == {file["name"] for file in files}


def test_pull_requests(publisher: Publisher) -> None:
    publisher.publish()
    for text, options in (("One", ()), ("Two", ("--read-back",))):
        write_card(publisher.release, text)
        publisher.publish("--create-pr", *options)
    # Without a receipt that says so, the files of the commit before are read back, too.
    (publisher.release / ".lensconv" / "receipt.json").unlink()
    publisher.api().merge_pull_request(publisher.repository, 1)
    # Somebody without the right to write may offer a change.
    publisher.environment["HF_TOKEN"] = publisher.hub.token("stranger")
    write_card(publisher.release, "Offered")
    publisher.publish("--create-pr")


@only_lfs
def test_what_another_tool_put_there(publisher: Publisher) -> None:
    """With --prune it stays in the history alone. What it tells clients to leave out is not left out."""
    publisher.put({"README.md": FRONT_MATTER.encode(), "model.bin": b"{}", ".gitignore": b"vae/\n"})
    publisher.publish("--dry-run")
    names = [*(file["name"] for file in json.loads((publisher.release / MANIFEST).read_text())["files"]), MANIFEST]
    answer = {"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": True} for name in names]}
    publisher.hub.fault("status", status=200, body=json.dumps(answer), path="/preupload/")
    publisher.publish("--prune")
    publisher.publish("--prune")


@only_lfs
def test_files_of_others_stay(publisher: Publisher) -> None:
    """What a former release listed is deleted; what would be loaded beside ours is asked about, before any change."""
    theirs = {
        "LICENSE": b"theirs",
        ".gitignore": b"vae/\n",
        "images/a.png": b"picture",
        ".gitattributes": b"* -text\n",
        "transformer/a.md": b"",
    }
    publisher.put(theirs)
    list_file(publisher.release, "old.json", b"{}")
    publisher.publish("--tag=v1")
    publisher.put({"LICENSE": b"edited"})
    publisher.publish("--tag=v1")
    (publisher.release / "old.json").unlink()
    forget_file(publisher.release, "old.json")
    write_card(publisher.release, "Another")
    publisher.publish("--tag=v2")
    publisher.put({f"transformer/{name}": b"{}" for name in ("model.fp16.safetensors", "added_tokens.json")})
    write_card(publisher.release, "A third")
    publisher.publish("--create-pr")
    publisher.publish("--revision=next")
    refs = publisher.api().list_repo_refs(publisher.repository, include_pull_requests=True)
    assert (len(refs.branches), refs.pull_requests) == (1, [])
    assert answered(publisher, "n").returncode == 4
    done = answered(publisher, "y")
    assert (done.returncode, json.loads(done.stdout)["deleted"]) == (0, DELETED), done.stderr
    files = {file["name"] for file in json.loads((publisher.release / MANIFEST).read_text())["files"]}
    assert {*publisher.api().list_repo_files(publisher.repository)} == {*files, *theirs, MANIFEST}


DELETED = ["transformer/added_tokens.json", "transformer/model.fp16.safetensors"]


def answered(publisher: Publisher, answer: str) -> subprocess.CompletedProcess[str]:
    """Publish at a terminal, where someone gives this answer."""
    ours, its = pty.openpty()
    os.write(ours, f"{answer}\n".encode())
    command = [sys.executable, "-m", "converter", "publish", str(publisher.release), publisher.repository, "--json"]
    done = subprocess.run(command, env=publisher.environment, stdin=its, stdout=subprocess.PIPE, stderr=its, text=True)
    os.close(its)
    said = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert f"{DELETED[0]} may be loaded together with the release's files; {DELETED[1]} may be" in said
    assert "Delete them? [y/N]: " in said
    return done


@only_lfs
def test_a_token_that_may_not_write(publisher: Publisher) -> None:
    publisher.api().create_repo(publisher.repository)
    publisher.environment["HF_TOKEN"] = publisher.hub.token("stranger")
    publisher.publish()
    publisher.environment["HF_TOKEN"] = publisher.hub.token("reader")
    publisher.repository = publisher.repository.replace("owner/", "reader/")
    publisher.publish()


@pytest.mark.parametrize(
    ("variable", "message"),
    [("HF_TOKEN_PATH", "the file that should contain the token"), ("HF_OIDC_RESOURCE", "no token was found")],
)
def test_tokens_that_cannot_be_had(release: Path, tmp_path: Path, variable: str, message: str) -> None:
    (tmp_path / "token").write_bytes(b"\xff\xfe" * 20)
    kept = {name: value for name, value in os.environ.items() if name != "HF_TOKEN"}
    place = {"HF_ENDPOINT": "http://127.0.0.1:1", "HF_HOME": str(tmp_path / "home"), variable: str(tmp_path / "token")}
    done = run_process("publish", release, "owner/tiny", env=kept | place)
    assert done.returncode == 4
    assert [line[:7] for line in done.stderr.splitlines()] == ["error: "]
    assert message in done.stderr


@only_lfs
def test_bytes_that_are_served_wrongly(publisher: Publisher) -> None:
    # The Hub keeps one copy of a content for all repos, so that no test may follow this one.
    manifest = json.loads((publisher.release / MANIFEST).read_text())
    weights = max(manifest["files"], key=lambda file: file["bytes"])
    publisher.hub.fault("corrupt", sha256=weights["sha256"], method="POST", path="/commit/main")
    publisher.publish("--tag=v1", "--patience=2")
    assert publisher.api().list_repo_refs(publisher.repository).tags == []
