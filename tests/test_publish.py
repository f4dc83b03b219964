"""Publishing: what is refused before the first request, and releases put on a real local Hub by the real client."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from huggingface_hub.utils.sha import git_hash

from converter.console import Progress
from converter.conversion.release.manifest import ReleaseFile
from converter.conversion.release.replacing import refuse_what_is_no_checkpoint
from converter.errors import MissingInput, OutputError, ReleaseError, UsageError
from converter.hub.records import MAXIMUM_FILES
from converter.hub.retry import Retry
from converter.publication.files import (
    MAXIMUM_REGULAR_BYTES,
    Difference,
    PublishedFile,
    file_stamp,
    hash_files,
    noted_files,
    read_unchanged,
)
from converter.publication.folder import advice, find_faults
from converter.publication.options import PublishOptions
from converter.publication.preflight import examine_release
from converter.publication.publish import publish
from converter.publication.secrets import find_secrets
from converter.publication.session import HubSession
from converter.publication.upload import _reading_shown, upload, upload_groups
from converter.rehearsal.settings import Account, HubSettings
from converter.schemas import load_schema
from tests.conftest import forget_file, list_file, run_process, run_python, snapshot
from tests.expected import check_expected
from tests.faulty_hub import FaultyHub, faulty_hub
from tests.hubs import without_progress

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


def write_card(release: Path, title: str, license_name: str = "mit") -> None:
    list_file(release, "README.md", f"{FRONT_MATTER}# {title}\n".replace("mit", license_name, 1).encode())


Spoil = Callable[[Path], object]


def add(name: str, content: bytes = b"{}", *, listed: bool = False) -> Spoil:
    return lambda release: list_file(release, name, content) if listed else (release / name).write_bytes(content)


def flip_a_weight(release: Path) -> None:
    content = (release / WEIGHTS).read_bytes()
    (release / WEIGHTS).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def edit_card(release: Path) -> None:
    (release / "README.md").write_bytes((FRONT_MATTER + "# Tinz\n").encode())


LATIN = FRONT_MATTER.encode() + "Grüße".encode("latin-1")
NOTE = b'{\n"note": "%b"}\n' % TOKEN.encode()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (add("vae/.gitattributes", b"* text", listed=True), r"vae/\.gitattributes is hidden"),
        *((add(name), rf"\{name} is hidden") for name in (".env", ".git", ".lensconv")),
        (lambda release: (release / ".lensconv").symlink_to("vae"), r"\.lensconv is a link"),
        (lambda release: (release / "vae/.git").mkdir(), r"vae/\.git is hidden"),
        (add("a.json", NOTE, listed=True), "a.json contains a Hugging Face token in line 2"),
        (lambda release: (release / "more").symlink_to("vae"), "more is a link"),
        (add("vae/more.json"), "vae/more.json is not in the manifest"),
        (add("vae/more.safetensors", b"", listed=True), "is empty.* Convert again, or download"),
        (lambda release: os.truncate(release / WEIGHTS, 200 * 10**9), r"has 200000000000 bytes, but \d+ in"),
        (lambda release: os.truncate(release / WEIGHTS, 200 * 10**9 + 1), "has 200.0 GB.*smaller --max-shard-size"),
        (add("README.md", LATIN, listed=True), "README.md is not UTF-8"),
        (add("README.md", b"---\nlicense: [\n---\n", listed=True), "README.md"),
        (add(os.fsdecode(b"gr\xfc\xdf.json")), "has a name that is not UTF-8"),
        (lambda release: os.mkfifo(release / "vae" / "pipe"), "vae/pipe is not a regular file"),
        (lambda release: (release / "vae/config.json").unlink(), "vae/config.json is missing"),
        (lambda release: os.truncate(release / "README.md", 9), r"README.md has 9 bytes, but \d+ in"),
        (add(".gitignore"), r"\.gitignore would make"),
        (flip_a_weight, "another sha256.*says Convert again, or"),
        (edit_card, "README.md has another sha256.*--adopt"),
        (lambda release: forget_file(release, "README.md"), "the release has no card.*Make a card with"),
    ],
)
def test_what_must_not_be_published_reaches_no_network(release: Path, spoil: Spoil, message: str) -> None:
    spoil(release)
    _connections.clear()
    with pytest.raises(ReleaseError) as caught:
        publish(release, "owner/tiny")
    assert re.search(message, f"{caught.value.message} {caught.value.hint}")
    assert TOKEN not in caught.value.message
    assert _connections == []


@pytest.mark.parametrize(
    "options",
    [
        *({"repository": name} for name in ("tiny", "owner/tiny@main")),
        *({"tag": tag} for tag in ("v 1", "../v1", "v1..2", "v//1", "v1.", "v.lock", "main", "refs/pr/1")),
        *({"revision": revision} for revision in ("v/.1", "n" * 101)),
        *({"message": message} for message in ("two\nlines", " ", "N" * 201)),
        *(
            {"tag": "next", "revision": "next"},
            {"create_pr": True, "tag": "v1"},
            {"create_pr": True, "revision": "next"},
        ),
    ],
)
def test_requests_that_are_refused(release: Path, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        publish(release, options.pop("repository", "owner/tiny"), PublishOptions(**options))


def test_a_folder_that_is_no_release(tmp_path: Path) -> None:
    with pytest.raises(MissingInput):
        publish(tmp_path / "nothing", "owner/tiny", PublishOptions(tag="v"))
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
    noted["a\0b"] = next(iter(noted.values())) | {"stamp": []}
    notes.write_text(json.dumps(noted))
    assert {file.git_sha1 for file in examine_release(release, "owner/tiny").files} == {"noted"}
    before = (release / "README.md").stat()
    edit_card(release)
    # As some tools do that copy files.
    os.utime(release / "README.md", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (release / "README.md").stat().st_mtime_ns == before.st_mtime_ns
    names = [file.name for file in first.files]
    again = {file.name: file for file in hash_files(release, names)}
    assert {name for name in names if again[name].git_sha1 != "noted"} == {"README.md"}
    assert {*noted_files(release)} == {*names}
    assert again["README.md"].sha256 == hashlib.sha256((release / "README.md").read_bytes()).hexdigest()


def test_files_of_up_to_10_mib_have_a_hash_of_git(tmp_path: Path) -> None:
    for more in (0, 1):
        (tmp_path / str(more)).write_bytes(bytes(MAXIMUM_REGULAR_BYTES + more))
    assert [file.git_sha1 for file in hash_files(tmp_path, "01")] == [git_hash(bytes(10 << 20)), ""]


def test_the_users_own_token_is_in_no_file(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    list_file(release, "a.json", b'{"a":\n"my own"}\n')
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        with monkeypatch.context() as patch:
            patch.setenv(name, " my own ")
            with pytest.raises(ReleaseError, match=r"a\.json contains the token that is in use in line 2"):
                examine_release(release, "owner/tiny")


def test_what_is_sent_is_what_was_examined(release: Path) -> None:
    (card,) = hash_files(release, ["README.md"])
    assert read_unchanged(card) == (release / "README.md").read_bytes()
    edit_card(release)
    for _ in range(2):
        with pytest.raises(ReleaseError, match=r"README\.md: has changed since it was examined; nothing was published"):
            read_unchanged(card)
        (release / "README.md").unlink(missing_ok=True)


def test_the_hub_advises_shards_and_takes_20000_files(tmp_path: Path) -> None:
    sizes = {"a": 50 * 10**9, "b": 50 * 10**9 + 1}
    found = list(advice({name: ReleaseFile(name, size, "") for name, size in sizes.items()}))
    assert found == ["b has 50.0 GB; the Hub advises shards of at most 50 GB"]
    listed = {str(number): ReleaseFile("", 1, "") for number in range(MAXIMUM_FILES)}
    assert "the release has 20001 files, which is more than 20000" in dict(find_faults(tmp_path, listed))
    del listed["0"]
    assert not any("which is more than" in fault for fault, _ in find_faults(tmp_path, listed))


def test_long_files_are_uploaded_one_by_one() -> None:
    def sizes_of(*megabytes: int) -> list[list[int]]:
        files = [PublishedFile(str(size), Path(), size << 20, "", "", ()) for size in megabytes]
        return [[file.bytes >> 20 for file in group] for group in upload_groups(files)]

    assert sizes_of(1, 32, 2, 40) == [[1, 2], [32], [40]]
    assert sizes_of(31, 31, 31, 2, 1) == [[31, 31], [31, 2, 1]]
    assert [len(group) for group in sizes_of(*[0] * 201)] == [100, 100, 1]
    assert sizes_of() == []


def test_what_the_client_reads_is_shown(tmp_path: Path) -> None:
    """It counts while it is read, not if the upload fails, and whole if it succeeds."""
    (tmp_path / "a.bin").write_bytes(bytes(100))
    files, progress = [PublishedFile("a.bin", tmp_path / "a.bin", 100, "", "", ())], Progress("uploading", 100)
    with suppress(KeyError), _reading_shown(files, progress), (tmp_path / "a.bin").open("rb", buffering=0) as stream:
        stream.read(60)
        deadline = time.monotonic() + 10
        while progress.done != 60 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert progress.done == 60
        raise KeyError
    assert progress.done == 0
    with _reading_shown(files, progress):
        pass
    assert progress.done == 100


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


def test_a_release_that_was_examined_may_be_made_anew(release: Path) -> None:
    examine_release(release, "owner/tiny")
    assert (release / ".lensconv").is_dir()
    refuse_what_is_no_checkpoint(release)
    (release / ".env").touch()
    with pytest.raises(OutputError, match=r"\.env"):
        refuse_what_is_no_checkpoint(release)


#: The shortest secrets of kinds that are known by their beginnings.
SECRETS = {
    **dict.fromkeys((f"hf_{kind}" + "a" * 30 for kind in ("", "oauth_", "jwt_")), "a Hugging Face token"),
    "api_org_" + "a" * 30: "a Hugging Face token",
    **dict.fromkeys(("AKIA" + "A" * 16, "ASIA" + "A" * 16), AWS),
    **dict.fromkeys(("ghp_" + "a" * 36, "github_pat_" + "a" * 60), "a GitHub token"),
    "glpat-" + "a" * 20: "a GitLab token",
    "AIza" + "a" * 35: "a Google API key",
    "xoxb-" + "a" * 20: "a Slack token",
    "sk-" + "a" * 40: "an OpenAI or Anthropic key",
    "pypi-AgEIcHlwaS5vcmc" + "a" * 20: "a PyPI token",
}

ASSIGNED = ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "huggingfacehub_token", "api_key", "apikey"]
ASSIGNED += ["aws_secret_key", '"secretkey"', "access_token", "accesstoken", "password"]


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        (" ".join(SECRETS), [*SECRETS.values()]),
        (" ".join(secret[:-1] for secret in SECRETS), []),
        (" ".join(f"X{secret}" for secret in SECRETS), ["a PyPI token"]),
        (" ".join(("AKIA" + "A" * 17, "ASIA" + "A" * 17, "AIza" + "a" * 36)), []),
        ("hf_oauth_" + "eyJhbGciOiJIUzI1NiJ9." + "a" * 20, ["a Hugging Face token"]),
        (f"a_{TOKEN} is part of another word, {TOKEN} is none", ["a Hugging Face token"]),
        ("wandb_v1_" + "a" * 20, ["a Weights & Biases token"]),
        *((f"-----BEGIN {kind}PRIVATE KEY-----", ["a private key"]) for kind in ("", "RSA ", "OPENSSH ")),
        (" ".join(f"gh{letter}_{'a' * 36}" for letter in "pousr"), ["a GitHub token"] * 5),
        (" ".join(f"xox{letter}-{'a' * 20}" for letter in "abeoprs"), ["a Slack token"] * 7),
        (" ".join(f"{name}: 'abcdefgh12345678ABCD'" for name in ASSIGNED), ["what looks like a secret"] * 10),
        ('{"pad_token": "<|endoftext|>", "api_key": null, "hf_token": "your-token-goes-here-please"}', []),
        ('password="12345678901234567890", mypassword="abcdefgh12345678ABCD", api_key="a/path/of/number/12345"', []),
        ("the word hf_hub_download is no token, and neither is hf_short", []),
        ("line\nmine is secret-of-mine", ["the token that is in use"]),
    ],
)
def test_secrets_are_known_by_their_form(text: str, kinds: list[str]) -> None:
    assert [kind for kind, _ in find_secrets(text.encode(), ("secret-of-mine",))] == kinds


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

    publisher.publish("--tag=v1")
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
    publisher.hub.fault("status", status=400, body='{"errors": [{"message": "no"}]}', path="/validate-yaml")
    publisher.publish()
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
    publisher.hub.fault("move_head", repo=publisher.repository, method="POST", path="/commit/main")
    publisher.publish()


def test_a_file_that_changes_meanwhile(publisher: Publisher) -> None:
    publisher.hub.fault("delay", method="POST", path="/preupload/", seconds=1.5)

    def change() -> None:
        # The pause has begun when the fault is used up.
        while publisher.hub.faults():
            time.sleep(0.05)
        flip_a_weight(publisher.release)

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
    """It stays in the history alone, and what it tells clients to leave out is not left out silently."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    api = publisher.api()
    api.create_repo(publisher.repository)
    theirs = {"README.md": FRONT_MATTER.encode(), "model.bin": b"{}", ".gitignore": b"vae/\n"}
    for operations in ([CommitOperationAdd(*file) for file in theirs.items()], [CommitOperationDelete(".gitignore")]):
        api.create_commit(publisher.repository, operations, commit_message="Theirs")
        publisher.publish()


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
