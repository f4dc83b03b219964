"""The local Hub: huggingface_hub works on it as it is, and it refuses what huggingface.co refuses."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import snapshot
from tests.faulty_hub import FaultyHub
from tests.hubs import CARD, ask, commit, get_file, head, lfs_file, make_repo, run_client, upload


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
api.create_repo(repo)
paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
def additions():
    return [CommitOperationAdd(str(path.relative_to(folder)), str(path)) for path in paths]
made = api.create_commit(repo, additions(), commit_message="All", parent_commit=api.model_info(repo).sha)
found["unchanged"] = api.create_commit(repo, additions(), commit_message="Again").oid == made.oid
api.create_tag(repo, tag="v1", revision=made.oid)
found["snapshot"] = snapshot_download(repo, revision="v1")
found["files"] = {
    file.path: [file.size, file.lfs.sha256 if file.lfs else file.blob_id, bool(file.xet_hash)]
    for file in api.list_repo_tree(repo, recursive=True) if hasattr(file, "blob_id")
}
check = api.verify_repo_checksums(repo, local_dir=str(folder))
found["check"] = [len(check.mismatches), list(check.missing_paths), list(check.extra_paths)]
found["exists"] = [api.file_exists(repo, "noise.bin"), api.file_exists(repo, "nothing")]
changes = [CommitOperationAdd("more.bin", b"\\0more"), CommitOperationDelete("config.json")]
offered = api.create_commit(repo, changes, commit_message="Offer", create_pr=True)
found["pull request"] = [offered.pr_num, offered.pr_revision]
api.merge_pull_request(repo, offered.pr_num)
found["after merge"] = sorted(api.list_repo_files(repo))
found["titles"] = [item.title for item in api.list_repo_commits(repo)]
"""


@pytest.mark.parametrize("xet", [False, True], ids=["lfs", "xet"])
def test_a_release_goes_through(hub: FaultyHub, tmp_path: Path, xet: bool) -> None:
    hub.forget_requests()
    # What one way has brought need not go the other.
    release = make_release(tmp_path / "release", seed=int(xet))
    repo = f"lab/journey-{xet}"
    found = run_client(hub, tmp_path / "home", JOURNEY, repo, release, xet=xet)
    downloaded = {
        path: data for path, data in snapshot(Path(found.pop("snapshot"))).items() if path != ".gitattributes"
    }
    assert downloaded == snapshot(release)
    files = found.pop("files")
    for path, data in snapshot(release).items():
        large = path.endswith((".bin", ".safetensors"))
        git = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
        assert files[path] == [len(data), hashlib.sha256(data).hexdigest() if large else git, xet and large]
    assert found == {
        "unchanged": True,
        "check": [0, [".gitattributes"], []],
        "exists": [True, False],
        "pull request": [1, "refs/pr/1"],
        "after merge": sorted({*snapshot(release), ".gitattributes", "more.bin"} - {"config.json"}),
        "titles": ["Offer (#1)", "All", "initial commit"],
    }
    log = hub.requests()
    assert any("/part/2" in item["path"] for item in log) != xet
    assert any("xet-read-token" in item["path"] for item in log) == xet
    page = ask(hub, "GET", f"/{repo}", token="").body
    assert (b">Xet<" in page, b">LFS<" in page) == (xet, not xet)
    # The token goes to the Hub alone, and not to where large files are; no secret is in the log.
    assert not any(item["authorized"] for item in log if item["path"].startswith(("/_files", "/_lfs")))
    assert not any(word in str(log) for word in ("signature=", hub.token()))
    # All three ways in which hf_xet packs chunks are read.
    for path in ("noise.bin", "words.bin", "transformer/weights.safetensors"):
        address, data = f"/{repo}/resolve/v1/{path}", (release / path).read_bytes()
        assert get_file(hub, address, token="").body == data
        assert get_file(hub, address, token="", headers={"Range": "bytes=7-99"}).body == data[7:100]


REFUSALS = """
nobody, wrong = HfApi(token=False), HfApi(token="hf_" + "x" * 34)
gated, new = "alice/gated", CommitOperationAdd("b", b"b")
first = api.model_info(gated).sha
def commit(*operations, **options):
    return api.create_commit(gated, operations or [CommitOperationAdd("a", b"a")], commit_message="A", **options)
commit()
calls = {
    "HfHubHTTPError 401 Invalid credentials": lambda: wrong.model_info("alice/secret"),
    "RepositoryNotFoundError 404 Repository": lambda: api.model_info("alice/nothing"),
    "RepositoryNotFoundError 404": lambda: api.model_info("gpt2"),
    "RepositoryNotFoundError 401": lambda: nobody.model_info("alice/secret"),
    "GatedRepoError 401": lambda: nobody.hf_hub_download(gated, "README.md"),
    "RevisionNotFoundError 404 Invalid rev id": lambda: api.model_info(gated, revision="nothing"),
    "RevisionNotFoundError 404": lambda: commit(revision=first, create_pr=True),
    "RevisionNotFoundError 404 nothing": lambda: commit(revision="nothing", create_pr=True),
    "RemoteEntryNotFoundError 404": lambda: api.hf_hub_download(gated, "nothing"),
    'RemoteEntryNotFoundError 404 A file with the name "b"': lambda: commit(CommitOperationDelete("b")),
    'RemoteEntryNotFoundError 404 A folder with the name "a"': lambda: commit(CommitOperationDelete("a/")),
    "HfHubHTTPError 409 Reference refs/tags/t already exists": lambda: [api.create_tag(gated, tag="t") for _ in "ab"],
    "HfHubHTTPError 409 Reference refs/heads/main already": lambda: api.create_branch(gated, branch="main"),
    "HfHubHTTPError 409 You already created this model repo": lambda: api.create_repo(gated),
    "HfHubHTTPError 409 A model repository called": lambda: api.move_repo(gated, "alice/secret"),
    "BadRequestError 400 Invalid reference for a branch": lambda: api.create_branch(gated, branch="refs/pr/5"),
    "HfHubHTTPError 403 Cannot delete refs/heads/main": lambda: api.delete_branch(gated, branch="main"),
    "RevisionNotFoundError 404 Invalid rev id: ": lambda: api.delete_branch(gated, branch="t"),
    "HfHubHTTPError 412 The branch was updated since you opened this page": lambda: commit(new, parent_commit=first),
    "HfHubHTTPError 422": lambda: commit(CommitOperationAdd("..\\\\a", b"a")),
    'BadRequestError 400 "expand" must be one of [author, ': lambda: api.model_info(gated, expand=["x"]),
    'BadRequestError 400 "expand" must be one of ': lambda: list(api.list_models(expand=["x"])),
    "HfHubHTTPError 501 this local Hub does not provide the filter apps": lambda: list(api.list_models(apps="x")),
}
for expected, call in calls.items():
    kind, status, words = (expected + " ").split(" ", 2)
    try:
        call()
    except Exception as error:
        same = words.strip() in str(error) and kind == type(error).__name__
        found[expected] = same and error.response.status_code == int(status) or repr(error)
"""


def test_refusals_are_those_that_the_client_knows(hub: FaultyHub, tmp_path: Path) -> None:
    for name, settings in (("secret", {"private": True}), ("gated", {"gated": "auto"})):
        assert ask(hub, "PUT", f"/api/models/{make_repo(hub, name)}/settings", settings).status == 200
    found = run_client(hub, tmp_path, REFUSALS)
    assert len(found) == REFUSALS.count("lambda")
    assert found == dict.fromkeys(found, True)


def test_of_two_commits_on_one_parent_one_wins(hub: FaultyHub) -> None:
    repo = make_repo(hub, "race")
    parent = head(hub, repo)

    def put(name: str) -> int:
        return commit(hub, repo, {name: b"x" * 300_000}, parentCommit=parent).status

    with ThreadPoolExecutor(6) as pool:
        assert sorted(pool.map(put, "abcdef")) == [200, *[412] * 5]
    assert len(ask(hub, "GET", f"/api/models/{repo}/commits/main").content) == 2


@pytest.mark.parametrize("way", ["upload", "duplicate"])
def test_a_commit_names_only_lfs_objects_of_its_own_repo(hub: FaultyHub, way: str) -> None:
    content = b"\0" + way.encode()
    owner, other = make_repo(hub, f"owner-{way}"), make_repo(hub, f"other-{way}")
    file, oid = lfs_file("a.bin", content), upload(hub, owner, content)
    wanted = {"oid": oid, "size": len(content)}
    assert commit(hub, owner, {}, file).status == 200
    refused = commit(hub, other, {}, file)
    assert refused.status == 400
    assert "pointed to a file that does not exist" in refused.content["error"]
    assert ask(hub, "POST", f"/{other}.git/info/lfs/verify", wanted).status == 404
    former, owner = owner, f"lab/{way}"
    assert ask(hub, "POST", "/api/repos/move", {"fromRepo": former, "toRepo": owner}).status == 200
    assert commit(hub, owner, {}, lfs_file("b.bin", content)).status == 200
    if way == "duplicate":
        target = {"target": {"type": "model", "name": other}, "files": [{"sha256": oid}, {"sha256": "0" * 64}]}
        answer = ask(hub, "POST", f"/api/models/{owner}/lfs-files/duplicate", target).content
        assert answer["failed"] == [{"sha256": "0" * 64, "error": "File not found"}]
    else:
        assert upload(hub, other, content) == oid
    assert ask(hub, "POST", f"/{other}.git/info/lfs/verify", wanted).status == 200
    # What one repo removes, others keep, even if they have not committed it yet.
    unwanted = {"deletions": {"sha": [oid], "rewriteHistory": True}}
    assert ask(hub, "POST", f"/api/models/{owner}/lfs-files/batch", unwanted).status == 200
    assert commit(hub, owner, {}, file).status == 400
    assert commit(hub, other, {}, file).status == 200
    assert get_file(hub, f"/{other}/resolve/main/a.bin").body == content
    assert ask(hub, "POST", f"/api/models/{other}/lfs-files/batch", unwanted).status == 200
    assert not list(hub.settings.folder.rglob(oid))
