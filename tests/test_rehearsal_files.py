"""Files on the local Hub: how they are kept, and how much memory that takes."""

from __future__ import annotations

import re
from pathlib import Path

from converter.rehearsal.modes import GITATTRIBUTES, is_ignored, is_lfs
from tests.conftest import run_program
from tests.faulty_hub import FaultyHub
from tests.hubs import make_repo, upload


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
