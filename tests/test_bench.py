"""The benchmark: real workers on a tiny pipeline, killed, out of memory and hanging for real."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
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
from converter.measurement.benchmark.subjects import open_subjects
from converter.measurement.evidence.files import read_evidence_folder, write_evidence
from converter.measurement.evidence.statistics import percent_change, slowdown
from converter.measurement.generation.memory import predict_memory
from converter.measurement.generation.options import GenerateOptions
from converter.measurement.generation.repo import open_pipeline
from converter.measurement.generation.settings import choose_settings
from converter.measurement.prompts.suite import PromptSuite, read_suite
from converter.schemas import load_schema
from tests.benches import DRAWING, IDS, LIMIT, SUITE
from tests.conftest import ROOT, Outcome, command, time_limit

Lensconv = Callable[..., Outcome]


@dataclass(frozen=True)
class Finished:
    """A benchmark that was killed once and ended well."""

    output: Path
    arguments: tuple[object, ...]
    rows_at_kill: int
    orphans: list[int]
    result: dict[str, Any]
    evidence: dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("suites") / "three.toml"
    file.write_text(SUITE)
    return file


def workers_below(output: Path) -> list[int]:
    """Processes that were told to write below a folder, or whose parent is gone."""
    found = []
    for place in Path("/proc").iterdir():
        try:
            line = (place / "cmdline").read_bytes()
            files = [str(link.readlink()) for link in (place / "fd").iterdir()]
        except OSError:
            continue
        if b"converter.measurement.benchmark.worker" in line and any("memfd:job" in file for file in files):
            stdin = (place / "fd" / "0").read_bytes() if (place / "fd" / "0").exists() else b""
            if str(output).encode() in stdin:
                found.append(int(place.name))
    return found


def journal_rows(output: Path) -> list[dict[str, Any]]:
    file = output / "measurements.jsonl"
    lines = file.read_text().splitlines()[1:] if file.exists() else []
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def finished(tiny_repo: Path, tiny_release: Path, suite: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Standard and offload, killed by SIGKILL after two images and run again."""
    output = tmp_path_factory.mktemp("bench") / "evidence"
    arguments = ("bench", tiny_repo, tiny_release, "--prompts", suite, "--out", output, *DRAWING, "--json")
    process = subprocess.Popen(command(*arguments), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + LIMIT
    while len([row for row in journal_rows(output) if row["key"] != LOAD_KEY]) < 2:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.communicate()
    rows = len([row for row in journal_rows(output) if row["key"] != LOAD_KEY])
    # A torn last line, as a kill in the middle of a write would leave it.
    with (output / "measurements.jsonl").open("a") as stream:
        stream.write('{"mode": "standard", "rep')
    while (orphans := workers_below(output)) and time.monotonic() < deadline:
        time.sleep(0.05)
    done = subprocess.run(command(*arguments), cwd=ROOT, capture_output=True, text=True, check=False, timeout=LIMIT)
    assert done.returncode == 0, done.stderr
    return Finished(output, arguments, rows, orphans, json.loads(done.stdout), read_evidence_folder(output))


def test_a_killed_run_leaves_no_worker_and_goes_on(finished: Finished) -> None:
    assert not finished.orphans
    assert finished.result["ok"] is True
    assert finished.result["images"] == 15
    assert finished.result["resumed"] == finished.rows_at_kill >= 2
    rows = [(row["mode"], row["model"], row["key"]) for row in journal_rows(finished.output)]
    assert len(rows) == len(set(rows)) == 15 + 4


def test_all_files_fit_their_schemas(finished: Finished) -> None:
    jsonschema.validate(finished.result, load_schema("bench"))
    assert set(finished.evidence) == {
        "benchmark_metrics.json",
        "comparison_matrix.json",
        "model_cpu_offload_benchmark.json",
        "image_fidelity.json",
        "weight_fidelity.json",
        "sdnq_quantization_summary.json",
    }
    assert finished.result["files"] == list(finished.evidence)


def test_the_matrix_says_what_was_measured(finished: Finished, tiny_repo: Path, tiny_release: Path) -> None:
    matrix = finished.evidence["comparison_matrix.json"]
    assert [row["id"] for row in matrix["prompts"]] == list(IDS)
    measured = {(row["mode"], row["model"], row["key"]): row for row in journal_rows(finished.output)}
    for row in matrix["prompts"]:
        assert row["delta_percent"] == percent_change(row["original"]["time_s"], row["quantized"]["time_s"])
        for model in ("original", "quantized"):
            side = row[model]
            assert side["time_s"] == measured["standard", model, row["id"]]["time_s"] > 0
            assert side["images_agree"] is True
            stages = side["stages"]
            assert set(stages) == {"text_encoder", "transformer", "vae"}
            assert sum(stage["time_s"] for stage in stages.values()) == pytest.approx(side["time_s"], abs=0.002)
            assert side["peak_rss_gb"] == max(stage["peak_rss_gb"] for stage in stages.values()) > 0.1
            image = finished.output / side["image"]
            assert image.name == f"{row['id']}-{row['seed']}-{model}.png"
            assert hashlib.sha256(image.read_bytes()).hexdigest() == side["image_sha256"]
        assert row["baseline"]["seed"] == row["seed"] + 1000
    sides = [[row[model]["time_s"] for row in matrix["prompts"]] for model in ("original", "quantized")]
    assert matrix["summary"]["slowdown"] == slowdown(*sides).to_dict()
    for name, repo in (("original", tiny_repo), ("quantized", tiny_release)):
        (file,) = matrix["sources"][name]["transformer"]
        content = (repo / "transformer" / file["name"]).read_bytes()
        assert file == {
            "name": "diffusion_pytorch_model.safetensors",
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }


def test_footprints_come_from_headers(finished: Finished, tiny_repo: Path, tiny_release: Path) -> None:
    metrics = finished.evidence["benchmark_metrics.json"]
    for name, repo in (("original", tiny_repo), ("quantized", tiny_release)):
        model, checkpoint = metrics["models"][name], open_pipeline(repo).transformer
        assert model["transformer"]["bytes_by_dtype"] == checkpoint.bytes_by_dtype
        assert sum(part["bytes"] for part in model["transformer"]["families"]) == checkpoint.total_bytes
        assert model["components"]["transformer"]["memory_gb"] > 0
        assert model["generation_time_s"]["count"] == 3
        assert model["load_cache_warm"] is True
    parameters = {metrics["models"][name]["transformer"]["parameters"] for name in ("original", "quantized")}
    assert len(parameters) == 1
    assert metrics["environment"]["hardware"].startswith("CPU ")
    assert metrics["environment"]["torch"] == torch.__version__
    text = json.dumps(finished.evidence)
    assert str(finished.output.parent) not in text
    assert str(tiny_repo.parent) not in text
    assert os.uname().nodename not in text


def test_cold_is_the_first_image_and_warm_the_others(finished: Finished) -> None:
    offload = finished.evidence["model_cpu_offload_benchmark.json"]
    assert (offload["cold_prompt"], offload["warm_prompts"]) == ("A1", ["B2", "C3"])
    rows = {(row["model"], row["key"]): row for row in journal_rows(finished.output) if row["mode"] == "offload"}
    for name, model in offload["models"].items():
        assert model["cold"]["time_s"] == rows[name, "A1"]["time_s"]
        assert model["setup"]["time_s"] == rows[name, LOAD_KEY]["time_s"]
        assert model["warm"]["time_s"]["count"] == 2
        assert model["warm"]["time_s"]["max"] == max(rows[name, key]["time_s"] for key in ("B2", "C3"))


def test_fidelity_is_measured_beside_a_baseline(finished: Finished) -> None:
    images = finished.evidence["image_fidelity.json"]
    assert images["num_inference_steps"] == 2
    assert [pair["id"] for pair in images["pairs"]] == list(IDS)
    for pair in images["pairs"]:
        # Another seed draws another image, quantization the same one a little differently.
        assert pair["psnr_db"] > pair["baseline"]["psnr_db"] + 5
        assert pair["ssim"] > pair["baseline"]["ssim"]
    families = {part["name"] for part in finished.evidence["weight_fidelity.json"]["fidelity"]["families"]}
    assert {"attn", "img_mlp", "txt_mlp"} <= families


def test_the_images_are_those_of_generate(finished: Finished, tiny_release: Path, lensconv: Lensconv) -> None:
    image = finished.output.parent / "B2.png"
    prompt = 'вывеска "ХЛЕБ" над дверью'
    assert lensconv("generate", tiny_release, "--prompt", prompt, "--seed", 302, "--out", image, *DRAWING).code == 0
    assert image.read_bytes() == (finished.output / "images" / "quantized" / "B2-302-quantized.png").read_bytes()


def test_a_finished_run_measures_nothing_again(finished: Finished, lensconv: Lensconv) -> None:
    before = (finished.output / "measurements.jsonl").read_bytes()
    outcome = lensconv(*finished.arguments)
    assert outcome.code == 0
    assert outcome.result["resumed"] == outcome.result["images"] == 15
    assert "15 of 15 images were measured by an earlier run" in outcome.stderr
    assert (finished.output / "measurements.jsonl").read_bytes() == before


def test_images_that_are_gone_or_others_are_left_out(finished: Finished, lensconv: Lensconv) -> None:
    copy = finished.output.parent / "copy"
    shutil.copytree(finished.output, copy)
    arguments = ["--out", copy, *finished.arguments[7:]]
    first, second = (copy / "images" / "quantized" / name for name in ("A1-301-quantized.png", "B2-302-quantized.png"))
    shutil.copyfile(copy / "images" / "original" / "A1-301-original.png", first)
    second.unlink()
    shutil.rmtree(copy / "images" / "baseline")
    # Nothing of this run's own mode draws them.
    outcome = lensconv(*finished.arguments[:5], *arguments, "--mode", "offload", "--no-baseline")
    assert outcome.code == 0, outcome.stdout
    assert "images of A1, B2 are missing or were changed" in outcome.stderr
    evidence = read_evidence_folder(copy)
    assert [pair["id"] for pair in evidence["image_fidelity.json"]["pairs"]] == ["C3"]
    assert evidence["image_fidelity.json"]["pairs"][0]["baseline"] is None
    assert evidence["comparison_matrix.json"]["prompts"][0]["quantized"]["time_s"] > 0


def test_another_benchmark_in_the_same_folder_is_refused(finished: Finished, lensconv: Lensconv) -> None:
    outcome = lensconv(*finished.arguments, "--steps", 3)
    assert outcome.code == 2
    assert "contains another benchmark: settings.steps was 2, and is 3" in outcome.result["error"]["message"]
    assert "--restart" in outcome.result["error"]["hint"]


def test_ctrl_c_ends_the_worker_and_keeps_what_was_measured(
    tiny_repo: Path, tiny_release: Path, suite: Path, tmp_path: Path
) -> None:
    output = tmp_path / "evidence"
    arguments = ("bench", tiny_repo, tiny_release, "--prompts", suite, "--out", output, *DRAWING, "--json")
    process = subprocess.Popen(
        command(*arguments), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + LIMIT
    while not journal_rows(output):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert json.loads(stdout)["error"]["type"] == "Interrupted"
    assert "Traceback" not in stderr
    assert not workers_below(output)


def test_models_that_are_no_pair(
    tiny_repo: Path, tiny_release: Path, lens_output: Path, tmp_path: Path, lensconv: Lensconv
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_repo, copy)
    other = tmp_path / "other"
    shutil.copytree(tiny_release, other)
    index = json.loads((other / "model_index.json").read_text())
    (other / "model_index.json").write_text(json.dumps({**index, "_class_name": "FluxPipeline"}))
    cases = [
        (tiny_repo, tiny_repo, "have the same transformer"),
        (tiny_repo, copy, "have the same transformer"),
        (tiny_release, tiny_release, "have the same transformer"),
        (tiny_repo, other, "is for FluxPipeline"),
        (tiny_repo, lens_output, "is not a pipeline repo"),
        (tmp_path / "nowhere", tiny_release, "no such folder"),
        (tiny_release, tiny_repo, "is quantized, and"),
    ]
    for original, quantized, message in cases:
        outcome = lensconv("bench", original, quantized, "--out", tmp_path / "out", "--json")
        assert outcome.code == 2
        assert message in outcome.result["error"]["message"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("quant_transformer_dtypes", {"UINT8": 1000}, "its dtypes add up to 1000 bytes"),
        (
            "quant_transformer_dtypes+",
            1,
            "and the headers of the transformer to",
        ),
    ],
)
def test_a_summary_that_contradicts_the_headers(
    key: str, value: Any, message: str, tiny_repo: Path, tiny_release: Path, tmp_path: Path, lensconv: Lensconv
) -> None:
    release = shutil.copytree(tiny_release, tmp_path / "release")
    file = release / "sdnq_quantization_summary.json"
    content = json.loads(file.read_text())
    if key.endswith("+"):
        dtype = next(iter(content[key[:-1]]))
        content[key[:-1]][dtype] += value
    else:
        content[key] = value
    file.write_text(json.dumps(content))
    outcome = lensconv("bench", tiny_repo, release, "--out", tmp_path / "out", "--json")
    assert outcome.code == 2
    assert message in outcome.result["error"]["message"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mode", "fast"], "--mode fast: must be one or more of standard, offload, sequential"),
        (["--mode", ","], "--mode ,: must be one or more of"),
        (["--repeats", "0"], "not in the range"),
        (["--timeout", "0"], "not in the range"),
        (["--steps", "0"], "not in the range"),
        (["--height", "65", "--width", "64"], "is not a multiple of 16"),
        (["--device", "tpu"], "must be auto, cpu, cuda"),
        (["--prompts", "nothing"], "no suite has that name"),
    ],
)
def test_bad_options(
    arguments: list[str], message: str, tiny_repo: Path, tiny_release: Path, tmp_path: Path, lensconv: Lensconv
) -> None:
    outcome = lensconv("bench", tiny_repo, tiny_release, "--out", tmp_path / "out", *arguments, "--json")
    assert outcome.code == 2
    assert message in outcome.result["error"]["message"]
    assert not (tmp_path / "out").exists()


def test_places_that_cannot_be_written(tiny_repo: Path, tiny_release: Path, tmp_path: Path, lensconv: Lensconv) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "images").symlink_to(tmp_path)
    cases = [
        (tiny_repo / "out", "is inside the original repo"),
        (tmp_path / "file", "is not a folder"),
        (tmp_path / "linked", "is a link"),
    ]
    for place, message in cases:
        outcome = lensconv("bench", tiny_repo, tiny_release, "--out", place, "--json")
        assert outcome.code == 2
        assert message in outcome.result["error"]["message"]


def test_files_of_another_benchmark_are_not_mixed_in(
    tiny_repo: Path, tiny_release: Path, tmp_path: Path, lensconv: Lensconv
) -> None:
    (tmp_path / "weight_fidelity.json").write_text("{}")
    outcome = lensconv("bench", tiny_repo, tiny_release, "--out", tmp_path, *DRAWING, "--json")
    assert outcome.code == 2
    assert "weight_fidelity.json: is from another benchmark" in outcome.result["error"]["message"]
    (tmp_path / "weight_fidelity.json").unlink()
    (tmp_path / "measurements.jsonl").unlink()
    os.mkfifo(tmp_path / "measurements.jsonl")
    with time_limit():
        outcome = lensconv("bench", tiny_repo, tiny_release, "--out", tmp_path, *DRAWING, "--json")
    assert outcome.code == 2
    assert "is not a file" in outcome.result["error"]["message"]


def test_weights_that_change_are_refused(tiny_repo: Path, tiny_release: Path, tmp_path: Path) -> None:
    release = shutil.copytree(tiny_release, tmp_path / "release")
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


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_device_that_is_not_there(tiny_repo: Path, tiny_release: Path, tmp_path: Path, lensconv: Lensconv) -> None:
    with time_limit(LIMIT):
        outcome = lensconv("bench", tiny_repo, tiny_release, "--device", "cuda", "--out", tmp_path / "out", "--json")
    assert outcome.code == 3
    assert outcome.result["error"]["type"] == "DeviceError"


PLACE = {"mode": "standard", "repeat": 0, "model": "original", "key": "P01"}
ROW = {
    "time_s": 1.5,
    "stages": {name: {"time_s": 0.5} for name in ("text_encoder", "transformer", "vae")},
    "pixels_sha256": "0" * 64,
}


@pytest.mark.parametrize(
    "line",
    [
        b"[]",
        b"{}",
        b"{",
        b"\xff",
        b'{"mode": 1}',
        b'{"format": "lensconv.measurements/1"}',
        json.dumps({"mode": "standard", "repeat": 0, "model": "original", "key": "P01", "time_s": 1}).encode(),
        json.dumps({"mode": "standard", "repeat": 0, "model": "other", "key": "P01", **ROW}).encode(),
        json.dumps(
            {"mode": "standard", "repeat": 0, "model": "original", "key": "P01", **ROW, "time_s": math.nan}
        ).encode(),
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


def test_a_journal_of_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "measurements.jsonl").write_text('{"format": "lensconv.measurements/2"}\n')
    with pytest.raises(EvidenceError, match="is damaged: line 1"):
        Journal(tmp_path, {"a": 1}, restart=False)


def test_a_journal_is_written_by_one_process(tmp_path: Path) -> None:
    cell = Cell("standard", 0, "original")
    with Journal(tmp_path, {"a": {"b": 1}}, restart=False) as journal:
        journal.note(cell, "P01", ROW)
        journal.note(cell, "P02", {"failed": "hung"})
        with pytest.raises(OutputError, match="another process is measuring"):
            Journal(tmp_path, {"a": {"b": 1}}, restart=True)
    with pytest.raises(OutputError, match=r"contains another benchmark: a\.b was 1, and is 2"):
        Journal(tmp_path, {"a": {"b": 2}}, restart=False)
    with Journal(tmp_path, {"a": {"b": 1}}, restart=False) as journal:
        assert journal.measured == {(cell, "P01"): ROW}
        assert journal.failures == {(cell, "P02"): ["hung"]}
    with Journal(tmp_path, {"a": {"b": 2}}, restart=True) as journal:
        assert not journal.measured


@pytest.mark.parametrize("count", [1, 3])
def test_failures_alone_are_evidence_too(
    count: int, suite: Path, tiny_repo: Path, tiny_release: Path, tmp_path: Path, lensconv: Lensconv
) -> None:
    subjects = {subject.name: subject for subject in open_subjects(tiny_repo, tiny_release, SILENT)}
    prompts = PromptSuite("some", read_suite(suite).prompts[:count])
    settings = [
        choose_settings(subjects["original"].repo, prompt.prompt, GenerateOptions(seed=prompt.seed))
        for prompt in prompts.prompts
    ]
    with Journal(tmp_path, {}, restart=False) as journal:
        for mode in ("standard", "offload"):
            for model in subjects:
                for prompt in prompts.prompts:
                    journal.note(Cell(mode, 0, model), prompt.id, {"failed": "while loading: no memory"})
        machine = describe_machine("cpu")
        files = Assembly(journal, prompts, settings, subjects, machine).files()
        for name, content in files.items():
            write_evidence(tmp_path, name, content)
    matrix = files["comparison_matrix.json"]
    assert [row["quantized"] for row in matrix["prompts"]] == [{"failed": "while loading: no memory"}] * count
    assert matrix["summary"] == {}
    warm = files["model_cpu_offload_benchmark.json"]["models"]["original"]["warm"]
    assert warm == {
        "failed": "while loading: no memory" if count > 1 else "the suite has one prompt, which is the cold one"
    }
    shown = lensconv("evidence", tmp_path)
    assert shown.code == 0
    assert "failed" in shown.stderr
    assert lensconv("charts", tmp_path).code == 0
    assert "cells are missing" in lensconv("grid", tmp_path).stderr


def test_a_mode_that_failed_altogether_leaves_the_matrix_to_another(
    suite: Path, tiny_repo: Path, tiny_release: Path, tmp_path: Path
) -> None:
    subjects = {subject.name: subject for subject in open_subjects(tiny_repo, tiny_release, SILENT)}
    prompts = read_suite(suite)
    repo = subjects["original"].repo
    settings = [choose_settings(repo, prompt.prompt, GenerateOptions(seed=prompt.seed)) for prompt in prompts.prompts]
    options = BenchOptions(mode="offload")
    with Journal(tmp_path, {}, restart=False) as journal:
        work = Bench(tmp_path, subjects, prompts, settings, options, "cpu", journal)
        for model in subjects:
            journal.note(Cell("standard", 0, model), "A1", {"failed": "no memory"})
            for prompt in prompts.prompts:
                journal.note(Cell("offload", 0, model), prompt.id, ROW)
        assert work.picture_mode == "offload"
        files = Assembly(journal, prompts, settings, subjects, describe_machine("cpu")).files()
    assert files["comparison_matrix.json"]["mode"] == "offload"
    assert files["comparison_matrix.json"]["summary"]["slowdown"]["pairs"] == 3
    assert "generation_time_s" not in files["benchmark_metrics.json"]["models"]["original"]
    for name, content in files.items():
        write_evidence(tmp_path, name, content)
    read_evidence_folder(tmp_path)


def test_reasons_do_not_tell_where_folders_lie(
    suite: Path, tiny_repo: Path, tiny_release: Path, tmp_path: Path
) -> None:
    """A weight file that cannot be loaded, whose error names its path."""
    release = shutil.copytree(tiny_release, tmp_path / "release")
    config = release / "vae" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "latent_channels": 7}))
    subjects = {subject.name: subject for subject in open_subjects(tiny_repo, release, SILENT)}
    prompts = read_suite(suite)
    repo = subjects["original"].repo
    settings = [choose_settings(repo, prompt.prompt, GenerateOptions(seed=prompt.seed)) for prompt in prompts.prompts]
    with Journal(tmp_path / "out", {}, restart=False) as journal:
        work = Bench(tmp_path / "out", subjects, prompts, settings, BenchOptions(mode="standard"), "cpu", journal)
        cell = Cell("standard", 0, "quantized")
        with time_limit(LIMIT):
            work._run_worker(cell, work.missing(cell), Progress())
        # What a loader says it says again: all images failed for one reason, without a second worker.
        (reason,) = set(work.failed.values())
        assert len(work.failed) == 3
    assert reason.startswith("while loading: release/vae")
    assert str(tmp_path) not in (tmp_path / "out" / "measurements.jsonl").read_text()


def test_repeats_are_medians_and_largest_peaks(
    suite: Path, tiny_repo: Path, tiny_release: Path, tmp_path: Path
) -> None:
    subjects = {subject.name: subject for subject in open_subjects(tiny_repo, tiny_release, SILENT)}
    prompts = read_suite(suite)
    repo = subjects["original"].repo
    settings = [choose_settings(repo, prompt.prompt, GenerateOptions(seed=prompt.seed)) for prompt in prompts.prompts]
    with Journal(tmp_path, {}, restart=False) as journal:
        for repeat, time in enumerate((3.0, 1.0, 2.0)):
            for model, factor in (("original", 1), ("quantized", 2)):
                cell = Cell("standard", repeat, model)
                load = {"time_s": time, "peak_rss_gb": time, "cache_warm": repeat < 2, "components": {}}
                journal.note(cell, LOAD_KEY, load)
                for prompt in prompts.prompts:
                    row = {**ROW, "time_s": time * factor, "peak_rss_gb": time, "pixels_sha256": f"{repeat % 2}" * 64}
                    if repeat == 0:
                        image = tmp_path / image_name(model, prompt)
                        image.parent.mkdir(parents=True, exist_ok=True)
                        image.write_bytes(b"an image")
                        row["image_sha256"] = hashlib.sha256(b"an image").hexdigest()
                    journal.note(cell, prompt.id, row)
        journal.note(Cell("standard", 3, "original"), "A1", {"failed": "hung"})
        files = Assembly(journal, prompts, settings, subjects, describe_machine("cpu")).files()
    for name, content in files.items():
        write_evidence(tmp_path, name, content)
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


def test_a_stopwatch_gives_times_and_peaks_of_stages() -> None:
    meter = Meter(torch.device("cpu"))
    with meter.watching():
        watch = Stopwatch(meter, "first")
        time.sleep(0.05)
        watch.begin("second")
        block = bytearray(200_000_000)
        block[::4096] = bytes(len(block[::4096]))
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
    # The peak of a stage is no peak of the next one.
    assert stages["third"]["peak_rss_gb"] < stages["second"]["peak_rss_gb"] - 0.15
    assert figures["peak_rss_gb"] == stages["second"]["peak_rss_gb"]


def test_peaks_are_sampled_where_they_cannot_be_reset(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("converter.measurement.benchmark.meter._CLEAR_REFS", tmp_path)
    meter = Meter(torch.device("cpu"))
    with meter.watching():
        watch = Stopwatch(meter, "first")
        block = bytearray(200_000_000)
        block[::4096] = bytes(len(block[::4096]))
        time.sleep(0.2)
        del block
        watch.begin("second")
        figures = watch.stop()
    stages = figures["stages"]
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
