"""Conversions that are interrupted, and what the next run makes of what they left."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from converter import ConvertOptions, Recipe, convert
from converter.checkpoint.staging import Staging
from converter.conversion.request import open_request
from converter.errors import DiskError, MalformedCheckpoint, OutputError
from converter.synthesis.synthesize import synthesize
from tests.conftest import call, edit_json, names_in, snapshot
from tests.faults import raising
from tests.reference import FURTHER_RECIPES, RECIPES, weight_files
from tests.reporters import Notes
from tests.tiny_models import WEIGHTS, convert_default, make_pipeline


class Interruption(Exception):
    """Stands for whatever ends a process in the middle of its work."""


def interrupt_after(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a conversion end after so many tensors, as if it had been killed."""
    notes = 0
    note = Staging.note

    def counting(self: Staging, component: str, tensor: str, facts: Any) -> None:
        nonlocal notes
        notes += 1
        if notes > count:
            raise Interruption
        note(self, component, tensor, facts)

    monkeypatch.setattr(Staging, "note", counting)


RESUMED = RECIPES | FURTHER_RECIPES
#: The last dtype is not good enough for a threshold so low: SDNQ keeps every weight.
RESUMED |= {"kept": RESUMED["dynamic"] | {"weights_dtype": "float16_e5m11fnu", "dynamic_loss_threshold": 1e-30}}
Interrupt = Callable[..., None]


@pytest.fixture
def interrupt(lens_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Interrupt:
    """Begin a conversion, or go on with it, and end it after so many tensors."""

    def call(count: int, recipe: Recipe | None = None, **options: Any) -> None:
        with monkeypatch.context() as patches:
            interrupt_after(count, patches)
            with pytest.raises(Interruption):
                convert(lens_source, tmp_path / "out", recipe, ConvertOptions(jobs=1, **options))
        assert not (tmp_path / "out").exists()

    return call


def recipe_of(name: str) -> Recipe | None:
    return None if name == "default" else Recipe(name, RESUMED[name])


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        *(("default", [1]), ("default", [25, 7]), ("svd", [7]), ("stochastic", [7, 3])),
        *(pytest.param("dynamic", [count], marks=pytest.mark.long) for count in (3, 25)),
        *(("dynamic-svd", [7, 9]), ("kept", [7])),
    ],
)
def test_an_interrupted_run_goes_on(
    name: str, counts: list[int], interrupt: Interrupt, lens_source: Path, tmp_path: Path
) -> None:
    recipe = recipe_of(name)
    for count in counts:
        interrupt(count, recipe)
    # With so little memory for so many threads, tensors are read and written in pieces.
    options, notes = ConvertOptions(jobs=99, memory=30_000_000), Notes()
    report = convert(lens_source, tmp_path / "out", recipe, options, reporter=notes)
    assert report.resumed_tensors >= sum(counts)
    assert all(progress.done == progress.total for progress in notes.shown)
    assert snapshot(tmp_path / "out") == snapshot(convert_default(lens_source, tmp_path / "undisturbed", recipe))
    assert names_in(tmp_path) == ["out", "undisturbed"]


def test_the_command_says_how_much_it_reused(interrupt: Interrupt, lens_source: Path, tmp_path: Path) -> None:
    interrupt(5)
    shown = call("convert", lens_source, tmp_path / "out").stderr
    assert shown.endswith("\n5 tensors from the earlier run were reused.\n")


def test_another_conversion_does_not_go_on(interrupt: Interrupt, lens_source: Path, tmp_path: Path) -> None:
    interrupt(5)
    staged = snapshot(tmp_path / ".out.lensconv")
    with pytest.raises(OutputError, match="differs from this one in") as caught:
        convert(lens_source, tmp_path / "out", "sdnq-int8")
    assert "--restart" in caught.value.hint
    assert snapshot(tmp_path / ".out.lensconv") == staged
    assert convert(lens_source, tmp_path / "out", "sdnq-int8", ConvertOptions(restart=True)).resumed_tensors == 0
    assert names_in(tmp_path) == ["out"]


def test_whatever_decides_the_output_makes_another_conversion(
    lens_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = shutil.copytree(lens_source, tmp_path / "source")

    def identity(recipe: str | None = None, **options: Any) -> str:
        return json.dumps(
            open_request(source, recipe_of(recipe) if recipe else None, ConvertOptions(**options)).identity("cpu")
        )

    found = [identity(), identity("svd"), identity("stochastic"), identity(allow_nonfinite=True)]
    found += [identity(quantize_from="float32"), identity(shard_bytes=10**6)]
    found.append(json.dumps(open_request(source, None, ConvertOptions()).identity("A card")))
    assert identity(jobs=3, memory=10**6, overwrite=True, restart=True) == found[0]
    monkeypatch.setattr("converter.conversion.request.library_threads", lambda: 77)
    assert identity() == found[0]
    found.append(identity("svd"))
    edit_json(source / "config.json", note=1)
    found.append(identity())
    monkeypatch.setenv("SDNQ_SOMETHING", "1")
    found.append(identity())
    for name, value in (("__version__", "0"), ("package_versions", dict)):
        monkeypatch.setattr(f"converter.conversion.request.{name}", value)
        found.append(identity())
    os.utime(source / WEIGHTS, (1, 1))
    assert len({*found, identity()}) == 13


@pytest.mark.parametrize(
    "name", ["default", "stochastic", pytest.param("dynamic", marks=pytest.mark.long), "dynamic-svd"]
)
def test_what_was_lost_is_made_again(name: str, interrupt: Interrupt, lens_source: Path, tmp_path: Path) -> None:
    """Slots that are gone do not count as finished, in this run or in the one after the next kill."""
    recipe, output = recipe_of(name), tmp_path / "out"
    options: dict[str, Any] = {"shard_bytes": 10**6} if name == "default" else {}
    interrupt(40, recipe, **options)
    weights = min((tmp_path / ".out.lensconv" / "release").glob("*.safetensors"))
    weights.unlink() if name == "default" else os.truncate(weights, weights.stat().st_size - 1)
    interrupt(3, recipe, **options)
    report = convert(lens_source, output, recipe, ConvertOptions(**options))
    convert(lens_source, tmp_path / "undisturbed", recipe, ConvertOptions(**options))
    assert weight_files(output) == weight_files(tmp_path / "undisturbed")
    assert report.resumed_tensors < 40 or "dynamic" in name


def test_a_spool_that_was_lost_is_made_again(interrupt: Interrupt, lens_source: Path, tmp_path: Path) -> None:
    recipe = recipe_of("dynamic")
    interrupt(9, recipe)
    spooled = sorted((tmp_path / ".out.lensconv" / "spool").iterdir())
    os.truncate(spooled[0], 20)
    report = convert(lens_source, tmp_path / "out", recipe)
    read = sum(tensor.nbytes for tensor in load_file(lens_source / WEIGHTS).values())
    assert (report.resumed_tensors, round(report.bytes_read_per_s * report.elapsed_s)) == (0, read)
    assert snapshot(tmp_path / "out") == snapshot(convert_default(lens_source, tmp_path / "undisturbed", recipe))


def test_a_run_goes_on_in_the_same_process(
    interrupt: Interrupt, lens_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Importing SDNQ sets a variable of its own, which is no other environment."""
    recipe = Recipe("int8", {"weights_dtype": "int8"})
    monkeypatch.delenv("SDNQ_USE_TORCH_COMPILE", raising=False)
    interrupt(5, recipe)
    monkeypatch.setenv("SDNQ_USE_TORCH_COMPILE", "0")
    assert convert(lens_source, tmp_path / "out", recipe).resumed_tensors >= 5


def test_a_source_that_changes_while_it_is_read(
    lens_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = shutil.copytree(lens_source, tmp_path / "source")
    note = Staging.note

    def changing(self: Staging, component: str, tensor: str, facts: Any) -> None:
        note(self, component, tensor, facts)
        with (source / WEIGHTS).open("r+b") as stream:
            stream.seek(-8, os.SEEK_END)
            stream.write(b"changed!")

    monkeypatch.setattr(Staging, "note", changing)
    with pytest.raises(MalformedCheckpoint, match="was changed while it was read"):
        convert(source, tmp_path / "out")
    assert names_in(tmp_path) == ["source"]


def test_a_passing_failure_keeps_what_is_finished(
    lens_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that appears in the output's place costs a word, not the work."""
    notes = Notes()
    publish = Staging.publish

    def taken(self: Staging) -> None:
        (tmp_path / "out").mkdir()
        publish(self)

    with monkeypatch.context() as patches:
        patches.setattr(Staging, "publish", taken)
        with pytest.raises(OutputError, match="exists already"):
            convert(lens_source, tmp_path / "out", reporter=notes)
    assert "the same command continues" in notes.texts[-1]
    (tmp_path / "out").rmdir()
    with monkeypatch.context() as patches:
        patches.setattr("converter.conversion.convert._Conversion._write_release", raising(DiskError("full")))
        with pytest.raises(DiskError):
            convert(lens_source, tmp_path / "out")
    report = convert(lens_source, tmp_path / "out")
    assert report.resumed_tensors == report.tensors


def test_files_that_left_the_source_are_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_pipeline(tmp_path / "source")
    with monkeypatch.context() as patches:
        patches.setattr(Staging, "publish", raising(Interruption()))
        with pytest.raises(Interruption):
            convert(source, tmp_path / "out")
    assert (tmp_path / ".out.lensconv" / "release" / "tokenizer" / "nested" / "vocabulary.txt").is_file()
    shutil.rmtree(source / "tokenizer" / "nested")
    (source / "tokenizer" / "merges.txt").write_text("m")
    report = convert(source, tmp_path / "out")
    assert snapshot(tmp_path / "out").keys() == {file.name for file in report.files}
    assert "tokenizer/nested/vocabulary.txt" not in snapshot(tmp_path / "out")


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("moment", ["rename_folder", "Staging.discard"])
def test_a_kill_while_publishing(
    moment: str, overwrite: bool, lens_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, source = tmp_path / "out", tmp_path / "source.safetensors"
    tensors = load_file(lens_source / WEIGHTS)
    tensors["proj_out.bias"][0] = torch.nan
    save_file(tensors, source)
    if overwrite:
        convert(lens_source, output, "sdnq-int8")
    old = snapshot(output) if overwrite else {}
    options = ConvertOptions(overwrite=overwrite, allow_nonfinite=True)
    with monkeypatch.context() as patches:
        patches.setattr(f"converter.checkpoint.staging.{moment}", raising(Interruption()))
        with pytest.raises(Interruption):
            convert(source, output, options=options)
    undisturbed = convert(source, tmp_path / "expected", options=options)
    expected = snapshot(tmp_path / "expected")
    assert (snapshot(output) if output.exists() else {}) == (old if moment == "rename_folder" else expected)
    report = convert(source, output, options=options)
    assert report.resumed_tensors == report.tensors
    assert report.elapsed_s > report.bytes_read_per_s == 0 < report.peak_rss_bytes
    for name in ("recipe", "assumed_config", "bytes_by_dtype", "tensors", "nonfinite"):
        assert getattr(report, name) == getattr(undisturbed, name)
    assert {file.name: file.sha256 for file in report.files} == {
        name: hashlib.sha256(content).hexdigest() for name, content in expected.items()
    }
    assert snapshot(output) == expected
    assert names_in(tmp_path) == ["expected", "out", "source.safetensors"]


def test_only_one_run_writes_an_output(lens_source: Path, tmp_path: Path) -> None:
    staging = Staging(tmp_path / "out", {}, None)
    with staging:
        staging.open()
        staging.begin("")
        with pytest.raises(OutputError, match="another conversion"):
            convert(lens_source, tmp_path / "out")
        assert staging.release.is_dir()


@pytest.mark.parametrize("when", ["before", "between two runs"])
def test_a_foreign_file_in_the_staging_folder_is_not_deleted(
    when: str, interrupt: Interrupt, lens_source: Path, tmp_path: Path
) -> None:
    diary = tmp_path / ".out.lensconv" / "diary.txt"
    if when == "before":
        diary.parent.mkdir()
        diary.write_text("mine")
        for make in (convert, synthesize_into):
            with pytest.raises(OutputError, match="diary"):
                make(lens_source, tmp_path / "out")
    else:
        interrupt(5)
        diary.write_text("mine")
        assert convert(lens_source, tmp_path / "out").resumed_tensors > 0
    assert diary.read_text() == "mine"


def synthesize_into(_: Path, output: Path) -> None:
    """Draw a model, where a test converts one otherwise."""
    synthesize(output, layers=1)


def test_a_synthesis_does_not_destroy_an_interrupted_conversion(
    interrupt: Interrupt, lens_source: Path, tmp_path: Path
) -> None:
    interrupt(5)
    with pytest.raises(OutputError, match="an interrupted conversion to this folder exists"):
        synthesize(tmp_path / "out", layers=1)
    assert convert(lens_source, tmp_path / "out").resumed_tensors >= 5


def test_what_an_interrupted_run_reserved_is_not_needed_again(
    lens_source: Path, tmp_path: Path, interrupt: Interrupt, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = SimpleNamespace(f_bavail=0, f_frsize=1)
    monkeypatch.setattr(os, "statvfs", lambda _: disk)

    def refused(free: int) -> str:
        disk.f_bavail = free
        with pytest.raises(DiskError) as caught:
            convert(lens_source, tmp_path / "out")
        disk.f_bavail += 1
        return caught.value.message.partition(": ")[2]

    needed = int(refused(0).split()[0])
    said = f"{needed} bytes are needed, but only {needed - 1} are free"
    assert refused(16_000_000 + needed - 1) == said
    interrupt(5)
    staged = [file.stat() for file in (tmp_path / ".out.lensconv").rglob("*") if file.is_file()]
    assert refused(16_000_000 + needed - 1 - 512 * sum(status.st_blocks for status in staged)) == said
    assert convert(lens_source, tmp_path / "out").resumed_tensors >= 5


@pytest.mark.parametrize("restart", [False, True])
def test_a_kill_between_two_renames(
    restart: bool, lens_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a file system cannot exchange two folders, the old one steps aside first, and comes back."""
    output = tmp_path / "out"
    convert(lens_source, output, "sdnq-int8")
    old = snapshot(output)

    def killed(release: Path, target: Path, _: int) -> None:
        target.rename(release.with_name("replaced"))
        raise Interruption

    with monkeypatch.context() as patches:
        patches.setattr("converter.checkpoint.staging.rename_folder", killed)
        with pytest.raises(Interruption):
            convert(lens_source, output, options=ConvertOptions(overwrite=True))
    assert not output.exists()
    options = ConvertOptions(overwrite=True, restart=restart, jobs=1)
    with monkeypatch.context() as patches:
        patches.setattr("converter.conversion.convert.check_space", raising(DiskError("full")))
        with pytest.raises(DiskError):
            convert(lens_source, output, options=options)
    report = convert(lens_source, output, options=options)
    assert bool(report.resumed_tensors) != restart
    assert snapshot(output) != old
    assert names_in(tmp_path) == ["out"]
