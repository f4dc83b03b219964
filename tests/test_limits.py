"""Limits of the system: files that may be open, threads and processes, and memory."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from converter.checkpoint.open_files import IDLE_FILES, OpenFiles
from converter.cli import main as main_module
from converter.errors import MemoryLimitError, ResourceError
from tests.conftest import call, names_in, run_process, run_python
from tests.tiny_models import save_model


def open_files(soft: int, hard: int) -> Callable[[], None]:
    """What limits the open files of a process before it runs."""
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.long
def test_more_shards_than_files_that_may_be_open(tmp_path: Path) -> None:
    source = save_model(tmp_path / "source", "LensTransformer2DModel", shard="1KB")
    assert len(list(source.glob("*.safetensors"))) > 40

    def limited(*arguments: object) -> subprocess.CompletedProcess[str]:
        return run_process(*arguments, preexec_fn=open_files(40, 40))

    made = limited("convert", source, tmp_path / "out", "--max-shard-size", "1")
    assert made.returncode == 0, made.stderr
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 40
    compared = limited("verify", tmp_path / "out", "--checksums", "--against", source)
    assert compared.returncode == 0, compared.stderr


def test_a_few_files_stay_open_and_none_is_closed_before_it_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_ino))
    before = names_in(Path("/proc/self/fd"))
    files = OpenFiles(os.O_RDWR | os.O_CREAT, synced=True)
    for number in range(IDLE_FILES + 3):
        with files.opened(tmp_path / f"{number}"), files.opened(tmp_path / "0"):
            pass
    assert len(names_in(Path("/proc/self/fd"))) == len(before) + IDLE_FILES
    # The first one was used by two at the same time.
    assert synced == [(tmp_path / name).stat().st_ino for name in ("0", "1", "2", "3")]
    files.close()
    assert names_in(Path("/proc/self/fd")) == before


def test_too_few_files_that_may_be_open(lens_source: Path, tmp_path: Path) -> None:
    refused = run_process("convert", lens_source, tmp_path / "out", preexec_fn=open_files(6, 6))
    assert refused.returncode == 3
    assert refused.stderr.endswith("Too many open files. Raise the limit on open files, ulimit -n, above 6.\n")
    assert list(tmp_path.iterdir()) == []


def test_a_command_may_open_as_many_files_as_its_user() -> None:
    program = (
        "import resource, sys; from converter.cli import main\n"
        "main.run = lambda *_: resource.getrlimit(resource.RLIMIT_NOFILE)[0]; main.main([])"
    )
    assert run_python(program, preexec_fn=open_files(20, 77)).returncode == 77


@pytest.mark.parametrize(
    ("error", "kind", "hint"),
    [
        (OSError(errno.EMFILE, "Too many open files"), ResourceError, "ulimit -n"),
        (OSError(errno.ENFILE, "Too many open files in system"), ResourceError, "fs.file-max"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), MemoryLimitError, "Close other programs"),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), ResourceError, "ulimit -u"),
        (RuntimeError("can't start new thread"), ResourceError, "ulimit -u"),
    ],
)
def test_what_the_machine_lacks_is_not_a_fault_of_the_input(
    error: Exception, kind: type[ResourceError], hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def command(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(main_module.cli, "main", command)
    outcome = call("verify", "x", "--json")
    assert (outcome.code, outcome.result["error"]["type"]) == (3, kind.__name__)
    assert hint in outcome.result["error"]["hint"]


#: A command whose control groups are files of the test.
IN_GROUP = """
import sys
from pathlib import Path
from converter import memory
root = Path(sys.argv[1])
memory._OWN_CGROUP, memory._CGROUPS, memory._MEMINFO = root / "own", root, root / "meminfo"
from converter.cli.main import main
main(sys.argv[2:])
"""
#: The files of two groups, one in the other, in both versions of control groups; the outer one has the lower limit.
GROUPS = {
    "0::/a/b\n": ("memory.max", "memory.current", ""),
    "0::/\n4:memory:/a/b\n": ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory/"),
}
WORDS = {
    "convert": "this conversion takes at least ",
    "plan": "importing torch and the libraries that it works with takes at least 262.0 MB",
    "generate": "importing torch and the libraries that it works with takes at least 330.0 MB",
    "synth": "importing torch and the libraries that it works with takes at least 262.0 MB",
    "verify": "importing torch and the libraries that it works with takes at least 290.0 MB",
}


def make_groups(root: Path, own: str, allowed: int) -> Path:
    """Write the files of two groups, and those of a machine without swap; returns the file with the lower limit."""
    limit, usage, prefix = GROUPS[own]
    for group, size in (("a/b", 2 * allowed), ("a", allowed)):
        folder = root / f"{prefix}{group}"
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in ((limit, f"{size}"), (usage, "30000000"), ("memory.stat", "file 0\ntotal_cache 0\n")):
            (folder / file).write_text(text)
    (root / "own").write_text(own)
    (root / "meminfo").write_text("MemAvailable: 9000000 kB\nSwapFree: 0 kB\n")
    return root / f"{prefix}a" / limit


@pytest.mark.parametrize("own", GROUPS)
@pytest.mark.parametrize("name", WORDS)
def test_work_that_a_control_group_would_kill_is_refused(
    own: str, name: str, tiny_release: Path, lens_source: Path, lens_output: Path, tmp_path: Path
) -> None:
    place = make_groups(tmp_path / "groups", own, 235_000_000)
    output = tmp_path / "out.png"
    arguments = {
        "convert": (lens_source, output),
        "plan": (lens_source,),
        "generate": (tiny_release, "--prompt", "x", "--out", output),
        "synth": (output, "--preset", "tiny"),
        "verify": (lens_output, "--against", lens_source),
    }[name]
    done = run_python(IN_GROUP, tmp_path / "groups", name, *arguments)
    assert done.returncode == 3, done.stderr
    assert done.stderr.startswith(f"error: {WORDS[name]}")
    assert f", but only 205.0 MB are free ({place} allows 235.0 MB)" in done.stderr
    assert names_in(tmp_path) == ["groups"]


#: How the work of a command in a limited group ends, with the exit code and the beginning of what is printed then.
ENDS = {
    "os.kill(os.getpid(), signal.SIGKILL)": (
        3,
        "error: the system killed this command, most likely because the memory",
    ),
    "os.kill(os.getpid(), signal.SIGSEGV)": (-signal.SIGSEGV, ""),
    "os.kill(os.getppid(), signal.SIGTERM), time.sleep(60)": (130, "error: interrupted"),
    "os.kill(os.getppid(), signal.SIGKILL), time.sleep(60)": (-signal.SIGKILL, ""),
    "sys.exit(4)": (4, ""),
}


@pytest.mark.parametrize("work", ENDS)
def test_a_kill_in_a_limited_group_is_explained(work: str, tmp_path: Path) -> None:
    place = make_groups(tmp_path, "0::/a/b\n", 400_000_000)
    begin = f"import os, signal, time, click\nclick.Group.main = lambda *_, **__: ({work})\n"
    done = run_python(begin + IN_GROUP, tmp_path, "plan", "x", timeout=20)
    code, printed = ENDS[work]
    assert done.returncode == code
    assert done.stderr.startswith(printed) if printed else not done.stderr
    assert (f"({place} allows 400.0 MB). Raise the limit" in done.stderr) == (code == 3)
