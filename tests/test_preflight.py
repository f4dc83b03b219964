"""What publishing refuses before the first request, and what it finds out about files on the way."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.utils.sha import git_hash

from converter.console import Progress
from converter.conversion.release.manifest import ReleaseFile
from converter.conversion.release.replacing import refuse_what_is_no_checkpoint
from converter.errors import LensconvError, MissingInput, OutputError, ReleaseError
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
from converter.publication.receipt import Receipt, is_proven, write_receipt
from converter.publication.secrets import find_secrets
from converter.publication.session import HubSession
from converter.publication.upload import _reading_shown, upload, upload_groups
from tests.cases import check_cases
from tests.checkpoints import write_holes
from tests.conftest import edit_json, forget_file, list_file
from tests.releases import FRONT_MATTER, MANIFEST, WEIGHTS, flip_a_weight, write_card

TOKEN = "hf_" + "a1" * 17


@pytest.fixture
def release(release: Path) -> Path:
    """A release with a card."""
    write_card(release, "Tiny")
    return release


Spoil = Callable[[Path], object]


def add(name: str, content: bytes = b"{}", *, listed: bool = False) -> Spoil:
    return lambda release: list_file(release, name, content) if listed else (release / name).write_bytes(content)


def edit_card(release: Path) -> None:
    (release / "README.md").write_bytes((FRONT_MATTER + "# Tinz\n").encode())


LATIN = FRONT_MATTER.encode() + "Grüße".encode("latin-1")
NOTE = b'{\n"note": "%b"}\n' % TOKEN.encode()
SMALL = b"\x50" + bytes(7) + b'{"__metadata__": {"note": "%b"}}' % TOKEN.encode()
CONFIG = "transformer/config.json"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (add("vae/.gitattributes", b"* text", listed=True), r"vae/\.gitattributes is hidden"),
        *((add(name), rf"\{name} is hidden") for name in (".env", ".git", ".lensconv")),
        (lambda release: (release / ".lensconv").symlink_to("vae"), r"\.lensconv is a link.* Replace links with"),
        (lambda release: (release / "vae/.git").mkdir(), r"vae/\.git is hidden.* Move such files"),
        (add("a.json", b" " * (1 << 20) + NOTE, listed=True), "a.json contains a Hugging Face token in line 2"),
        (add("vae/more.safetensors", SMALL, listed=True), "more.safetensors contains a Hugging Face token in line 1"),
        (add("vae/more.safetensors", bytes(9), listed=True), "more.safetensors: .* Download the source again"),
        (lambda release: edit_json(release / MANIFEST, note=TOKEN), f"{MANIFEST} contains a Hugging Face token"),
        (
            lambda release: list_file(release, CONFIG, (release / CONFIG).read_bytes().replace(b"uint4", b"int4", 1)),
            "config: config.json and quantization_config.json disagree",
        ),
        (lambda release: (release / "more").symlink_to("vae"), "more is a link"),
        (add("vae/more.json"), "vae/more.json is not in the manifest"),
        (add("vae/more.safetensors", b"", listed=True), "is empty.* Convert again, or download"),
        (lambda release: os.truncate(release / WEIGHTS, 200 * 10**9), r"has 200000000000 bytes, but \d+ in"),
        (lambda release: os.truncate(release / WEIGHTS, 200 * 10**9 + 1), "has 200.0 GB.*smaller --max-shard-size"),
        (add("README.md", LATIN, listed=True), "README.md is not UTF-8.* Make the card again"),
        (add("README.md", b"---\nlicense: [\n---\n", listed=True), "README.md: its front.* Make the card again"),
        (add(os.fsdecode(b"gr\xfc\xdf.json")), "has a name that is not UTF-8"),
        (lambda release: os.mkfifo(release / "vae" / "pipe"), "vae/pipe is not a regular file"),
        (lambda release: (release / "vae/config.json").unlink(), "vae/config.json is missing.* Convert again"),
        (lambda release: os.truncate(release / "README.md", 9), r"README.md has 9 bytes, but \d+ in.* --adopt"),
        (add(".gitignore"), r"\.gitignore would make"),
        (flip_a_weight, "another sha256.*says Convert again, or"),
        (edit_card, "README.md has another sha256.*--adopt"),
        (lambda release: forget_file(release, "README.md"), "the release has no card.*Make a card with"),
    ],
)
def test_what_must_not_be_published_reaches_no_network(
    release: Path, spoil: Spoil, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(release)
    connections: list[Any] = []
    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, lambda _, address: connections.append(address))
    with pytest.raises(ReleaseError) as caught:
        publish(release, "owner/tiny")
    assert re.search(message, f"{caught.value.message} {caught.value.hint}")
    assert TOKEN not in caught.value.message
    assert connections == []


def test_requests_that_are_refused(tmp_path: Path) -> None:
    """Those that are not are only asked for the folder."""

    def outcome(repository: str, options: dict[str, Any]) -> str:
        rest = {**options}
        folder = tmp_path / rest.pop("folder", "nothing")
        with pytest.raises(LensconvError) as caught:
            publish(folder, repository, PublishOptions(**rest))
        return str(caught.value).replace(str(tmp_path), "")

    check_cases("requests.jsonl", outcome)


def test_long_files_are_left_to_the_upload_unless_they_were_hashed(release: Path) -> None:
    (release / ".git").mkdir()
    (release / ".cache" / "huggingface").mkdir(parents=True)
    for name in (".cache/huggingface/downloaded", ".gitattributes"):
        (release / name).touch()
    list_file(release, "vae/empty.txt", b"")
    size = (release / WEIGHTS).stat().st_size

    def read() -> set[str]:
        files = examine_release(release, "owner/tiny", trusted_from=size).files
        return {file.name for file in files if file.is_hashed}

    assert MANIFEST in read()
    assert WEIGHTS not in read()
    examine_release(release, "owner/tiny")
    assert WEIGHTS in read()
    os.utime(release / WEIGHTS)
    assert WEIGHTS not in read()
    write_holes(release / "vae/long.safetensors", [("U8", "a", (50 * 10**9,))])
    length = (release / "vae/long.safetensors").stat().st_size
    forget_file(release, "", {"name": "vae/long.safetensors", "bytes": length, "sha256": "0" * 64})
    said = examine_release(release, "owner/tiny", trusted_from=size).advice
    assert said == ("vae/long.safetensors has 50.0 GB; the Hub advises shards of at most 50 GB",)


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


def test_files_of_up_to_10_mib_have_a_hash_of_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for more in (0, 1):
        (tmp_path / str(more)).write_bytes(bytes(MAXIMUM_REGULAR_BYTES + more))
    # Also where no checksums can be noted.
    (tmp_path / ".lensconv").touch()
    assert [file.git_sha1 for file in hash_files(tmp_path, "01")] == [git_hash(bytes(10 << 20)), ""]
    (tmp_path / ".lensconv").unlink()
    (tmp_path / ".lensconv" / "checksums.json").mkdir(parents=True)
    assert hash_files(tmp_path, "1")[0].bytes == (10 << 20) + 1
    # Another program touches the file while it is read.
    monkeypatch.setattr(Progress, "advance", lambda *_: os.utime(tmp_path / "0", (1, 1)))
    for name, error in (("2", MissingInput), ("0", ReleaseError)):
        with pytest.raises(error):
            hash_files(tmp_path, [name])


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


def test_a_receipt_is_written_where_that_is_possible_and_says_what_was_proven(release: Path) -> None:
    fit, place = examine_release(release, "owner/tiny"), release / "new" / "receipt.json"
    receipt = Receipt("owner/tiny", "page", "main", "commit", None, None, None, False, fit, Difference((), ()), None)
    assert write_receipt(place, receipt)
    found = [is_proven(place, *claim) for claim in (("page", "commit"), ("other", "commit"), ("page", "other"))]
    assert found == [True, False, False]
    assert not is_proven(release / "none", "page", "commit")
    assert [write_receipt(file, receipt) for file in (place / "more", place.parent)] == [False, False]


def test_a_release_that_was_examined_may_be_made_anew(release: Path) -> None:
    examine_release(release, "owner/tiny")
    assert (release / ".lensconv").is_dir()
    refuse_what_is_no_checkpoint(release)
    (release / ".env").touch()
    with pytest.raises(OutputError, match=r"\.env"):
        refuse_what_is_no_checkpoint(release)


def test_secrets_are_known_by_their_form() -> None:
    """The kept file says how often a letter is repeated, so that no scanner takes it for a secret."""

    def kinds(text: str) -> list[str]:
        text = re.sub(r"([aA])\{(\d+)\}", lambda found: found[1] * int(found[2]), text)
        return [kind for kind, _ in find_secrets(text.encode(), ("secret-of-mine",))]

    check_cases("secrets.jsonl", kinds)
