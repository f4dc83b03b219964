"""Limits of the system: files that may be open, threads and processes, and memory."""

from __future__ import annotations

import errno
import os
import resource
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
