"""Publishing: what is refused before the first request, and releases put on a real local Hub by the real client."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from converter.conversion.release.replacing import refuse_what_is_no_checkpoint
from converter.errors import HubError, MissingInput, OutputError, ReleaseError, UsageError
from converter.hub.addresses import HubAddress
from converter.hub.remote import RemoteRepo
from converter.hub.retry import Retry
from converter.publication.commit import Target, make_commit
from converter.publication.files import Difference, PublishedFile, compare, file_stamp, hash_files, noted_files
from converter.publication.options import PublishOptions
from converter.publication.preflight import examine_release
from converter.publication.publish import publish
from converter.publication.secrets import find_secrets
from converter.publication.session import HubSession, RemoteRefs
from converter.publication.upload import upload, upload_groups
from converter.rehearsal.settings import Account, HubSettings
from converter.schemas import load_schema
from tests.conftest import forget_file, list_file, run_process, run_python, snapshot
from tests.faulty_hub import FaultyHub, faulty_hub

MANIFEST = "lensconv_manifest.json"
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
FRONT_MATTER = "---\nlicense: mit\nlibrary_name: diffusers\npipeline_tag: text-to-image\n---\n\n"
TOKEN, AWS = "hf_" + "a1" * 17, "an AWS access key"

#: Addresses that this process asked to connect to.
_connections: list[Any] = []
sys.addaudithook(lambda event, arguments: _connections.append(arguments) if event == "socket.connect" else None)


@pytest.fixture
def release(release: Path) -> Path:
    """A release with a card."""
    write_card(release, "Tiny")
    return release


def write_card(release: Path, title: str) -> None:
    list_file(release, "README.md", f"{FRONT_MATTER}# {title}\n".encode())


Spoil = Callable[[Path], object]


def add(name: str, text: str = "{}") -> Spoil:
    return lambda release: (release / name).write_text(text)


def add_listed(name: str, content: bytes) -> Spoil:
    return lambda release: list_file(release, name, content)


def add_link(name: str, target: str) -> Spoil:
    """A link to a path in the release, or to an absolute one."""
    return lambda release: (release / name).symlink_to(release / target)


add_hidden = add(".env", "X=1")


def flip_a_weight(release: Path) -> None:
    content = bytearray((release / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (release / WEIGHTS).write_bytes(content)


def edit_card(release: Path) -> None:
    (release / "README.md").write_bytes((FRONT_MATTER + "# Tinz\n").encode())


LATIN = FRONT_MATTER.encode() + "Grüße".encode("latin-1")
#: What is done to a release, and what it is refused with.
FAULTS: dict[str, tuple[Spoil, str]] = {
    "hidden in a folder": (add_listed("vae/.gitattributes", b"* text"), r"vae/\.gitattributes is hidden"),
    "hidden": (add_hidden, r"\.env is hidden"),
    "secret": (add_listed("a.json", b'{"note": "%b"}' % TOKEN.encode()), "a.json contains .*token in line 1"),
    "link to elsewhere": (add_link("vae/more.json", "/etc/hostname"), "vae/more.json is a link"),
    "folder link": (add_link("more", "vae"), "more is a link"),
    "unlisted": (add("vae/more.json"), "vae/more.json is not in the manifest"),
    "empty weights": (add_listed("vae/more.safetensors", b""), "vae/more.safetensors is empty"),
    "sparse giant": (lambda release: os.truncate(release / WEIGHTS, 250 * 10**9), "has 250.0 GB"),
    "latin card": (add_listed("README.md", LATIN), "README.md is not UTF-8"),
    "bad metadata": (add_listed("README.md", b"---\nlicense: [\n---\n"), "README.md"),
    "latin name": (add(os.fsdecode(b"gr\xfc\xdf.json")), "has a name that is not UTF-8"),
    "gitignore": (add(".gitignore", "*.safetensors\n"), r"\.gitignore would make"),
    "flipped weight": (flip_a_weight, "another sha256"),
    "edited card": (edit_card, "README.md has another sha256"),
    "dropped card": (lambda release: forget_file(release, "README.md"), "README.md is not in the manifest"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_must_not_be_published_reaches_no_network(release: Path, fault: str) -> None:
    spoil, message = FAULTS[fault]
    spoil(release)
    _connections.clear()
    with pytest.raises(ReleaseError, match=message) as caught:
        publish(release, "owner/tiny")
    assert TOKEN not in caught.value.message
    assert fault != "empty weights" or caught.value.hint == "Convert again, or download the release again."
    assert _connections == []


#: Options that contradict each other, or have a form that is refused.
WRONG_OPTIONS: list[dict[str, Any]] = [
    *({"tag": tag} for tag in ("v 1", "../v1", "v1..2", "v//1", "main", "refs/pr/1")),
    *({"revision": "v/.1"}, {"message": "two\nlines"}),
    *({"tag": "next", "revision": "next"}, {"create_pr": True, "tag": "v1"}),
]


@pytest.mark.parametrize(
    ("repository", "options"),
    [("tiny", {}), ("owner/tiny@main", {}), *(("owner/tiny", options) for options in WRONG_OPTIONS)],
)
def test_requests_that_are_refused(release: Path, repository: str, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        publish(release, repository, PublishOptions(**options))


def test_a_folder_that_is_no_release(tmp_path: Path) -> None:
    with pytest.raises(MissingInput):
        publish(tmp_path / "nothing", "owner/tiny")
    with pytest.raises(ReleaseError, match=MANIFEST):
        publish(tmp_path, "owner/tiny")


def test_long_files_are_left_to_the_upload_unless_they_were_hashed(release: Path) -> None:
    def read() -> set[str]:
        files = examine_release(release, "owner/tiny", trusted_from=100_000).files
        return {file.name for file in files if file.is_hashed}

    assert MANIFEST in read()
    assert WEIGHTS not in read()
    examine_release(release, "owner/tiny")
    assert WEIGHTS in read()
    os.utime(release / WEIGHTS)
    assert WEIGHTS not in read()


def test_files_are_hashed_again_only_where_they_changed(release: Path) -> None:
    first = examine_release(release, "owner/tiny")
    notes = release / ".lensconv" / "checksums.json"
    noted = json.loads(notes.read_text())
    for entry in noted.values():
        entry["git_sha1"] = "noted"
    # No file can have this name.
    noted["a\0b"] = next(iter(noted.values()))
    notes.write_text(json.dumps(noted))
    assert {file.git_sha1 for file in examine_release(release, "owner/tiny").files} == {"noted"}
    edit_card(release)
    names = [file.name for file in first.files]
    again = {file.name: file for file in hash_files(release, names)}
    assert {name for name in names if again[name].git_sha1 != "noted"} == {"README.md"}
    assert again["README.md"].sha256 == hashlib.sha256((release / "README.md").read_bytes()).hexdigest()


def test_long_files_are_uploaded_one_by_one() -> None:
    def sizes_of(*megabytes: int) -> list[list[int]]:
        files = [PublishedFile(str(size), Path(), size << 20, "", "", ()) for size in megabytes]
        return [[file.bytes >> 20 for file in group] for group in upload_groups(files)]

    assert sizes_of(1, 32, 2, 40) == [[1, 2], [32], [40]]
    assert sizes_of(31, 31, 31, 2, 1) == [[31, 31], [31, 2, 1]]
    assert [len(group) for group in sizes_of(*[0] * 201)] == [100, 100, 1]
    assert sizes_of() == []


def test_a_file_that_changes_after_its_upload_ends_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files: list[PublishedFile] = []
    uploaded: list[str] = []
    for name in ("a.bin", "b.bin"):
        (tmp_path / name).write_bytes(b"x")
        files.append(PublishedFile(name, tmp_path / name, 32 << 20, "", "", file_stamp(tmp_path / name)))

    def change(_: HubSession, group: list[PublishedFile], *__: object) -> list[Any]:
        uploaded.extend(file.name for file in group)
        (tmp_path / "a.bin").write_bytes(b"another")
        return []

    monkeypatch.setattr("converter.publication.upload._upload_group", change)
    with pytest.raises(ReleaseError, match=r"a\.bin: has changed"):
        upload(HubSession("owner/tiny", Retry(1)), Difference(tuple(files), ()), "main")
    assert uploaded == ["a.bin"]


def test_a_commit_that_is_refused_is_not_looked_for(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub's reason is reported, even if the branch has changed meanwhile."""
    from huggingface_hub import get_session
    from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]

    def refuse(*_: object, **__: object) -> None:
        http = importlib.import_module(type(get_session()).__module__.partition(".")[0])
        hf_raise_for_status(http.Response(403, request=http.Request("POST", "http://127.0.0.1:1/commit/main")))

    session = HubSession("owner/tiny", Retry(1))
    monkeypatch.setattr(session.api, "create_commit", refuse)
    monkeypatch.setattr(session, "refs", lambda: RemoteRefs({"main": "b" * 40}, {}, {}))
    found = examine_release(release, "owner/tiny")
    with pytest.raises(HubError, match="committing: the Hub answers with status 403"):
        make_commit(session, found, Target("main", "a" * 40), [], "Publish")


def test_a_release_that_was_examined_may_be_made_anew(release: Path) -> None:
    examine_release(release, "owner/tiny")
    assert (release / ".lensconv").is_dir()
    refuse_what_is_no_checkpoint(release)
    add_hidden(release)
    with pytest.raises(OutputError, match=r"\.env"):
        refuse_what_is_no_checkpoint(release)


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        (f"token: {TOKEN}", ["a Hugging Face token"]),
        ("hf_oauth_" + "eyJhbGciOiJIUzI1NiJ9." + "a" * 20, ["a Hugging Face token"]),
        (f"a_{TOKEN} is part of another word, {TOKEN} is none", ["a Hugging Face token"]),
        ("token\n" + "ASIA" + "ABCDEFGH12345678" + "\n" + "wandb_v1_" + "a" * 30, [AWS, "a Weights & Biases token"]),
        ("-----BEGIN OPENSSH PRIVATE KEY-----", ["a private key"]),
        ("AKIA" + "ABCDEFGH12345678", [AWS]),
        ("ghp_" + "a" * 36, ["a GitHub token"]),
        ('{"api_key": "abcdefgh12345678ABCDEFGH"}', ["what looks like a secret"]),
        ('{"pad_token": "<|endoftext|>", "api_key": null, "hf_token": "your-token-goes-here-please"}', []),
        ("the word hf_hub_download is no token, and neither is hf_short", []),
        ("line\nmine is secret-of-mine", ["the token that is in use"]),
    ],
)
def test_secrets_are_known_by_their_form(text: str, kinds: list[str]) -> None:
    assert [kind for kind, _ in find_secrets(text.encode(), ("secret-of-mine",))] == kinds


PUBLISH = """
import json, sys
from pathlib import Path
from converter.errors import LensconvError
from converter.publication import publish as run
from converter.publication.options import PublishOptions
run.TRUSTED_BYTES = int(sys.argv[4] or run.TRUSTED_BYTES)
try:
    receipt = run.publish(Path(sys.argv[1]), sys.argv[2], PublishOptions(**json.loads(sys.argv[3])))
except LensconvError as error:
    print(json.dumps(error.to_dict()))
    sys.exit(error.exit_code)
print(json.dumps(receipt.to_dict()))
"""


@dataclass
class Publisher:
    """A user with a release and a Hub."""

    hub: FaultyHub
    release: Path
    environment: dict[str, str]
    repository: str

    def publish(self, *, trusted_from: int | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
        """Publish in a process of its own, as HF_ENDPOINT and HF_HUB_DISABLE_XET are read when the client is
        imported; from so many bytes on what uploads a file hashes it."""
        arguments = (self.release, self.repository, json.dumps({"patience": 20, **options}), trusted_from or "")
        done = run_python(PUBLISH, *arguments, flags=("-W", "error"), env=self.environment)
        assert "Traceback" not in done.stderr, done.stderr
        assert self.hub.account.token not in done.stdout + done.stderr
        return done

    def commits(self) -> list[str]:
        """Of main, the newest first."""
        return [commit.commit_id for commit in self.api().list_repo_commits(self.repository)]

    def refused(self, code: int = 4, **options: Any) -> str:
        """Publish, and return what it is refused with."""
        done = self.publish(**options)
        assert done.returncode == code
        return str(json.loads(done.stdout)["error"]["message"])

    def api(self) -> Any:
        """A client of the same Hub in this process."""
        from huggingface_hub import HfApi

        return HfApi(endpoint=self.hub.endpoint, token=self.hub.account.token)

    def main_is_whole(self) -> bool:
        """Whether main holds the release, file by file."""
        place = HubAddress(self.repository)
        remote = RemoteRepo.open(place, endpoint=self.hub.endpoint, token=self.hub.account.token)
        files = json.loads((self.release / MANIFEST).read_text())["files"]
        return not compare(hash_files(self.release, [*(file["name"] for file in files), MANIFEST]), remote.files)


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
    """A user who publishes."""
    environment = hub.environment(os.environ, tmp_path / "home", xet=transport == "xet")
    environment |= {"HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "1", "HF_XET_CLIENT_RETRY_BASE_DELAY": "10ms"}
    name = request.node.name.partition("[")[0].removeprefix("test_").replace("_", "-")
    yield Publisher(hub, release, environment, f"owner/{name}")
    hub.clear_faults()


def test_a_release_comes_whole_and_once(publisher: Publisher) -> None:
    before = snapshot(publisher.release)
    receipt = json.loads(publisher.publish(tag="v1").stdout)
    jsonschema.validate(receipt, load_schema("publish"))
    assert receipt["changed"]
    assert receipt["commit"] == publisher.commits()[0]
    assert receipt["read_back"]["bytes"] == receipt["total_bytes"]
    assert publisher.main_is_whole()
    refs = publisher.api().list_repo_refs(publisher.repository)
    assert [(tag.name, tag.target_commit) for tag in refs.tags] == [("v1", receipt["commit"])]
    folder = Path(publisher.api().snapshot_download(publisher.repository, cache_dir=publisher.release.parent / "cache"))
    found = {name: content for name, content in snapshot(folder).items() if name != ".gitattributes"}
    assert found == before

    again = json.loads(publisher.publish(tag="v1").stdout)
    assert (again["changed"], again["commit"], again["read_back"]) == (False, receipt["commit"], None)
    everything = json.loads(publisher.publish(read_back=True).stdout)["read_back"]
    assert everything == {"files": len(receipt["files"]), "sampled_files": 0, "bytes": receipt["total_bytes"]}
    assert len(publisher.commits()) == 2

    write_card(publisher.release, "Another")
    assert "tag v1 points to" in publisher.refused(tag="v1")
    assert publisher.commits()[0] == receipt["commit"]


def test_a_commit_whose_answer_is_lost_is_found_again(publisher: Publisher) -> None:
    publisher.hub.fault("drop_after", method="POST", path="/commit/main")
    if "HF_HUB_DISABLE_XET" in publisher.environment:
        # A proxy takes the upload in place of the storage, which has to be seen and mended, too.
        list_file(publisher.release, "extra.bin", os.urandom(1000))
        publisher.hub.fault("status", status=200, method="PUT", path="/_lfs/")
    receipt = json.loads(publisher.publish().stdout)
    assert publisher.hub.faults() == []
    assert publisher.commits() == [receipt["commit"], receipt["parent"]]
    assert publisher.main_is_whole()


def test_a_head_that_moved_is_left_alone(publisher: Publisher) -> None:
    assert publisher.publish().returncode == 0
    write_card(publisher.release, "Another")
    publisher.hub.fault("move_head", repo=publisher.repository, method="POST", path="/commit/main")
    assert "has changed since it was read" in publisher.refused()
    assert len(publisher.commits()) == 3


def test_a_file_that_changes_while_it_is_uploaded(publisher: Publisher) -> None:
    publisher.hub.fault("delay", method="POST", path="/preupload/", seconds=1.5)

    def change() -> None:
        # The pause has begun when the fault is used up.
        while publisher.hub.faults():
            time.sleep(0.05)
        flip_a_weight(publisher.release)

    thread = threading.Thread(target=change)
    thread.start()
    message = publisher.refused(1)
    thread.join()
    assert f"{Path(WEIGHTS).name}: has changed since it was examined" in message
    assert len(publisher.commits()) == 1


def test_a_long_file_that_is_not_what_the_manifest_says(publisher: Publisher) -> None:
    list_file(publisher.release, "long.bin", bytes(11 << 20))
    with (publisher.release / "long.bin").open("r+b") as stream:
        stream.write(b"x")
    for dry_run in (False, True, False):
        message = publisher.refused(1, trusted_from=1 << 20, dry_run=dry_run)
        assert "long.bin" in message
        assert "another sha256" in message
    assert len(publisher.commits()) == 1
    with (publisher.release / "long.bin").open("r+b") as stream:
        stream.write(b"\0")
    published = publisher.publish(trusted_from=1 << 20)
    assert published.returncode == 0
    assert set(noted_files(publisher.release)) == {file["name"] for file in json.loads(published.stdout)["files"]}
    assert publisher.main_is_whole()


def test_a_pull_request_is_used_again(publisher: Publisher) -> None:
    assert publisher.publish().returncode == 0
    for text in ("One", "Two"):
        write_card(publisher.release, text)
        receipt = json.loads(publisher.publish(create_pr=True).stdout)
        assert receipt["pull_request"] == 1
        # Without a receipt that says so, the files of the commit before are read back, too.
        assert receipt["read_back"]["files"] == (2 if text == "One" else len(receipt["files"]))
        (publisher.release / ".lensconv" / "receipt.json").unlink()
    discussions = list(publisher.api().get_repo_discussions(publisher.repository))
    assert [(discussion.num, discussion.status) for discussion in discussions] == [(1, "open")]
    assert len(publisher.commits()) == 2
    publisher.api().merge_pull_request(publisher.repository, 1)
    assert publisher.main_is_whole()
    # Somebody without the right to write may offer a change.
    publisher.environment["HF_TOKEN"] = publisher.hub.token("stranger")
    write_card(publisher.release, "Offered")
    assert json.loads(publisher.publish(create_pr=True).stdout)["pull_request"] == 2


def test_what_another_tool_put_there_stays_in_the_history_alone(publisher: Publisher) -> None:
    from huggingface_hub import CommitOperationAdd

    api = publisher.api()
    api.create_repo(publisher.repository)
    theirs = [CommitOperationAdd("README.md", FRONT_MATTER.encode()), CommitOperationAdd("model.bin", b"{}")]
    api.create_commit(publisher.repository, theirs, commit_message="Another model")
    assert json.loads(publisher.publish().stdout)["deleted"] == ["model.bin"]
    assert publisher.main_is_whole()
    assert len(publisher.commits()) == 3


def test_a_repo_with_another_name(publisher: Publisher) -> None:
    publisher.api().create_repo("owner/another", exist_ok=True)
    moved = {"Location": "/api/models/owner/another"}
    publisher.hub.fault("status", status=307, headers=moved, path=f"/api/models/{publisher.repository}$")
    assert "is now called owner/another" in publisher.refused()


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


def test_a_token_that_may_only_read(publisher: Publisher) -> None:
    publisher.environment["HF_TOKEN"] = publisher.hub.token("reader")
    publisher.repository = publisher.repository.replace("owner/", "reader/")
    done = publisher.publish()
    assert done.returncode == 4
    assert publisher.hub.token("reader") not in done.stdout + done.stderr


def test_bytes_that_the_hub_serves_wrongly_are_noticed(publisher: Publisher) -> None:
    # The Hub keeps one copy of a content for all repos, so that no test may follow this one.
    manifest = json.loads((publisher.release / MANIFEST).read_text())
    weights = max(manifest["files"], key=lambda file: file["bytes"])
    publisher.hub.fault("corrupt", sha256=weights["sha256"], method="POST", path="/commit/main")
    assert weights["name"] in publisher.refused(tag="v1", patience=2)
    assert publisher.api().list_repo_refs(publisher.repository).tags == []
