"""Everything in the corpus of bad input is refused: one line, its exit code, and nothing left behind."""

from __future__ import annotations

import json
import os
import stat
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from converter import errors
from tests.conftest import ROOT, TIME_LIMIT, Outcome, call, command, obey_permissions, run_program, time_limit
from tests.malformed import CASES
from tests.malformed.site import IN_PROCESS, KEPT, QUANTIZED, Case, Invocation, Site, Stored, edit_lens, plant
from tests.tiny_models import save_model

#: Cases that are run as commands of their own as well, so that what a process adds is covered once.
AS_PROCESS = (
    *("header-length-18446744073709551615", "header-name-hostile", "index-shard-'../secret.safetensors'"),
    *("output-is-a-folder", "pickle-is-a-pipe", "usage-unknown-option"),
)
#: File modes and sizes, link targets and times of everything below a folder, by path.
Snapshot = dict[str, tuple[Any, ...]]


def _with_json(arguments: tuple[str, ...]) -> tuple[str, ...]:
    """Ask for JSON right after the command, where no option takes it for its value."""
    return (arguments[0], "--json", *arguments[1:])


def run_here(*arguments: str) -> Outcome:
    """Run the command in this process."""
    with time_limit():
        return call(*arguments)


def run_process(*arguments: str, before: tuple[str, ...] = (), **options: Any) -> Outcome:
    """Run the command as a process of its own, which another command may start."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    line = (*before, *command(*arguments))
    finished = run_program(*line, timeout=3 * TIME_LIMIT, env=environment, stdin=subprocess.DEVNULL, **options)
    return Outcome(finished.returncode, finished.stdout, finished.stderr)


def take_snapshot(site: Site) -> Snapshot:
    """What lies below the root of a case.

    Times of folders count in the source alone: a staging folder that came and went touches the folder it was in.
    """
    found: Snapshot = {}
    for place, folders, files in os.walk(site.root):
        for path in (Path(place) / name for name in (*folders, *files)):
            status = path.lstat()
            is_folder = stat.S_ISDIR(status.st_mode)
            found[str(path.relative_to(site.root))] = (
                status.st_mode,
                status.st_ino,
                0 if is_folder else status.st_size,
                status.st_mtime_ns if not is_folder or path.is_relative_to(site.source) else 0,
                path.readlink() if path.is_symlink() else None,
            )
    return found


def check_refusal(case: Case, outcome: Outcome, *, is_json: bool) -> None:
    """Check what a refused command said."""
    assert "Traceback" not in outcome.stdout + outcome.stderr
    assert outcome.code == case.exit_code
    if is_json:
        payload = json.loads(outcome.stdout)
        assert payload.keys() == {"error"}
        error = payload["error"]
        assert error.keys() == {"type", "message", "hint"}
        assert issubclass(getattr(errors, error["type"]), getattr(errors, case.error)), error["type"]
        assert error["message"]
        assert (error["message"] + error["hint"]).isprintable(), "control characters or several lines"
        for fragment in case.message:
            assert fragment in error["message"]
        for fragment in case.hint:
            assert fragment in error["hint"]
    else:
        assert outcome.stdout == ""
        assert outcome.stderr.startswith("error: ")
        assert outcome.stderr.endswith("\n")
        assert outcome.stderr[:-1].isprintable(), "control characters or several lines"


@pytest.fixture(scope="session")
def lens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A valid Lens checkpoint of one block, not to be changed."""
    return save_model(tmp_path_factory.mktemp("lens"), "LensTransformer2DModel", num_layers=1)


@pytest.fixture
def site(tmp_path: Path, lens: Path) -> Site:
    """An empty folder for one case."""
    (tmp_path / "work").mkdir()
    return Site(tmp_path, lens)


def check_case(case: Case, site: Site, run: Callable[..., Outcome]) -> None:
    """Run a case for programs and for people: it is refused, and nothing changes."""
    invocation = case.prepare(site)
    before = take_snapshot(site)
    for is_json in (True, False):
        outcome = run(*(_with_json(invocation.arguments) if is_json else invocation.arguments))
        check_refusal(case, outcome, is_json=is_json)
        assert take_snapshot(site) == before


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_bad_input_is_refused(case: Case, site: Site, capfd: pytest.CaptureFixture[str]) -> None:
    check_case(case, site, run_here)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", AS_PROCESS)
def test_bad_input_is_refused_by_a_process(name: str, site: Site) -> None:
    check_case(CASES[name], site, run_process)


def test_pickle_would_have_left_a_mark(site: Site) -> None:
    """The bait of the cases works: whoever unpickles it is found out."""
    import pickle

    CASES["pickle-that-runs-code"].prepare(site)
    before = take_snapshot(site)
    pickle.loads((site.source / "diffusion_pytorch_model.bin").read_bytes())  # noqa: S301 - our own
    assert take_snapshot(site) != before


def test_device_that_is_not_there(site: Site) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    site.copy_lens()
    for options in ((), IN_PROCESS):
        refuse(site, site.convert("--device", "cuda", *options), "DeviceError", "cuda")


def convert_here(site: Site, *options: str, **places: Path) -> Outcome:
    """Convert in this process what is good."""
    outcome = run_here(*_with_json(site.convert(*options, *IN_PROCESS, **places).arguments))
    assert outcome.code == 0, outcome.stdout
    return outcome


def test_largest_number_of_bfloat16_is_no_flaw(site: Site) -> None:
    (largest,) = struct.unpack("<f", b"\x00\x00\x7f\x7f")

    def edit(tensors: dict[str, Stored]) -> None:
        plant(tensors[QUANTIZED], largest, 0)
        plant(tensors[KEPT], -largest, 0)

    edit_lens(site, edit)
    assert convert_here(site).result["nonfinite"] == {}


def test_unquantized_model_with_its_pickle_beside_it_converts(site: Site) -> None:
    """A pickle that nobody needs is left alone: neither opened nor copied."""
    os.mkfifo(site.copy_lens() / "diffusion_pytorch_model.bin")
    convert_here(site)
    assert not (site.output / "diffusion_pytorch_model.bin").exists()


@pytest.mark.parametrize("glob", ["?ransformer_blocks.*.img_mod.*", "*.img_mod.[z-a1]", "*.img_mo[!x].1"])
def test_globs_that_are_no_regular_expressions(glob: str, site: Site) -> None:
    """A glob may look like a broken regular expression, which is what SDNQ would take it for."""
    site.copy_lens()
    convert_here(site, "--set", f"{glob}=keep")


@contextmanager
def mounted(place: Path, options: str) -> Iterator[Path]:
    """A file system of its own in memory; skips the test where none can be mounted."""
    place.mkdir()
    mount = run_program("mount", "-t", "tmpfs", "-o", options, "tmpfs", place)
    if mount.returncode:
        pytest.skip(f"cannot mount a file system: {mount.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def refuse(site: Site, invocation: Invocation, error: str, *message: str) -> None:
    """Run a command that must be refused, and look for what it leaves."""
    before = take_snapshot(site)
    outcome = run_here(*_with_json(invocation.arguments))
    check_refusal(Case("", Site.convert, error, message), outcome, is_json=True)
    assert take_snapshot(site) == before


@pytest.mark.parametrize(
    ("disk", "output", "options", "error", "message"),
    [
        ("size=8m", "disk/out", (), "DiskError", "bytes are needed"),
        # Nodes for the folder itself, the staging folder, the release, the journal and the weights, and for no config.
        ("size=64m,nr_inodes=5", "disk/out", IN_PROCESS, "DiskError", "No space left on device"),
        ("ro", "disk/deep/out", (), "OutputError", "Read-only file system"),
        ("size=64m", "disk", ("--overwrite",), "OutputError", "is a mount point"),
    ],
    ids=["without space", "fills up half way", "read-only", "itself the output"],
)
def test_disks(disk: str, output: str, options: tuple[str, ...], error: str, message: str, site: Site) -> None:
    site.copy_lens()
    with mounted(site.root / "disk", disk):
        named = "deep/out" if disk == "ro" else "disk"
        refuse(site, site.convert(*options, output=site.root / output), error, named, message)


def test_limit_on_the_size_of_files(site: Site) -> None:
    site.copy_lens()
    before = take_snapshot(site)
    limited = ("sh", "-c", 'ulimit -f 1000; exec "$@"', "sh")
    outcome = run_process(*_with_json(site.convert().arguments), before=limited)
    case = Case("", Site.convert, "DiskError", ("File too large",))
    check_refusal(case, outcome, is_json=True)
    assert take_snapshot(site) == before


def test_folder_without_permission(site: Site) -> None:
    site.copy_lens()
    site.work.chmod(0o555)
    outcome = run_process(*_with_json(site.convert().arguments), preexec_fn=obey_permissions)
    case = Case("", Site.convert, "OutputError", ("out", "Permission denied"))
    check_refusal(case, outcome, is_json=True)
