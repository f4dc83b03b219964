"""Files on the local Hub: uploaded, stored, and downloaded in ranges."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from converter.rehearsal.modes import GITATTRIBUTES, is_ignored, is_lfs
from tests.conftest import run_program
from tests.faulty_hub import FaultyHub
from tests.hubs import announce, ask, commit, head, lfs_file, make_repo, upload


def test_objects_must_be_stored_before_they_are_committed(hub: FaultyHub) -> None:
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


def test_what_is_uploaded_is_what_was_announced(hub: FaultyHub) -> None:
    repo = make_repo(hub, "announced")
    content = b"\0" * 500_000
    path = announce(hub, repo, content)["actions"]["upload"]["href"].partition("/_lfs")[2]
    for sent in (content[1:], b"\1" + content[1:], content + b"\0"):
        assert ask(hub, "PUT", f"/_lfs{path}", sent, token="").status == 400
    assert ask(hub, "PUT", f"/_lfs{path[:-1]}!", content, token="").status == 403
    assert "actions" in announce(hub, repo, content)
    assert ask(hub, "PUT", f"/_lfs{path}", content, token="").headers["etag"]
    assert "actions" not in announce(hub, repo, content)
    assert not list((hub.settings.folder / "incoming").iterdir())


def test_parts_must_make_up_what_was_announced(hub: FaultyHub) -> None:
    repo, content = make_repo(hub, "parts"), b"\3" * 1_000_001
    sha256 = hashlib.sha256(content).hexdigest()

    def place(address: str) -> str:
        return "/_lfs" + address.partition("/_lfs")[2]

    for last, status in ((b"\4" * 200_001, 400), (b"\3" * 200_001, 200)):
        action = announce(hub, repo, content, "multipart")["actions"]["upload"]
        pieces = {"1": content[:400_000], "2": content[:400_000], "3": last}
        tags = [ask(hub, "PUT", place(action["header"][number]), pieces[number], token="") for number in pieces]
        parts = [{"partNumber": number, "etag": answer.headers["etag"]} for number, answer in enumerate(tags, start=1)]
        assert ask(hub, "PUT", place(action["header"]["3"]), b"short", token="").status == 400
        assert ask(hub, "POST", place(action["href"]), {"oid": sha256, "parts": parts[1:]}).status == 400
        assert ask(hub, "PUT", place(action["header"]["3"]), last, token="").status == 200
        assert ask(hub, "POST", place(action["href"]), {"oid": sha256, "parts": parts}).status == status
    for size, status in ((len(content), 200), (1, 404)):
        assert ask(hub, "POST", f"/{repo}.git/info/lfs/verify", {"oid": sha256, "size": size}).status == status


def test_ranges(hub: FaultyHub) -> None:
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


def test_large_uploads_need_little_memory(hub: FaultyHub) -> None:
    repo = make_repo(hub, "large")

    def memory(kind: str) -> int:
        status = Path("/proc", str(hub.process.pid), "status").read_text()
        return int(re.findall(rf"{kind}:\s+(\d+) kB", status)[0])

    # Forgets the highest use so far.
    Path("/proc", str(hub.process.pid), "clear_refs").write_text("5")
    before = memory("VmRSS")
    upload(hub, repo, b"\7" * 150_000_000)
    assert memory("VmHWM") - before < 60_000


def test_rules_of_git_mean_what_git_says(tmp_path: Path) -> None:
    rules = "*.log\n!keep.log\n/top.txt\nbuild/\ndocs/**/x.txt\n# no\na?c\n[ab].md\n"
    paths = [
        "a.log", "d/a.log", "keep.log", "top.txt", "d/top.txt", "build/x", "d/build/x", "build", "docs/x.txt",
        "docs/a/b/x.txt", "abc", "abbc", "a.md", "c.md", "x/b.md", "saved_model/a/b", "saved_model/a", "x.safetensors",
        "d/y.bin", "z.tar.gz", "tfevents.1", "my.tfevents.2", "README.md", "folder.bin/x.txt", "folder.bin/y.bin",
    ]  # fmt: skip
    run_program("git", "init", "-q", tmp_path, check=True)
    (tmp_path / ".gitignore").write_text(rules)
    (tmp_path / ".gitattributes").write_bytes(GITATTRIBUTES)

    def git(*arguments: str) -> list[str]:
        done = run_program("git", *arguments, cwd=tmp_path, input="\n".join(paths), check=True)
        return done.stdout.splitlines()

    assert [path for path in paths if is_ignored(path, rules)] == git("check-ignore", "--stdin")
    attributes = git("check-attr", "--stdin", "filter")
    expected = [line.split(":")[0] for line in attributes if line.endswith(" lfs")]
    assert [path for path in paths if is_lfs(path, 1, b"x", GITATTRIBUTES.decode())] == expected
    assert is_lfs("a.txt", 11 * 2**20, b"x", "")
    assert is_lfs("a.png", 1, b"\x89PNG\0", "")
    assert not is_lfs("a.txt", 512, b"x" * 511 + b"\xc3", "")
    assert not is_lfs("a.bin", 0, b"", GITATTRIBUTES.decode())
