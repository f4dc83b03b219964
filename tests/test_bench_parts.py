"""The parts of the benchmark: subjects, journal, workers, files of measurements."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import count, product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from converter.console import SILENT, Progress
from converter.errors import (
    DiskError,
    EvidenceError,
    LensconvError,
    MalformedCheckpoint,
    MissingInput,
    OutputError,
    UsageError,
)
from converter.measurement.benchmark import measuring
from converter.measurement.benchmark.assembly import Assembly
from converter.measurement.benchmark.changes import file_states, refuse_changed_files
from converter.measurement.benchmark.fidelity import compare_images, compare_weights
from converter.measurement.benchmark.image_files import image_name
from converter.measurement.benchmark.job import Job, Task
from converter.measurement.benchmark.journal import LOAD_KEY, Cell, Journal
from converter.measurement.benchmark.machine import describe_machine
from converter.measurement.benchmark.measuring import Bench, Place
from converter.measurement.benchmark.options import MODES, BenchOptions
from converter.measurement.benchmark.session import Session
from converter.measurement.benchmark.subjects import Subject, open_subjects
from converter.measurement.benchmark.worker import _ENVIRONMENT_ERRORS
from converter.measurement.benchmark.worker_process import WorkerProcess
from converter.measurement.evidence.files import write_evidence
from converter.measurement.generation.options import GenerateOptions
from converter.measurement.generation.repo import WEIGHTS, open_pipeline
from converter.measurement.generation.settings import Settings, choose_settings
from converter.measurement.prompts.suite import PromptSuite, read_suite
from tests.benches import LIMIT, folded
from tests.cases import check_cases
from tests.conftest import ROOT, Lensconv, edit_json, time_limit
from tests.expected import check_expected
from tests.generations import change_tensors, editable, packed
from tests.reporters import Notes

FILE = "transformer/diffusion_pytorch_model.safetensors"


#: How quantized models work, as the probe of the machine has found.
ENVIRONMENT = {"int8_kernel": "torch", "sdnq_compiles": False, "mxfp4": "unpacked"}


@dataclass(frozen=True)
class Inputs:
    """What the parts of a benchmark take."""

    subjects: dict[str, Subject]
    suite: PromptSuite
    settings: list[Settings]

    @classmethod
    def open(cls, original: Path, quantized: Path, suite: Path, count: int | None = None) -> Inputs:
        subjects = {subject.name: subject for subject in open_subjects(original, quantized, SILENT)}
        prompts = read_suite(suite).prompts[:count]
        repo = open_pipeline(original)
        options = {prompt.prompt: GenerateOptions(seed=prompt.seed, aspect_ratio="16:9") for prompt in prompts}
        settings = [choose_settings(repo, prompt, chosen) for prompt, chosen in options.items()]
        return cls(subjects, PromptSuite("some", prompts), settings)

    def bench(self, journal: Journal, mode: str, **options: Any) -> Bench:
        chosen = BenchOptions(mode=mode, **options)
        return Bench(journal.file.parent, self.subjects, self.suite, self.settings, chosen, "cpu", ENVIRONMENT, journal)

    def write_files(self, journal: Journal) -> dict[str, dict[str, Any]]:
        files = Assembly(
            journal, self.suite, self.settings, self.subjects, describe_machine("cpu"), BenchOptions()
        ).files()
        for name, content in files.items():
            write_evidence(journal.file.parent, name, content)
        return files


@pytest.fixture
def inputs(tiny_repo: Path, tiny_release: Path, suite: Path) -> Inputs:
    return Inputs.open(tiny_repo, tiny_release, suite)


def test_weights_that_change_are_refused(tiny_repo: Path, release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (file,) = (release / "vae").glob("*.safetensors")
    # In the Hub's cache, weights are links.
    file.symlink_to(file.rename(release / "blob"))
    monkeypatch.chdir(release.parent)
    subjects = open_subjects(tiny_repo, Path(release.name), notes := Notes())
    assert notes.shown[0].done == notes.shown[0].total > 0
    for subject in subjects:
        refuse_changed_files(subject.states)
    content, time_ns = file.read_bytes(), file.stat().st_mtime_ns
    for changed, later_ns in ((content + b"\x01", 0), (content[:-1] + b"\x01", 1)):
        file.write_bytes(changed)
        os.utime(file, ns=(time_ns, time_ns + later_ns))
        with pytest.raises(MalformedCheckpoint, match="changed while it was measured"):
            refuse_changed_files(subjects[1].states)
    assert subjects[1].components != open_subjects(tiny_repo, release, SILENT)[1].components
    states = file_states([file])
    Path(shutil.copy2(file, release / "copy")).replace(release / "blob")
    with pytest.raises(MalformedCheckpoint, match="changed while it was measured"):
        refuse_changed_files(states)
    file.unlink()
    with pytest.raises(MissingInput):
        refuse_changed_files(subjects[1].states)


CELL = {"mode": "standard", "pair": 0, "attempt": 0, "model": "original", "key": "P01", "worker": 1}
ROW = {"time_s": 1.5, "stages": {name: {"time_s": 0.5} for name in WEIGHTS}, "pixels_sha256": "0" * 64}


@pytest.mark.parametrize(
    "line",
    [
        *(b"[" * 100_000, b"[]", b"{}", b"{", b"\xff", b'{"mode": 1}', b'{"format": "lensconv.measurements/2"}'),
        json.dumps({**CELL, "time_s": 1}).encode(),
        json.dumps({**CELL, **ROW, "model": "other"}).encode(),
        json.dumps({**CELL, **ROW, "time_s": math.nan}).encode(),
    ],
)
def test_a_damaged_journal_is_refused(line: bytes, tmp_path: Path) -> None:
    Journal(tmp_path, {"a": 1}, restart=False).__exit__(None, None, None)
    with (tmp_path / "measurements.jsonl").open("ab") as stream:
        stream.write(line + b"\n")
    with pytest.raises(EvidenceError, match="is damaged: line 2"):
        Journal(tmp_path, {"a": 1}, restart=False)
    with Journal(tmp_path, {"a": 1}, restart=True) as journal:
        assert not journal.measured


def test_integers_of_a_journal_may_have_a_point(tmp_path: Path) -> None:
    """JSON Schema counts 1.0 as an integer."""
    Journal(tmp_path, {"a": 1}, restart=False).__exit__(None, None, None)
    with (tmp_path / "measurements.jsonl").open("a") as stream:
        stream.write(json.dumps({**CELL, **ROW, "pair": 1.0, "attempt": 0.0, "worker": 3.0}) + "\n")
    with Journal(tmp_path, {"a": 1}, restart=False) as journal:
        ((cell, _),) = journal.measured
        assert (repr(cell.pair), repr(cell.attempt), repr(journal.worker)) == ("1", "0", "4")


def test_a_journal_is_of_this_format_and_written_by_one_process(tmp_path: Path) -> None:
    (tmp_path / "measurements.jsonl").write_text('{"format": "lensconv.measurements/1"}\n')
    with pytest.raises(EvidenceError, match="has the format lensconv"):
        Journal(tmp_path, {"a": 1}, restart=False)
    (tmp_path / "measurements.jsonl").unlink()
    cell = Cell("standard", 0, 0, "original")
    with Journal(tmp_path, {"a": {"b": 1}}, restart=False) as journal:
        journal.note(cell, "P01", ROW)
        journal.note(cell, "P02", {"failed": "hung"})
        with pytest.raises(OutputError, match="another process is measuring"):
            Journal(tmp_path, {"a": {"b": 1}}, restart=True)
    with pytest.raises(OutputError, match=r"contains another benchmark: a\.b was 1, and is now 2"):
        Journal(tmp_path, {"a": {"b": 2}}, restart=False)
    with pytest.raises(OutputError, match=r"a\.b was 1, and is now null"):
        Journal(tmp_path, {"a": {"c": 2}}, restart=False)
    with Journal(tmp_path, {"a": {"b": 1}}, restart=False) as journal:
        assert (journal.measured, journal.failures) == (
            {(cell, "P01"): {"worker": 1, **ROW}},
            {(cell, "P02"): ["hung"]},
        )
    with Journal(tmp_path, {"a": {"b": 2}}, restart=True) as journal:
        assert not journal.measured
    with Journal(tmp_path, {"a": {"b": 2}}, restart=False) as journal:
        assert journal.is_new
        journal.note(cell, "P01", ROW)
    with Journal(tmp_path, {"a": {"b": 2}}, restart=False) as journal:
        assert not journal.is_new


def test_a_line_is_whole_or_its_error_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux writes a part when a signal comes or the disk is nearly full. What was noted is on the disk."""
    write, synced = os.write, list[int]()
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="Not a directory"):
        Journal(tmp_path / "file" / "folder", {}, restart=False)
    with Journal(tmp_path, {}, restart=False) as journal:
        monkeypatch.setattr(os, "write", lambda descriptor, line: write(descriptor, line[: len(line) // 2 + 1]))
        journal.note(Cell("standard", 0, 0, "original"), "P01", {"failed": "a" * 9})
        assert synced[1:] == [journal.file.stat().st_size]
        monkeypatch.setattr(os, "write", lambda _, line: write(os.open("/dev/full", os.O_WRONLY), line))
        with pytest.raises(DiskError):
            journal.note(Cell("standard", 0, 0, "original"), "P01", ROW)
        assert not journal.measured
    monkeypatch.undo()


def measured(number: int) -> dict[str, Any]:
    """Figures of an image, each its own number."""
    figures = {"time_s": number / 8, "peak_rss_gb": number / 16}
    stages = {name: {key: value / part for key, value in figures.items()} for part, name in enumerate(WEIGHTS, 2)}
    return {**figures, "stages": stages, "pixels_sha256": f"{number % 2}" * 64}


def test_files_of_a_benchmark_with_pairs_failures_and_all_modes(inputs: Inputs, tmp_path: Path) -> None:
    """Medians and largest peaks; what failed in the end, what failed once, what never ran; one mode without images."""
    numbers = count(3)
    with Journal(tmp_path, {}, restart=False) as journal:
        for mode, pair, model in product(MODES, (2, 0, 1), inputs.subjects):
            cell, number = Cell(mode, pair, 0, model), next(numbers)
            if (mode, model) == ("sequential", "quantized"):
                for reason in ("first", "last"):
                    journal.note(cell, "A1", {"failed": f"{reason} {pair}"})
                continue
            load = {"time_s": number / 4, "peak_rss_gb": 9 - number / 8, "cache_warm": pair < 2}
            working = {"int8": "chain"} if model == "quantized" else {}
            journal.note(
                cell, LOAD_KEY, load | working | {"components": {"vae": {"memory_gb": number, "device_gb": 0.0}}}
            )
            for prompt in inputs.suite.prompts:
                if (mode, model, prompt.id) == ("offload", "original", "C3"):
                    continue
                row = measured(next(numbers) * (3 if pair == 0 else 1))
                if (mode, pair, prompt.id) == ("standard", 0, "A1"):
                    image = tmp_path / image_name(model, prompt)
                    image.parent.mkdir(parents=True)
                    image.write_bytes(model.encode())
                    row["image_sha256"] = hashlib.sha256(model.encode()).hexdigest()
                journal.note(cell, prompt.id, row)
        image = tmp_path / image_name("baseline", inputs.suite.prompts[0])
        image.parent.mkdir(parents=True)
        image.write_bytes(b"baseline")
        digest = hashlib.sha256(b"baseline").hexdigest()
        journal.note(Cell("standard", 0, 0, "original"), "A1+1000", {**measured(1), "image_sha256": digest})
        for pair, reason in ((4, "hung"), (3, "killed"), (3, "killed again"), (1, "hung once")):
            journal.note(Cell("standard", pair, 0, "original"), "A1", {"failed": reason})
        files = inputs.write_files(journal)
    (shared,) = {json.dumps([content.pop("environment"), content.pop("sources")]) for content in files.values()}
    sources = {name: subject.source() for name, subject in inputs.subjects.items()}
    environment = {**describe_machine("cpu"), "date": datetime.now(UTC).date().isoformat()}
    assert json.loads(shared) == [environment, sources]
    assert len({json.dumps(content.pop("settings")) for content in list(files.values())[1:]}) == 1
    check_expected("bench_files.txt", "\n".join(f"{name}\n{folded(content)}" for name, content in files.items()))


def test_failures_alone_are_evidence_too(
    suite: Path, tiny_repo: Path, tiny_release: Path, tmp_path: Path, lensconv: Lensconv
) -> None:
    """Of a suite with one prompt; then a mode that failed altogether leaves the matrix to another."""
    inputs = Inputs.open(tiny_repo, tiny_release, suite, 1)
    reason = {"failed": "while loading: no memory"}
    with Journal(tmp_path, {}, restart=False) as journal:
        for mode, model, failure in product(("standard", "offload"), inputs.subjects, ({"failed": "first"}, reason)):
            journal.note(Cell(mode, 0, 0, model), "A1", failure)
        _, matrix, offload = inputs.write_files(journal).values()
        (row,) = matrix["prompts"]
        assert (row["original"], row["quantized"], matrix["summary"]) == (reason, reason, {})
        warm = {"failed": "the suite has one prompt, which is the cold one"}
        parts = {"setup": reason, "cold": reason, "warm": warm, "times_s": {}}
        failed = [{"prompt": "A1", "pair": 0, "attempt": 0, "reason": reason["failed"]}]
        named = {"label": "SDNQ uint4 static", "repo_id": "tiny-uint4"}
        assert offload["models"]["quantized"] == {**named, **parts, "failed": failed}
        shown = [lensconv(command, tmp_path) for command in ("evidence", "charts", "grid")]
        assert [outcome.code for outcome in shown] == [0, 0, 0]
        assert "cells are missing" in shown[2].stderr
        for model in inputs.subjects:
            journal.note(Cell("offload", 0, 0, model), "A1", measured(8))
        load = {"time_s": 1.0, "peak_rss_gb": 1.0, "cache_warm": True, "components": {}}
        journal.note(Cell("standard", 0, 0, "original"), LOAD_KEY, load)
        assert inputs.bench(journal, "offload").picture_mode == "offload"
        metrics, matrix, offload = inputs.write_files(journal).values()
    assert (matrix["mode"], matrix["summary"].keys()) == ("offload", {"original", "quantized"})
    assert "generation_time_s" not in metrics["models"]["original"]
    assert "slowdown" not in metrics
    assert offload["models"]["original"]["setup"] == {"failed": "not measured"}
    notes = Notes()
    assert compare_images(tmp_path, matrix, notes) is None
    assert notes.texts == [
        "images of A1 are missing or were changed, and are left out; --mode offload generates them again",
        "no prompt has images of both models; images were not compared",
    ]
    (row,) = matrix["prompts"]
    for model, (side, said) in product(inputs.subjects, ((reason, 1), (row["original"] | {"image": "a.png"}, 2))):
        notes = Notes()
        assert compare_images(tmp_path, {**matrix, "prompts": [{**row, model: side}]}, notes) is None
        assert len(notes.texts) == said


def test_weights_are_compared_where_they_can_be(tiny_repo: Path, release: Path, tmp_path: Path) -> None:
    other = editable(tiny_repo, tmp_path)
    change_tensors(other / FILE, lambda tensors: tensors["proj_out.bias"].add_(1))
    subjects, unquantized = (
        {subject.name: subject for subject in open_subjects(tiny_repo, quantized, SILENT)}
        for quantized in (release, other)
    )
    notes = Notes()
    found = compare_weights(subjects, notes)
    assert found is not None
    sources = {name: subject.source() for name, subject in subjects.items()}
    assert found == {"schema": "lensconv.weights/1", "sources": sources, "fidelity": found["fidelity"]}
    assert not notes.texts
    assert compare_weights(unquantized, notes) is None
    change_tensors(release / FILE, lambda tensors: tensors["proj_out.bias"].add_(1))
    assert compare_weights(subjects, notes) is not None
    (release / FILE).unlink()
    assert compare_weights(subjects, notes) is None
    check_expected("bench_weights.txt", "\n".join(notes.texts).replace(str(tmp_path), "FOLDER"))


def test_subjects_are_named_as_the_hub_and_the_quantization_name_them(
    tiny_repo: Path, release: Path, tmp_path: Path
) -> None:
    commit = "0123456789" * 4
    cached = shutil.copytree(tiny_repo, tmp_path / "models--maker--Some--Lens" / "snapshots" / commit)
    noted = editable(tiny_repo, tmp_path)
    note = Path(".cache/huggingface/download/model_index.json.metadata")
    other = shutil.copytree(release, tmp_path / "\x1bother")
    for folder, text in ((noted, f"{commit}\netag\n1.0\n"), (release, f"{commit}0\n"), (other, "\xe9")):
        (folder / note).parent.mkdir(parents=True)
        (folder / note).write_text(text)
    config = json.loads((release / "transformer" / "config.json").read_text())["quantization_config"]
    edit_json(release / "transformer/config.json", quantization_config={**config, "use_dynamic_quantization": True})
    subjects = [
        Subject(name, open_pipeline(folder), {}, {})
        for name, folder in (("original", cached), ("quantized", noted), ("quantized", release), ("original", other))
    ]
    assert [(subject.label, subject.repo_id, subject.revision) for subject in subjects] == [
        ("Original Some--Lens", "maker/Some--Lens", commit),
        ("Not quantized", "repo", commit),
        ("SDNQ uint4 dynamic", "release", None),
        ("SDNQ uint4 static", "\\x1bother", None),
    ]


def test_equal_models_may_be_compared(tiny_repo: Path, tmp_path: Path) -> None:
    """To see how exact the measurement is; but not a folder with itself, under whatever name."""
    notes = Notes()
    first, second = open_subjects(tiny_repo, shutil.copytree(tiny_repo, tmp_path / "copy"), notes)
    assert first.components == second.components
    assert [text.partition(",")[0] for text in notes.texts] == ["the weights are the same"]
    (tmp_path / "link").symlink_to(tiny_repo)
    with pytest.raises(UsageError, match="are the same folder"):
        open_subjects(tiny_repo, tmp_path / "link", notes)


def test_cells_tasks_and_jobs(inputs: Inputs, tmp_path: Path) -> None:
    """Of a run with two pairs in all modes, where one image is there already, and the file of another is gone."""
    with Journal(tmp_path, {}, restart=False) as journal:
        journal.note(Cell("standard", 0, 0, "original"), "B2", {**ROW, "image_sha256": "0" * 64})
        journal.note(Cell("offload", 0, 0, "original"), "A1", ROW)
        work = inputs.bench(journal, "sequential, offload,standard", pairs=2)
        lines = []
        for cell in work.cells:
            job = work._job(cell, work.missing(cell))
            assert (job.states, job.probe) == (inputs.subjects[cell.model].states, False)
            assert {task.settings["prompt"] for task in job.tasks} <= {prompt.prompt for prompt in inputs.suite.prompts}
            tasks = [f"{task.key or '-'} {task.settings['seed']} {task.image}" for task in job.tasks]
            lines.append(f"{cell.mode} {cell.pair} {job.device} {job.dtype} {job.offload} {Path(job.repo).name}: ")
            lines[-1] += ", ".join(tasks).replace(str(tmp_path), "out")
    check_expected("bench_jobs.txt", "\n".join(lines))


def test_what_a_worker_says_becomes_figures_and_failures(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what real workers say seldom, or only after a long time."""
    said: dict[str, dict[str, Any]] = {key: {"event": "generating", "key": key} for key in ("", "A1", "B2")}
    said |= {f"{key} done": {"event": "generated", "key": key, **ROW} for key in ("", "A1")}
    said["loaded"] = {"event": "loaded", "time_s": 1.0}
    for name, working in (("same", {"sdnq_compiles": False}), ("compiled", {"sdnq_compiles": True})):
        said[name] = said["loaded"] | {"quantization": {"int8_kernel": None, **working}}
    said["triton"] = said["loaded"] | {"quantization": {"int8_kernel": "triton"}}
    said |= {name: said["loaded"] | {"mxfp4": name} for name in ("packed", "unpacked")}
    said["failed"] = {"event": "failed", "reason": "no memory"}
    said["died"] = said["failed"] | {"died": True}
    said["hung"] = said["died"] | {"hung": True}
    said["aborted"] = {"event": "aborted", "type": "DiskError", "message": "full", "hint": ""}
    folders: Iterator[Path] = (tmp_path / str(number) for number in count())

    def outcome(*events: str) -> Any:
        worker = nullcontext(SimpleNamespace(events=lambda: (dict(said[event]) for event in events)))
        monkeypatch.setattr(measuring, "WorkerProcess", lambda *_: worker)
        shown, cell = Progress(), Cell("standard", 1, 0, "quantized")
        with Journal(next(folders), {}, restart=False) as journal:
            work = inputs.bench(journal, "standard")
            try:
                is_fruitless = work._run_worker(cell, work.missing(cell), shown, work.place)
            except DiskError as error:
                return f"{error}, after {len(journal.measured)}"
            measured = [key for _, key in journal.measured]
        missing, failed = [task.key for task in work.missing(cell)], {key: why for (_, key), why in work.failed.items()}
        assert [*work.failed] == [(cell, key) for key in failed]
        found = {"fruitless": is_fruitless, "measured": measured, "failed": failed, "left": missing}
        return {**found, shown.label: shown.done}

    check_cases("worker_cases.jsonl", outcome)
    # These have nothing to do with the model, and end the whole benchmark.
    ending = {"CompilerError", "DeviceError", "DiskError", "OutputError", "UsageError"}
    assert {kind.__name__ for kind in _ENVIRONMENT_ERRORS} == ending
    # A reason names no folder of this machine, whether it was named through a link or not.
    (tmp_path / "link").symlink_to(tmp_path / "real", target_is_directory=True)
    (tmp_path / "real").mkdir()
    said["failed"]["reason"] = f"no {tmp_path}/link/a and {tmp_path}/real/a, {inputs.subjects['quantized'].repo.folder}"
    folders = iter([tmp_path / "link"])
    assert set(outcome("failed")["failed"].values()) == {"while loading: no link/a and link/a, tiny-uint4"}


def test_workers_that_hang_one_after_another_are_given_up(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def hang(work: Bench, cell: Cell, missing: Sequence[Task], shown: Progress, _: Place) -> bool:
        tried.append(cell.model)
        work.fail(cell, missing[:1], "hung", shown)
        return len(tried) != 2

    monkeypatch.setattr(Bench, "_run_worker", hang)
    prompts = tuple(replace(inputs.suite.prompts[0], id=f"X{number}") for number in range(7))
    longer = replace(inputs, suite=PromptSuite("x", prompts), settings=[inputs.settings[0]] * 7)
    with Journal(tmp_path, {}, restart=False) as journal:
        work = longer.bench(journal, "offload", skip_baseline=True)
        work.measure(Progress())
    assert tried == ["original"] * 5 + ["quantized"] * 3
    gone = "not tried: 3 consecutive workers hung, or died while loading"
    assert list(work.failed.values()) == ["hung"] * 5 + [gone] * 2 + ["hung"] * 3 + [gone] * 4


def test_a_worker_that_breaks_down_says_why(tiny_repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last line; a worker that is stopped by a signal that nobody knows has none."""
    (tmp_path / "json.py").write_text("raise ImportError('from the current folder')")
    monkeypatch.chdir(tmp_path)
    job = Job(str(tiny_repo), {}, "none", "cpu", "no dtype", [])
    ticks: list[None] = []
    opened = len([*Path("/proc/self/fd").iterdir()])
    with time_limit(LIMIT), WorkerProcess(job, LIMIT, lambda: ticks.append(None)) as worker:
        (event,) = worker.events()
        assert [worker._reason(code) for code in (-6, -9, -50)] == [
            *("killed by SIGABRT", "killed by SIGKILL, perhaps because memory ran out", "killed by signal 50")
        ]
        # Of a long log, the end is read, which may begin within a character.
        worker._log.write(f"{'€' * 2000}\nthe \x1blast line\n".encode())
        assert worker._reason(1) == "ended with exit code 1: the \\x1blast line"
        worker._log.truncate(0)
        assert worker._reason(3) == "ended with exit code 3"
        assert repr(str(ROOT)) in str(worker._process.args)
    reason = "ended with exit code 1: AttributeError: module 'torch' has no attribute 'no dtype'"
    assert event == {"event": "failed", "reason": reason, "died": True}
    assert len([*Path("/proc/self/fd").iterdir()]) == opened
    assert ticks


@pytest.mark.long
def test_reasons_do_not_tell_where_folders_lie(suite: Path, tiny_repo: Path, release: Path, tmp_path: Path) -> None:
    """A weight file that cannot be loaded, whose error names its path."""
    edit_json(release / "vae" / "config.json", latent_channels=7)
    inputs = Inputs.open(tiny_repo, release, suite)
    with Journal(tmp_path / "out", {}, restart=False) as journal:
        work = inputs.bench(journal, "standard")
        cell = Cell("standard", 0, 0, "quantized")
        with time_limit(LIMIT):
            work._run_worker(cell, work.missing(cell), Progress(), work.place)
        # What a loader says it says again: all images failed for one reason, without a second worker.
        (reason,) = set(work.failed.values())
        assert len(work.failed) == 3
    assert reason.startswith("while loading: release/vae")
    assert str(tmp_path) not in (tmp_path / "out" / "measurements.jsonl").read_text()


def test_what_a_worker_refuses(tiny_repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights have changed, a figure is not a number, or the components together do not fit into memory."""
    repo = editable(tiny_repo, tmp_path)
    states = file_states([repo / FILE])
    change_tensors(repo / FILE, lambda tensors: tensors["proj_out.bias"].fill_(torch.nan))
    chosen = choose_settings(open_pipeline(repo), "x", GenerateOptions(steps=2, height=64, width=96))
    small = Task("", asdict(chosen), None)
    job = Job(str(repo), {}, "none", "cpu", "bfloat16", [small])

    def draw(job: Job) -> None:
        session = Session(job)
        session.load()
        session.generate(small)

    (tmp_path / "free").write_text("MemAvailable: 0 kB\n")
    jobs = {"changed": replace(job, states=states), "finite": job, r"about 122\.9 MB more memory": job}
    for reason, refused in jobs.items():
        if "memory" in reason:
            monkeypatch.setattr("converter.memory._MEMINFO", tmp_path / "free")
        with pytest.raises(LensconvError, match=reason):
            draw(refused)


def test_a_worker_says_how_the_text_encoder_is_kept(tiny_repo: Path, tmp_path: Path) -> None:
    """Unless the way of offloading decides it, which unpacks it on every machine."""
    repo = packed(tiny_repo, tmp_path)
    task = Task("", asdict(choose_settings(open_pipeline(repo), "x", GenerateOptions())), None)
    jobs = [Job(str(repo), {}, offload, "cpu", "bfloat16", [task]) for offload in ("none", "sequential")]
    assert [Session(job).load().get("mxfp4") for job in jobs] == ["unpacked", None]
