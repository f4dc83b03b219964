"""The local Hub: huggingface_hub works on it as it is, and it refuses what huggingface.co refuses."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from converter.errors import UsageError
from converter.presentation.card.metadata import MetadataReport
from converter.rehearsal.card_metadata import check_card
from converter.rehearsal.settings import Account
from tests.conftest import snapshot
from tests.faulty_hub import FaultyHub
from tests.hubs import CARD, ask, commit, get_file, head, make_repo, run_client


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
def additions():
    return [CommitOperationAdd(str(path.relative_to(folder)), str(path)) for path in paths]
made = api.create_commit(repo, additions(), commit_message="All", parent_commit=first)
found["head"] = made.oid == api.model_info(repo).sha
found["unchanged"] = api.create_commit(repo, additions(), commit_message="Again").oid == made.oid
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
asked = {**build_hf_headers(), "Range": "bytes=1000000-1000099"}
part = get_session().get(address, headers=asked, follow_redirects=True)
found["part"] = [part.status_code, part.headers["content-range"], part.content.hex()]
found["exists"] = [api.file_exists(repo, "noise.bin"), api.file_exists(repo, "nothing")]
changes = [CommitOperationAdd("more.bin", b"\\0more"), CommitOperationDelete("config.json")]
offered = api.create_commit(repo, changes, commit_message="Offer", create_pr=True)
found["pull request"] = [offered.pr_num, offered.pr_revision]
found["before merge"] = api.model_info(repo).sha == made.oid
api.merge_pull_request(repo, offered.pr_num)
found["after merge"] = sorted(api.list_repo_files(repo))
draft = api.create_pull_request(repo, "A draft")
changes = [CommitOperationAdd("draft.txt", b"draft")]
api.create_commit(repo, changes, commit_message="Draft", revision=draft.git_reference)
found["draft"] = [draft.status, api.change_discussion_status(repo, draft.num, "open").new_status]
asked = dict(discussion_type="pull_request", discussion_status="open", author="alice")
found["offers"] = [[item.num, item.status] for item in api.get_repo_discussions(repo, **asked)]
details = api.get_discussion_details(repo, 1)
found["details"] = [details.status, details.target_branch, [event.type for event in details.events]]
slim = api.model_info(repo, expand=["private"])
found["slim"] = [slim.private, slim.sha, slim.siblings]
api.create_branch(repo, branch="side", revision="v1")
refs = api.list_repo_refs(repo, include_pull_requests=True)
found["refs"] = [[ref.name for ref in part] for part in (refs.branches, refs.tags, refs.pull_requests)]
found["titles"] = [item.title for item in api.list_repo_commits(repo)]
"""


@pytest.mark.parametrize("xet", [False, True], ids=["lfs", "xet"])
def test_a_release_goes_through(hub: FaultyHub, tmp_path: Path, xet: bool) -> None:
    hub.forget_requests()
    # What one way has brought need not go the other.
    release = make_release(tmp_path / "release", seed=int(xet))
    repo = f"lab/journey-{xet}"
    found = run_client(hub, tmp_path / "home", JOURNEY, repo, release, xet=xet)
    downloaded = {path: data for path, data in snapshot(Path(found["snapshot"])).items() if path != ".gitattributes"}
    assert downloaded == snapshot(release)
    for path, data in snapshot(release).items():
        size, identity, is_xet = found["files"][path]
        assert size == len(data)
        large = path.endswith((".bin", ".safetensors"))
        assert is_xet == (xet and large)
        git = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
        assert identity == (hashlib.sha256(data).hexdigest() if large else git)
    noise = (release / "noise.bin").read_bytes()
    assert {name: value for name, value in found.items() if name not in ("snapshot", "files")} == {
        "who": "alice",
        **dict.fromkeys(("head", "unchanged", "changed in", "before merge"), True),
        "check": [0, [".gitattributes"], []],
        "part": [206, "bytes 1000000-1000099/1300001", noise[1_000_000:1_000_100].hex()],
        "exists": [True, False],
        "pull request": [1, "refs/pr/1"],
        "after merge": sorted({*snapshot(release), ".gitattributes", "more.bin"} - {"config.json"}),
        "draft": ["draft", "open"],
        "offers": [[2, "open"]],
        "details": ["merged", "refs/heads/main", ["comment", "commit", "status-change"]],
        "slim": [False, None, None],
        "refs": [["main", "side"], ["v1"], ["pr/1", "pr/2"]],
        "titles": ["Offer (#1)", "All", "initial commit"],
    }
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


def _check_ranges(hub: FaultyHub, path: str, content: bytes) -> None:
    for first, last in ((0, len(content) - 1), (65_000, 200_001), (len(content) - 1, len(content) - 1)):
        found = get_file(hub, f"/{path}", headers={"Range": f"bytes={first}-{last}"}, token="")
        assert (found.status, found.body) == (206, content[first : last + 1])


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


def test_refusals_are_those_that_the_client_knows(hub: FaultyHub, tmp_path: Path) -> None:
    make_repo(hub, "secret", visibility="private")
    make_repo(hub, "gated")
    make_repo(hub, "shared", "lab")
    for name in ("secret", "gated"):
        assert commit(hub, f"alice/{name}", {"README.md": CARD}).status == 200
    assert ask(hub, "PUT", "/api/models/alice/gated/settings", {"gated": "auto"}).status == 200
    tokens = json.dumps({account.name: account.token for account in hub.settings.accounts})
    found = run_client(hub, tmp_path, REFUSALS, TOKENS=tokens)
    assert found.pop("files") == [".gitattributes", ".gitignore", "README.md"]
    kinds: dict[str, set[str]] = {}
    for name, (kind, status, _) in found.items():
        kinds.setdefault(f"{kind} {status}", set()).add(name)
    expected = {
        " 200": "other gated info, nobody gated info, own private, own gated, other offer, other own offer, ignored, "
        "reader read",
        "HfHubHTTPError 401": "wrong who, wrong model",
        "HfHubHTTPError 403": "other commit, other merge, create, reader commit, reader tag, reader auth",
        "HfHubHTTPError 409": "tag",
        "HfHubHTTPError 412": "stale",
        "RepositoryNotFoundError 404": "missing, other private",
        "RepositoryNotFoundError 401": "nobody private",
        "GatedRepoError 403": "other gated",
        "GatedRepoError 401": "nobody gated",
        "RevisionNotFoundError 404": "revision",
        "RemoteEntryNotFoundError 404": "entry, delete",
        "ValueError 0": "card",
        "BadRequestError 400": "secret",
    }
    assert kinds == {kind: set(names.split(", ")) for kind, names in expected.items()}
    assert "use a write token" in found["reader commit"][2]
    assert "A commit has happened since" in found["stale"][2]
    assert "license 3 is not text" in found["card"][2]
    assert "valid Hugging Face secrets" in found["secret"][2]


def test_cards_without_metadata_are_warned_of() -> None:
    for card in ("# Card\n", "", "---\n---\n", "----\na: 1\n----\n"):
        assert check_card(card) == MetadataReport((), ("empty or missing yaml metadata in repo card",))
    assert check_card(CARD.decode()) == MetadataReport()


def test_hostile_requests_are_refused(hub: FaultyHub) -> None:
    repo = make_repo(hub, "hostile")
    before = head(hub, repo)
    for path in (
        "../x",
        "/etc/passwd",
        "a//b",
        "a/../b",
        ".git/config",
        "a/.GIT/b",
        "a\0b",
        "a\\b",
        "",
        "a/",
        "x" * 2000,
    ):
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
    ):
        assert ask(hub, "GET", path).status in (400, 403, 404, 405), path
    assert ask(hub, "POST", "/api/repos/create", b'{"name": "' + b"x" * 9_000_000 + b'"}').status == 413
    for body in (b"{", b"[]", b"[" * 100_000, b"\xff", b'{"key": 1}\n{}'):
        assert ask(hub, "POST", "/api/repos/create", body).status == 400
        assert ask(hub, "POST", f"/api/models/{repo}/commit/main", body).status == 400
        assert ask(hub, "POST", f"/{repo}.git/info/lfs/objects/batch", body).status == 400
    for item in ("x", {"oid": "../../x", "size": 1}):
        batch = {"operation": "upload", "objects": [item]}
        assert ask(hub, "POST", f"/{repo}.git/info/lfs/objects/batch", batch).status == 400
    assert ask(hub, "GET", f"/{repo}", headers={"Host": "evil.example"}).status == 400
    for path in ("tree/main?cursor=-1", "discussions?p=x", f"discussions/{'9' * 5000}"):
        assert ask(hub, "GET", f"/api/models/{repo}/{path}").status == 400, path
    assert head(hub, repo) == before


NOT_PROVIDED = """
GET /, GET /api/datasets, GET /api/spaces/alice/shown/tree/main, GET /datasets/alice/shown, PATCH /api/whoami-v2,
GET /spaces/alice/shown/resolve/main/a.txt, GET /alice/shown/commits/main, GET /alice/shown/discussions,
POST /api/models/alice/shown/super-squash/main, POST /api/models/alice/shown/discussions/1/comment,
POST /api/models/alice/shown/discussions/1/title, POST /datasets/alice/shown.git/info/lfs/objects/batch
"""


@pytest.mark.parametrize("line", " ".join(NOT_PROVIDED.split()).split(", "))
def test_what_the_hub_does_not_provide_is_named(hub: FaultyHub, line: str) -> None:
    answer = ask(hub, *line.split())
    message = f"this local Hub does not provide {line}; it serves model repos only"
    assert (answer.status, answer.content["error"], answer.headers["x-error-message"]) == (404, message, message)


def test_kinds_and_names_that_are_refused(hub: FaultyHub) -> None:
    repo = make_repo(hub, "kinds")
    made = ask(hub, "POST", "/api/repos/create", {"name": "data", "type": "dataset"})
    assert (made.status, "repos of type dataset" in made.content["error"]) == (404, True)
    again = ask(hub, "POST", "/api/repos/create", {"name": "Kinds"})
    assert (again.status, again.content["url"]) == (409, f"{hub.endpoint}/alice/Kinds")
    opened = ask(hub, "POST", f"/api/models/{repo}/discussions", {"title": "A question"})
    assert (opened.status, "does not provide discussions" in opened.content["error"]) == (404, True)
    with pytest.raises(UsageError, match="api: not a valid name"):
        Account.new("api")


def test_of_two_commits_on_one_parent_one_wins(hub: FaultyHub) -> None:
    repo = make_repo(hub, "race")
    parent = head(hub, repo)

    def put(name: str) -> int:
        return commit(hub, repo, {name: b"x" * 300_000}, parentCommit=parent).status

    with ThreadPoolExecutor(6) as pool:
        assert sorted(pool.map(put, "abcdef")) == [200, *[412] * 5]
    assert len(ask(hub, "GET", f"/api/models/{repo}/commits/main").content) == 2


def test_merging_refuses_conflicts(hub: FaultyHub) -> None:
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
