"""Conversions of several components that are interrupted, or lack space."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from converter import (
    ConvertOptions,
    ConvertReport,
    Recipe,
    convert,
    open_checkpoint,
)
from converter.checkpoint.staging import SPOOLED, Staging
from converter.conversion.execution.execute import execute
from converter.errors import DiskError, NonFiniteWeight, OutputError
from tests import reference
from tests.conftest import names_in, snapshot
from tests.faults import raising
from tests.pipelines import CLIP_NORM, NAMES, spoil
from tests.reporters import Notes
from tests.test_resume import Interruption
from tests.tiny_models import WEIGHTS


@pytest.fixture(scope="module")
def source(several: Path) -> Path:
    """The pipeline of ``make_several``; nobody changes it."""
    return several


PAIR = ("transformer", "transformer_2")


def interrupt_in(component: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a conversion end after so many entries of a component in the journal, as if it had been killed."""
    notes, note = 0, Staging.note

    def counting(self: Staging, noted: str, tensor: str, facts: Any) -> None:
        nonlocal notes
        notes += noted == component
        if notes > count:
            raise Interruption
        note(self, noted, tensor, facts)

    monkeypatch.setattr(Staging, "note", counting)


@dataclass(frozen=True)
class Interrupted:
    """A conversion of two components with the same tensors that ended inside the second one."""

    source: Path
    output: Path
    recipe: Recipe
    finished: frozenset[str]
    """Tensors of the second component that were finished, in their slots or in the spool."""

    @property
    def staged(self) -> Path:
        """Its work folder."""
        return self.output.with_name(f".{self.output.name}.lensconv")

    def go_on(self, **options: Any) -> ConvertReport:
        """Run the same command again."""
        return convert(self.source, self.output, self.recipe, ConvertOptions(components=PAIR, **options))

    def bytes_of(self, names: Iterable[str]) -> int:
        """Bytes of tensors in the source of either component."""
        tensors = open_checkpoint(self.source, component=PAIR[0]).tensors
        return sum(tensors[name].entry.bytes for name in names)

    def all_names(self) -> frozenset[str]:
        """Tensors of either component."""
        return frozenset(open_checkpoint(self.source, component=PAIR[0]).tensors)


Interrupt = Callable[[str, int], Interrupted]


@pytest.fixture
def interrupt(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Interrupt:
    """Begin a conversion by a named recipe, and end it after so many entries of the second component."""

    def run(name: str, count: int) -> Interrupted:
        recipe = Recipe(name, (reference.RECIPES | reference.FURTHER_RECIPES)[name])
        options = ConvertOptions(components=PAIR, jobs=1)
        with monkeypatch.context() as patches:
            interrupt_in(PAIR[1], count, patches)
            with pytest.raises(Interruption):
                convert(source, tmp_path / "out", recipe, options)
        lines = (tmp_path / ".out.lensconv" / "journal").read_text().splitlines()
        entries = [json.loads(line) for line in lines[1:]]
        finished = [entry["tensor"] for entry in entries if entry["component"] == PAIR[1]]
        assert len(finished) == count
        assert not (tmp_path / "out").exists()
        return Interrupted(source, tmp_path / "out", recipe, frozenset(name.removeprefix(SPOOLED) for name in finished))

    return run


def bytes_read(report: ConvertReport) -> int:
    return round(report.bytes_read_per_s * report.elapsed_s)


@pytest.fixture(scope="module")
def undisturbed(source: Path) -> Callable[[Recipe], dict[str, bytes]]:
    """What a run that nobody interrupts makes of the two denoisers, by a recipe."""
    made: dict[str, dict[str, bytes]] = {}

    def files(recipe: Recipe) -> dict[str, bytes]:
        if recipe.name not in made:
            output = source.with_name(f"undisturbed-{recipe.name}")
            convert(source, output, recipe, ConvertOptions(components=PAIR))
            made[recipe.name] = snapshot(output)
        return made[recipe.name]

    return files


Undisturbed = Callable[[Recipe], dict[str, bytes]]


@pytest.mark.parametrize(
    ("name", "count"), [("uint4", 0), ("uint4", 7), ("stochastic", 5), ("dynamic", 6), ("dynamic", 22), ("svd", 3)]
)
def test_an_interrupted_run_goes_on_inside_the_second_component(
    name: str, count: int, interrupt: Interrupt, undisturbed: Undisturbed
) -> None:
    """And reads nothing of the first one again, whose tensors have the same names."""
    run = interrupt(name, count)
    report = run.go_on()
    assert bytes_read(report) == run.bytes_of(run.all_names() - run.finished)
    assert report.resumed_tensors >= report.components[0].tensors + len(run.finished)
    assert snapshot(run.output) == undisturbed(run.recipe)
    assert names_in(run.output.parent) == ["out"]


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


@pytest.mark.parametrize("lost", PAIR)
@pytest.mark.parametrize("name", ["uint4", "stochastic", "dynamic"])
def test_what_is_lost_of_one_component_starts_that_one_over(
    name: str, lost: str, interrupt: Interrupt, undisturbed: Undisturbed
) -> None:
    """Slots of either, or its spool where the weights decide."""
    run = interrupt(name, 6)
    files = (run.staged / ("spool" if name == "dynamic" else "release") / lost).glob("*.safetensors")
    cut(min(files))
    report = run.go_on()
    left = run.all_names() if lost == PAIR[1] else run.all_names() - run.finished
    again = run.bytes_of(run.all_names()) if lost == PAIR[0] else 0
    assert bytes_read(report) == run.bytes_of(left) + again
    assert (report.resumed_tensors >= report.components[0].tensors) == (lost == PAIR[1])
    assert report.resumed_tensors > 0
    assert snapshot(run.output) == undisturbed(run.recipe)


def test_what_is_lost_stays_lost_in_the_run_after_the_next_kill(
    interrupt: Interrupt, undisturbed: Undisturbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = interrupt("stochastic", 6)
    cut(run.staged / "release" / PAIR[0] / WEIGHTS)
    with monkeypatch.context() as patches:
        interrupt_in(PAIR[0], 2, patches)
        with pytest.raises(Interruption):
            run.go_on(jobs=1)
    report = run.go_on()
    assert bytes_read(report) > run.bytes_of(run.all_names())
    assert snapshot(run.output) == undisturbed(run.recipe)


def test_another_choice_of_components_is_another_conversion(interrupt: Interrupt, undisturbed: Undisturbed) -> None:
    run = interrupt("uint4", 6)
    for names in (PAIR[:1], (*PAIR, "text_encoder"), ()):
        with pytest.raises(OutputError, match=r"differs from this one in: .*other components.*source") as caught:
            convert(run.source, run.output, run.recipe, ConvertOptions(components=names))
        assert "--restart" in caught.value.hint
    report = run.go_on(restart=True)
    assert (report.resumed_tensors, bytes_read(report)) == (0, 2 * run.bytes_of(run.all_names()))
    assert snapshot(run.output) == undisturbed(run.recipe)


def test_a_run_that_was_killed_after_its_last_step_reports_all_components(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ConvertOptions(components=("text_encoder", "transformer"))
    expected = convert(source, tmp_path / "expected", options=options)
    with monkeypatch.context() as patches:
        patches.setattr(Staging, "discard", raising(Interruption()))
        with pytest.raises(Interruption):
            convert(source, tmp_path / "out", options=options)
    report = convert(source, tmp_path / "out", options=options)
    assert (report.components, {*report.files}) == (expected.components, {*expected.files})
    assert report.resumed_tensors == report.tensors


def test_space_is_needed_for_all_components_together(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=0, f_frsize=1))
    dynamic = {"weights_dtype": "uint4", "use_dynamic_quantization": True}

    def needed(*names: str, recipe: Recipe) -> int:
        with pytest.raises(DiskError, match="bytes are needed, but only 0 are free") as caught:
            convert(source, source.with_name("full"), recipe, ConvertOptions(components=names))
        return int(caught.value.message.split()[1])

    plain = Recipe("mine", {"weights_dtype": "uint4"})
    mixed = replace(plain, components={"text_encoder": Recipe("mine", dynamic)})
    sizes = [needed(name, recipe=plain) for name in NAMES]
    assert needed(*NAMES, recipe=plain) == sum(sizes)
    # Where the weights decide, the parts are on the disk twice for a while.
    assert needed(*NAMES, recipe=mixed) == sum(sizes) + sizes[NAMES.index("text_encoder")]
    assert not source.with_name(".full.lensconv").exists()


def test_a_bad_weight_in_the_second_component_leaves_nothing(source: Path, tmp_path: Path) -> None:
    spoiled = shutil.copytree(source, tmp_path / "source")
    spoil(spoiled / "text_encoder" / "model.safetensors", CLIP_NORM)
    with pytest.raises(NonFiniteWeight, match=f"text_encoder/model.safetensors.*{CLIP_NORM}"):
        convert(spoiled, tmp_path / "out", options=ConvertOptions(components=("transformer", "text_encoder")))
    assert names_in(tmp_path) == ["source"]


@pytest.mark.parametrize(("converted", "kept"), [(0, False), (1, True), (2, True)])
def test_a_shortage_keeps_components_that_are_complete(
    converted: int, kept: bool, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the first one, and of the files beside the weights once all are complete."""
    runs, work = 0, execute

    def full(*arguments: Any) -> Any:
        nonlocal runs
        runs += 1
        if runs > converted:
            raise DiskError("full")
        return work(*arguments)

    options, notes = ConvertOptions(components=PAIR), Notes()
    with monkeypatch.context() as patches:
        patches.setattr("converter.conversion.convert.execute", full)
        if converted == len(PAIR):
            patches.setattr("converter.conversion.convert._Conversion._write_release", raising(DiskError("full")))
        with pytest.raises(DiskError):
            convert(source, tmp_path / "out", options=options, reporter=notes)
    assert names_in(tmp_path) == ([".out.lensconv"] if kept else [])
    assert any("the same command continues" in text for text in notes.texts) == kept
    report = convert(source, tmp_path / "out", options=options)
    assert report.resumed_tensors == sum(component.tensors for component in report.components[:converted])
