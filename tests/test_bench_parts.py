"""The parts of the benchmark: journal, files of measurements, meter, predicted memory."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from converter.console import SILENT, Progress
from converter.errors import EvidenceError, MalformedCheckpoint, MissingInput, OutputError
from converter.measurement.benchmark.assembly import Assembly
from converter.measurement.benchmark.changes import refuse_changed_files
from converter.measurement.benchmark.journal import LOAD_KEY, Cell, Journal
from converter.measurement.benchmark.machine import describe_machine
from converter.measurement.benchmark.measuring import Bench, image_name
from converter.measurement.benchmark.meter import Meter, Stopwatch
from converter.measurement.benchmark.options import BenchOptions
from converter.measurement.benchmark.subjects import Subject, open_subjects
from converter.measurement.evidence.files import read_evidence_folder, write_evidence
from converter.measurement.generation.memory import loaded_bytes, predict_memory
from converter.measurement.generation.options import GenerateOptions
from converter.measurement.generation.repo import open_pipeline
from converter.measurement.generation.settings import Settings, choose_settings
from converter.measurement.prompts.suite import PromptSuite, read_suite
from tests.benches import LIMIT, SUITE
from tests.conftest import Lensconv, edit_json, time_limit


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("suites") / "three.toml"
    file.write_text(SUITE)
    return file


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
        repo = subjects["original"].repo
        settings = [choose_settings(repo, prompt.prompt, GenerateOptions(seed=prompt.seed)) for prompt in prompts]
        return cls(subjects, PromptSuite("some", prompts), settings)

    def bench(self, journal: Journal, mode: str) -> Bench:
        folder = journal.file.parent
        return Bench(folder, self.subjects, self.suite, self.settings, BenchOptions(mode=mode), "cpu", journal)

    def write_files(self, journal: Journal) -> dict[str, dict[str, Any]]:
        files = Assembly(journal, self.suite, self.settings, self.subjects, describe_machine("cpu")).files()
        for name, content in files.items():
            write_evidence(journal.file.parent, name, content)
        return files


@pytest.fixture
def inputs(tiny_repo: Path, tiny_release: Path, suite: Path) -> Inputs:
    return Inputs.open(tiny_repo, tiny_release, suite)


def test_weights_that_change_are_refused(tiny_repo: Path, release: Path) -> None:
    subjects = open_subjects(tiny_repo, release, SILENT)
    for subject in subjects:
        refuse_changed_files(subject.states)
    (file,) = (release / "vae").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    with pytest.raises(MalformedCheckpoint, match="changed while it was measured"):
        refuse_changed_files(subjects[1].states)
    assert subjects[1].components != open_subjects(tiny_repo, release, SILENT)[1].components
    file.unlink()
    with pytest.raises(MissingInput):
        refuse_changed_files(subjects[1].states)


CELL = {"mode": "standard", "repeat": 0, "model": "original", "key": "P01"}
ROW = {
    "time_s": 1.5,
    "stages": {name: {"time_s": 0.5} for name in ("text_encoder", "transformer", "vae")},
    "pixels_sha256": "0" * 64,
}


@pytest.mark.parametrize(
    "line",
    [
        *(b"[]", b"{}", b"{", b"\xff", b'{"mode": 1}', b'{"format": "lensconv.measurements/1"}'),
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


def test_a_journal_is_of_this_format_and_written_by_one_process(tmp_path: Path) -> None:
    (tmp_path / "measurements.jsonl").write_text('{"format": "lensconv.measurements/2"}\n')
    with pytest.raises(EvidenceError, match="is damaged: line 1"):
        Journal(tmp_path, {"a": 1}, restart=False)
    (tmp_path / "measurements.jsonl").unlink()
    cell = Cell("standard", 0, "original")
    with Journal(tmp_path, {"a": {"b": 1}}, restart=False) as journal:
        journal.note(cell, "P01", ROW)
        journal.note(cell, "P02", {"failed": "hung"})
        with pytest.raises(OutputError, match="another process is measuring"):
            Journal(tmp_path, {"a": {"b": 1}}, restart=True)
    with pytest.raises(OutputError, match=r"contains another benchmark: a\.b was 1, and is now 2"):
        Journal(tmp_path, {"a": {"b": 2}}, restart=False)
    with Journal(tmp_path, {"a": {"b": 1}}, restart=False) as journal:
        assert journal.measured == {(cell, "P01"): ROW}
        assert journal.failures == {(cell, "P02"): ["hung"]}
    with Journal(tmp_path, {"a": {"b": 2}}, restart=True) as journal:
        assert not journal.measured
    with Journal(tmp_path, {"a": {"b": 2}}, restart=False) as journal:
        assert journal.is_new


def test_a_measurement_is_on_the_disk_before_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    with Journal(tmp_path, {"a": 1}, restart=False) as journal:
        for key in ("P01", "P02"):
            journal.note(Cell("standard", 0, "original"), key, ROW)
            assert synced[-1] == journal.file.stat().st_size


@pytest.mark.parametrize("count", [1, 3])
def test_failures_alone_are_evidence_too(
    count: int, suite: Path, tiny_repo: Path, tiny_release: Path, tmp_path: Path, lensconv: Lensconv
) -> None:
    inputs = Inputs.open(tiny_repo, tiny_release, suite, count)
    with Journal(tmp_path, {}, restart=False) as journal:
        for mode in ("standard", "offload"):
            for model in inputs.subjects:
                for prompt in inputs.suite.prompts:
                    journal.note(Cell(mode, 0, model), prompt.id, {"failed": "while loading: no memory"})
        files = inputs.write_files(journal)
    matrix = files["comparison_matrix.json"]
    assert [row["quantized"] for row in matrix["prompts"]] == [{"failed": "while loading: no memory"}] * count
    assert matrix["summary"] == {}
    reason = "while loading: no memory" if count > 1 else "the suite has one prompt, which is the cold one"
    assert files["model_cpu_offload_benchmark.json"]["models"]["original"]["warm"] == {"failed": reason}
    shown = lensconv("evidence", tmp_path)
    assert shown.code == 0
    assert "failed" in shown.stderr
    assert lensconv("charts", tmp_path).code == 0
    assert "cells are missing" in lensconv("grid", tmp_path).stderr


def test_a_mode_that_failed_altogether_leaves_the_matrix_to_another(inputs: Inputs, tmp_path: Path) -> None:
    with Journal(tmp_path, {}, restart=False) as journal:
        for model in inputs.subjects:
            journal.note(Cell("standard", 0, model), "A1", {"failed": "no memory"})
            for prompt in inputs.suite.prompts:
                journal.note(Cell("offload", 0, model), prompt.id, ROW)
        assert inputs.bench(journal, "offload").picture_mode == "offload"
        files = inputs.write_files(journal)
    assert files["comparison_matrix.json"]["mode"] == "offload"
    assert files["comparison_matrix.json"]["summary"]["slowdown"]["pairs"] == 3
    assert "generation_time_s" not in files["benchmark_metrics.json"]["models"]["original"]
    read_evidence_folder(tmp_path)


def test_reasons_do_not_tell_where_folders_lie(suite: Path, tiny_repo: Path, release: Path, tmp_path: Path) -> None:
    """A weight file that cannot be loaded, whose error names its path."""
    edit_json(release / "vae" / "config.json", latent_channels=7)
    inputs = Inputs.open(tiny_repo, release, suite)
    with Journal(tmp_path / "out", {}, restart=False) as journal:
        work = inputs.bench(journal, "standard")
        cell = Cell("standard", 0, "quantized")
        with time_limit(LIMIT):
            work._run_worker(cell, work.missing(cell), Progress())
        # What a loader says it says again: all images failed for one reason, without a second worker.
        (reason,) = set(work.failed.values())
        assert len(work.failed) == 3
    assert reason.startswith("while loading: release/vae")
    assert str(tmp_path) not in (tmp_path / "out" / "measurements.jsonl").read_text()


def test_repeats_are_medians_and_largest_peaks(inputs: Inputs, tmp_path: Path) -> None:
    with Journal(tmp_path, {}, restart=False) as journal:
        for repeat, time in enumerate((3.0, 1.0, 2.0)):
            for model, factor in (("original", 1), ("quantized", 2)):
                cell = Cell("standard", repeat, model)
                load = {"time_s": time, "peak_rss_gb": time, "cache_warm": repeat < 2, "components": {}}
                journal.note(cell, LOAD_KEY, load)
                for prompt in inputs.suite.prompts:
                    row = {**ROW, "time_s": time * factor, "peak_rss_gb": time, "pixels_sha256": f"{repeat % 2}" * 64}
                    if repeat == 0:
                        image = tmp_path / image_name(model, prompt)
                        image.parent.mkdir(parents=True, exist_ok=True)
                        image.write_bytes(b"an image")
                        row["image_sha256"] = hashlib.sha256(b"an image").hexdigest()
                    journal.note(cell, prompt.id, row)
        journal.note(Cell("standard", 3, "original"), "A1", {"failed": "hung"})
        files = inputs.write_files(journal)
    row = files["comparison_matrix.json"]["prompts"][0]
    assert (row["original"]["time_s"], row["original"]["times_s"]) == (2.0, [3.0, 1.0, 2.0])
    assert (row["quantized"]["time_s"], row["original"]["peak_rss_gb"]) == (4.0, 3.0)
    assert row["delta_percent"] == 100.0
    # Repeats drew other pixels.
    assert row["original"]["images_agree"] is False
    assert row["original"]["failed_attempts"] == [{"repeat": 3, "reason": "hung"}]
    model = files["benchmark_metrics.json"]["models"]["original"]
    assert (model["load_time_s"], model["load_peak_rss_gb"], model["load_cache_warm"]) == (2.0, 3.0, False)
    assert model["failed"] == [{"prompt": "A1", "repeat": 3, "reason": "hung"}]
    assert files["benchmark_metrics.json"]["slowdown"]["mean_difference_s"] == 2.0
    assert files["benchmark_metrics.json"]["settings"]["repeats"] == 4


def grown_block() -> bytearray:
    """0.2 GB that are resident."""
    block = bytearray(200_000_000)
    block[::4096] = bytes(len(block[::4096]))
    return block


def test_a_stopwatch_gives_times_and_peaks_of_stages() -> None:
    meter = Meter(torch.device("cpu"))
    with meter.watching():
        watch = Stopwatch(meter, "first")
        time.sleep(0.05)
        watch.begin("second")
        block = grown_block()
        del block
        watch.begin("second")
        watch.begin("third")
        figures = watch.stop()
    stages = figures["stages"]
    assert list(stages) == ["first", "second", "third"]
    assert stages["first"]["time_s"] >= 0.05
    assert sum(stage["time_s"] for stage in stages.values()) == pytest.approx(figures["time_s"], abs=0.002)
    grown = stages["second"]["peak_rss_gb"] - stages["first"]["peak_rss_gb"]
    assert grown == pytest.approx(0.2, abs=0.02)
    # The peak of a stage does not count for the next one.
    assert stages["third"]["peak_rss_gb"] < stages["second"]["peak_rss_gb"] - 0.15
    assert figures["peak_rss_gb"] == stages["second"]["peak_rss_gb"]


def test_peaks_are_sampled_where_they_cannot_be_reset(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("converter.measurement.benchmark.meter._CLEAR_REFS", tmp_path)
    meter = Meter(torch.device("cpu"))
    with meter.watching():
        watch = Stopwatch(meter, "first")
        block = grown_block()
        time.sleep(0.2)
        del block
        watch.begin("second")
        stages = watch.stop()["stages"]
    assert stages["first"]["peak_rss_gb"] - stages["second"]["peak_rss_gb"] == pytest.approx(0.2, abs=0.03)


def test_a_resident_pipeline_needs_the_sum_of_its_parts(tiny_repo: Path) -> None:
    repo = open_pipeline(tiny_repo)
    settings = choose_settings(repo, "x", GenerateOptions())
    resident = predict_memory(repo, settings, offload="none", on_cpu=True, unpacks=False, keeps_encoder=True)
    staged = predict_memory(repo, settings, offload="none", on_cpu=True, unpacks=False)
    smaller = min(repo.text_encoder.total_bytes, repo.transformer.total_bytes) // 2
    assert resident.host >= staged.host + smaller
    on_gpu = {
        offload: predict_memory(repo, settings, offload=offload, on_cpu=False, unpacks=False, keeps_encoder=True)
        for offload in ("none", "model", "sequential")
    }
    assert on_gpu["none"].device > on_gpu["model"].device > on_gpu["sequential"].device
    assert on_gpu["none"].host < on_gpu["model"].host


def test_a_packed_text_encoder_stays_on_the_accelerator(tiny_repo: Path, tmp_path: Path) -> None:
    """So that the host need not hold it, whatever is offloaded."""
    copy = shutil.copytree(tiny_repo, tmp_path / "packed")
    edit_json(copy / "text_encoder" / "config.json", quantization_config={"quant_method": "mxfp4"})
    dense, packed = open_pipeline(tiny_repo), open_pipeline(copy)
    settings = choose_settings(dense, "x", GenerateOptions())
    encoder = loaded_bytes(dense.text_encoder, 2)
    for offload in ("model", "sequential"):
        needs = [
            predict_memory(repo, settings, offload=offload, on_cpu=False, unpacks=False, keeps_encoder=True)
            for repo in (dense, packed)
        ]
        assert needs[0].host - needs[1].host == encoder
        assert needs[1].device - needs[0].device == (encoder if offload == "model" else 0)
