"""The journal and the folder of an unfinished output: what the next run finds there."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from converter import convert
from converter.checkpoint.folders import RENAME_EXCHANGE, RENAME_NOREPLACE, remove_all_but, rename_folder
from converter.checkpoint.journal import JournalFile
from converter.checkpoint.staging import SPOOLED, Replacing, Staging
from converter.checkpoint.writer import replace_file
from converter.conversion.release.replacing import REPLACING_CHECKPOINTS
from converter.errors import OutputError
from converter.synthesis.synthesize import synthesize
from tests.conftest import list_file, names_in, run_program, snapshot
from tests.tiny_models import make_pipeline

NEW = "new.safetensors"
FIRST = {"identity": {"recipe": "a"}, "release": [1, 2], "content": "c"}


def test_entries_after_a_line_that_was_cut_off_are_read(tmp_path: Path) -> None:
    file = tmp_path / "journal"
    journal = JournalFile(file)
    journal.begin(FIRST, [{"tensor": "a", "outputs": 1}])
    journal.close()
    file.write_bytes(file.read_bytes() + b'{"tensor": "b", "outp')
    found = journal.read()
    assert found is not None
    assert found.finished[""].keys() == {"a"}
    journal.resume(found)
    journal.note({"tensor": "c", "outputs": 2})
    journal.close()
    again = journal.read()
    assert again is not None
    assert again.finished == {"": {"a": {"tensor": "a", "outputs": 1}, "c": {"tensor": "c", "outputs": 2}}}
    assert (again.identity, again.release, again.content) == ({"recipe": "a"}, (1, 2), "c")


@pytest.mark.parametrize(
    "content", [b"", b"{}\n", b"[1]\n", b"\xff\n", b'{"identity": {}, "release": 3, "content": ""}\n']
)
def test_a_file_that_is_not_a_journal_is_ignored(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "journal").write_bytes(content)
    assert JournalFile(tmp_path / "journal").read() is None


def test_nothing_is_noted_before_the_journal_is_open(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="not open"):
        JournalFile(tmp_path / "journal").note({"tensor": "a"})


def interrupted(output: Path) -> None:
    """Leave what a run leaves that is killed after three tensors of two components each, one of them spooled."""
    with Staging(output, {"recipe": "a"}, None) as staging:
        staging.open()
        staging.begin("content")
        for component in ("a", "b"):
            part = staging.component(component)
            part.note("x", outputs=1)
            part.note("y", outputs=1, nonfinite=3)
            part.note(SPOOLED + "z", outputs=1, nonfinite=2)


def test_numbers_that_are_not_finite_are_remembered(tmp_path: Path) -> None:
    interrupted(tmp_path / "out")
    opened = names_in(Path("/proc/self/fd"))
    with Staging(tmp_path / "out", {"recipe": "a"}, None) as staging:
        staging.open()
        staging.resume("content", restart=False)
        first, second = staging.component("a"), staging.component("b")
        assert first.finished.keys() == second.finished.keys() == {"x", "y", SPOOLED + "z"}
        assert first.nonfinite == {"y": 3, "z": 2}
        assert first.forget(keeps_spooled=True).keys() == {SPOOLED + "z"}
        assert (first.nonfinite, second.nonfinite) == ({"z": 2}, {"y": 3, "z": 2})
        assert second.forget(keeps_spooled=False) == {}
    with Staging(tmp_path / "out", {"recipe": "a"}, None) as staging:
        staging.open()
        staging.resume("content", restart=False)
        assert [*staging.finished("a"), *staging.finished("b")] == [SPOOLED + "z"]
    assert names_in(Path("/proc/self/fd")) == opened


@pytest.mark.parametrize(("content", "restart"), [("other", False), ("content", True)])
def test_another_content_and_a_restart_begin_again(content: str, restart: bool, tmp_path: Path) -> None:
    interrupted(tmp_path / "out")
    with Staging(tmp_path / "out", {"recipe": "a"}, None) as staging:
        staging.open()
        # What kills may leave.
        for name in ("replaced", "journal.new"):
            (staging.folder / name).mkdir()
        (staging.folder / "spool").symlink_to(tmp_path)
        staging.resume(content, restart=restart)
        assert (staging.component("a").nonfinite, staging.finished("a")) == ({}, {})
        assert names_in(staging.folder) == ["journal", "release"]


def test_only_the_same_conversion_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "out"
    interrupted(output)
    # As after another start of the machine, of which the user is not told.
    monkeypatch.setattr("converter.checkpoint.staging._BOOT_ID", tmp_path / "none")
    with Staging(output, dict.fromkeys(("environment", "nonfinite", "versions"), 1), None) as staging:
        staging.open()
        with pytest.raises(
            OutputError, match=r"in: environment variables, --allow-nonfinite, recipe, package versions$"
        ):
            staging.resume("content", restart=False)
    with Staging(output, {"recipe": "a"}, None) as staging:
        staging.open()
        staging.resume("content", restart=False)
        assert staging.finished("a") == {}
    staging.release.rename(output)
    assert Staging(output, {"recipe": "a"}, None).was_published
    with pytest.raises(OutputError, match="exists already"):
        Staging(output, {"recipe": "b"}, None)
    other = Staging(tmp_path / "other", {}, None)
    (other.folder / "replaced").mkdir(parents=True)
    with other, pytest.raises(OutputError, match="other: exists already"):
        other.open()
    with pytest.raises(FileExistsError):
        rename_folder(other.folder, tmp_path / "other", RENAME_NOREPLACE)
    (other.folder / "replaced").mkdir()
    with Staging(tmp_path / "other", {}, Replacing(lambda _: None, lambda _: 0)) as again:
        again.open()
    monkeypatch.chdir(output)
    with pytest.raises(OutputError, match="contains the current folder"):
        Staging(output, {"recipe": "b"}, Replacing(lambda _: None, lambda _: 0))


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOSYS])
def test_a_file_system_that_cannot_exchange_folders(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flag that Linux does not know stands for one that the file system does not."""
    monkeypatch.setattr("ctypes.get_errno", lambda: code)
    monkeypatch.setattr("converter.checkpoint.folders.RENAME_EXCHANGE", 1 << 10)
    for name in ("out", "release"):
        (tmp_path / name / name).mkdir(parents=True)
    rename_folder(tmp_path / "release", tmp_path / "out", 1 << 10)
    assert (names_in(tmp_path), names_in(tmp_path / "out")) == (["out", "replaced"], ["release"])


def test_a_kill_while_the_old_folder_is_removed_loses_nothing(
    tiny_release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a folder cannot be renamed, it goes file by file, and the next run goes on wherever that was stopped."""
    output, old, steps = tmp_path / "out", shutil.copytree(tiny_release, tmp_path / "old"), itertools.count()
    # What only the manifest shows to be a part of the release.
    list_file(old, "NOTICE", b"")

    def refuse(release: Path, target: Path, flag: int) -> None:
        if flag == RENAME_EXCHANGE:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        rename_folder(release, target, flag)

    def stop_after(limit: int, remove: Callable[..., None]) -> Callable[..., None]:
        def removing(*arguments: Any, **options: Any) -> None:
            if next(steps) >= limit:
                raise KeyboardInterrupt
            remove(*arguments, **options)

        return removing

    def publish(limit: int) -> None:
        with Staging(output, {"recipe": "a"}, REPLACING_CHECKPOINTS) as staging:
            staging.open()
            if staging.was_published:
                staging.discard()
                return
            staging.resume("content", restart=False)
            if not staging.finished(""):
                (staging.release / NEW).touch()
                staging.component("").note("x", outputs=1)
            with monkeypatch.context() as patches:
                for name in ("unlink", "rmdir"):
                    patches.setattr(os, name, stop_after(limit, getattr(os, name)))
                staging.publish()

    monkeypatch.setattr("converter.checkpoint.staging.rename_folder", refuse)
    found: list[bool] = []
    while found[-1:] != [True]:
        shutil.copytree(old, output, copy_function=os.link)
        steps = itertools.count()
        with suppress(KeyboardInterrupt):
            publish(len(found))
        found.append(names_in(tmp_path) == ["old", "out"])
        if not found[-1]:
            assert [place for place in (tmp_path / ".out.lensconv" / "release", output) if (place / NEW).exists()]
            publish(sys.maxsize)
        assert (names_in(tmp_path), names_in(output)) == (["old", "out"], [NEW])
        shutil.rmtree(output)
    assert len(found) > 25


def in_namespace(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run lines of shell that mount what no other process sees; skip the test where that is not allowed."""
    if run_program("unshare", "--map-root-user", "--mount", "true").returncode:
        pytest.skip("no mounts")
    return run_program("unshare", "--map-root-user", "--mount", "sh", "-ec", script, "sh", *arguments)


def test_a_folder_of_a_lower_layer_is_replaced(tmp_path: Path) -> None:
    """As in a container whose image contains an older output; the first command is killed while it removes that."""
    for name in ("lower", "upper", "work", "merged"):
        (tmp_path / name).mkdir()
    synthesize(tmp_path / "lower" / "out", preset="tiny", component="transformer", layers=2)
    synthesize(tmp_path / "wanted", preset="tiny", component="transformer", layers=1)
    killed = "import os, sys; from converter.cli.main import main; os.unlink = lambda *_: os._exit(9); main()"
    synth = "synth merged/out --preset tiny --component transformer --layers 1 --overwrite"
    done = in_namespace(
        "cd $1; mount -t overlay overlay -o userxattr,lowerdir=lower,upperdir=upper,workdir=work merged\n"
        f'"$2" -c "{killed}" {synth} || test $? = 9; test -e merged/.out.lensconv\n'
        f'"$2" -m converter {synth}; ls -A merged; cp -r merged/out found',
        tmp_path,
        sys.executable,
    )
    if "mount: " in done.stderr:
        pytest.skip("no overlays")
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["out"]), done.stderr
    assert snapshot(tmp_path / "found") == snapshot(tmp_path / "wanted")


def test_a_folder_that_is_mounted_is_refused_before_the_work_begins(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for name in ("out", "other"):
        synthesize(tmp_path / name, preset="tiny", component="transformer", layers=1)
    (tmp_path / "other" / "vae").mkdir()
    done = in_namespace(
        "cd $1; mount --bind data out; mount --bind data other/vae\n"
        'for name in out other; do "$2" -m converter synth $name --preset tiny --overwrite || true; done; ls -A',
        tmp_path,
        sys.executable,
    )
    out, other = done.stderr.splitlines()
    assert out == "error: out: is a mount point, which cannot be replaced. Write to a folder inside it."
    assert (
        other == "error: other/vae: is a mount point, which cannot be replaced. Unmount it, or choose another folder."
    )
    assert done.stdout.split() == ["data", "other", "out"]


def test_what_is_not_wanted_goes_with_the_folders_that_held_it(tmp_path: Path) -> None:
    for name in ("gone/deep", "kept"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "a").touch()
    for wanted, left in (({tmp_path / "kept" / "a"}, ["kept"]), (set[Path](), [])):
        remove_all_but(tmp_path, wanted)
        assert names_in(tmp_path) == left


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> dict[Path, int]:
    """What was forced to the disk, with its size at that moment."""
    sizes: dict[Path, int] = {}
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        fsync(descriptor)
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        sizes[path] = path.stat().st_size

    monkeypatch.setattr(os, "fsync", noted)
    return sizes


def test_a_release_is_on_the_disk_before_it_appears_and_no_file_stays_open(
    tmp_path: Path, synced: dict[Path, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def checked(release: Path, target: Path, flag: int) -> None:
        parts = [release, *release.rglob("*")]
        assert {part: synced.get(part) for part in parts} == {part: part.stat().st_size for part in parts}
        synced.clear()
        rename_folder(release, target, flag)

    monkeypatch.setattr("converter.checkpoint.staging.rename_folder", checked)
    opened = names_in(Path("/proc/self/fd"))
    convert(make_pipeline(tmp_path / "source"), tmp_path / "out")
    synthesize(tmp_path / "model", preset="tiny", component="transformer", layers=1)
    assert (list(synced), names_in(Path("/proc/self/fd"))) == ([tmp_path], opened)


def test_a_file_is_on_the_disk_before_it_replaces_another(tmp_path: Path, synced: dict[Path, int]) -> None:
    replace_file(tmp_path / "card.md", b"12345")
    assert list(synced.values()) == [5]
