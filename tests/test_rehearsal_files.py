"""Files on the local Hub: how they are kept, and how much memory that takes."""

from __future__ import annotations

import asyncio
import re
import struct
from pathlib import Path

import lz4.frame
import pytest

from converter.rehearsal.commit_api import Draft, _add_file, _check
from converter.rehearsal.database import Database
from converter.rehearsal.hub import Hub
from converter.rehearsal.modes import GITATTRIBUTES, is_ignored, is_lfs
from converter.rehearsal.replies import Refusal
from converter.rehearsal.repos import Repo, lfs_entry
from converter.rehearsal.settings import HubSettings
from converter.rehearsal.xet import XetStore
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


def test_a_commit_has_limits(tmp_path: Path) -> None:
    hub, draft = Hub(HubSettings(tmp_path), 1), Draft("A commit", "", "", regular_bytes=10**9 - 1)
    repo = Repo.create(hub.database, "alice", "a", private=False)
    asyncio.run(_add_file(hub, draft, "last.txt", {"content": "x"}))
    with pytest.raises(Refusal, match="Payload too large"):
        asyncio.run(_add_file(hub, draft, "more.txt", {"content": "x"}))
    draft.files = {str(number): lfs_entry(str(number), "0" * 64, 1) for number in range(25_000)}
    with pytest.raises(Refusal, match="a file that does not exist"):
        _check(hub, repo, draft)
    draft.files["more.bin"] = lfs_entry("more.bin", "0" * 64, 1)
    with pytest.raises(Refusal, match="at most 25000 LFS files"):
        _check(hub, repo, draft)
    hub.database.connection.close()


def test_the_beginning_of_a_commit_id_names_one_commit(tmp_path: Path) -> None:
    database = Database(tmp_path)
    repo = Repo.create(database, "alice", "a", private=False)
    ids = [start.ljust(40, "0") for start in ("abcd1", "abcd2", "beef")]
    for oid in ids:
        values = (repo.number, oid, "", "A commit", "", "alice", repo.created)
        database.execute("INSERT INTO commits VALUES (?, ?, ?, ?, ?, ?, ?)", *values)
    assert [repo.resolve(start) for start in ("abcd1", "abcd20", "beef")] == ids
    for unclear in ("abcd", "abc", "bee", "BEEF", "abcd3", "beef*"):
        with pytest.raises(Refusal, match="Invalid rev id"):
            repo.resolve(unclear)
    repo.point("refs/heads/beef", ids[0])
    assert repo.resolve("beef") == ids[0]
    database.connection.close()


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
    # The last line that matches decides.
    later = "*.bin filter=lfs\n\nsmall.bin -filter\nodd.bin filter=lfs !filter\n"
    assert [is_lfs(name, 1, b"x", later) for name in ("a.bin", "small.bin", "odd.bin")] == [True, False, False]


def test_what_hf_xet_stores_is_read_in_any_range(tmp_path: Path) -> None:
    """A file of several runs of chunks, in xorbs that pack them in all three ways."""
    store, folder = XetStore(tmp_path), tmp_path / "xet" / "xorbs"
    (folder / "shards").mkdir(parents=True)
    (folder / "xorbs").mkdir()

    def name(letter: str) -> str:
        return "".join(f"{number:016x}" for number in struct.unpack("<4Q", letter.encode() * 32))

    def write_xorb(letter: str, *chunks: tuple[int, bytes]) -> Path:
        content = b""
        for packing, data in chunks:
            grouped = b"".join(data[first::4] for first in range(4)) if packing == 2 else data
            packed = lz4.frame.compress(grouped) if packing else data
            sizes = (len(packed).to_bytes(3, "little"), bytes([packing]), len(data).to_bytes(3, "little"))
            content += b"\0" + b"".join(sizes) + packed
        (folder / "xorbs" / f"default.{name(letter)}").write_bytes(content + b"XETBLOB and more")
        return folder / "xorbs" / f"default.{name(letter)}"

    def record(letter: str, flags: int, *terms: tuple[str, int, int, int]) -> bytes:
        rows = [struct.pack("<32sIIII", xorb.encode() * 32, 0, *rest) for xorb, *rest in terms]
        more = [bytes(48)] * (len(terms) if flags & 0x80000000 else 0)
        sha256 = [letter.upper().encode() * 32 + bytes(16)] if flags & 0x40000000 else []
        return b"".join([struct.pack("<32sIIQ", letter.encode() * 32, flags, len(terms), 0), *rows, *more, *sha256])

    first = write_xorb("a", (0, b"01234"), (1, b"abcdefghij"), (2, b"ABCDEFGHIJK"))
    write_xorb("b", (0, b"xyz"))
    records = record("f", 0xC0000000, ("a", 21, 1, 3), ("b", 3, 0, 1), ("a", 5, 0, 1)) + record("g", 0, ("b", 3, 0, 1))
    shard = bytes(48) + records + record("h", 0x40000000, ("b", 3, 0, 1))
    (folder / "shards" / "x.mdb").write_bytes(shard[:-20])
    assert store.find(name("H")) is None
    (folder / "shards" / "x.mdb").write_bytes(shard + b"\xff" * 32 + bytes(16))
    file, content = store.find(name("F")), b"abcdefghijABCDEFGHIJKxyz01234"
    assert file is not None
    assert (file.xet_hash, file.size, set(store.files)) == (name("f"), len(content), {name("F"), name("H")})
    for start in range(len(content) + 1):
        for stop in range(start, len(content) + 1):
            assert b"".join(store.read(file, start, stop)) == content[start:stop]
    first.write_bytes(first.read_bytes()[:5] + b"\6" + first.read_bytes()[6:])
    with pytest.raises(ValueError, match="damaged"):
        list(XetStore(tmp_path).read(file, 24, 29))
    first.write_bytes(b"\0" * 7)
    with pytest.raises(ValueError, match="cut off"):
        store.chunks(name("a"))
    first.unlink()
    assert store.find(name("F")) is None
    assert store.find(name("H")) is not None
