"""The benchmark: real workers on a tiny pipeline that are killed, run out of memory or hang, and what it refuses."""

from __future__ import annotations

import copy
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from PIL import Image

import converter
from converter.console import Progress
from converter.libraries import user_environment
from converter.measurement.benchmark.journal import is_image_key
from converter.measurement.benchmark.machine_probe import probe_machine
from converter.measurement.benchmark.preparing import drop_earlier
from converter.measurement.evidence.files import read_evidence_folder
from converter.schemas import load_schema
from tests.benches import DRAWING, LIMIT, ONCE, SUITE, folded
from tests.cases import check_cases
from tests.conftest import ROOT, Lensconv, Outcome, call, command, edit_json, names_in, snapshot, time_limit
from tests.expected import check_expected
from tests.reporters import Notes

#: The benchmark that most of them share takes a minute.
pytestmark = pytest.mark.long
#: On a CPU it gives the same images.
CHAIN = ("--int8", "chain")


@dataclass(frozen=True)
class Finished:
    """A benchmark that was killed once and ended well."""

    output: Path
    arguments: tuple[object, ...]
    rows_at_kill: int
    orphans: list[int]
    result: dict[str, Any]
    evidence: dict[str, dict[str, Any]]


@pytest.fixture(scope="module", autouse=True)
def _described_once() -> Iterator[None]:
    """A worker describes the machine for the first benchmark in this process with an environment, not for each."""
    described: dict[object, dict[str, Any]] = {}

    def probe(device: str, tick: Callable[[], None]) -> dict[str, Any]:
        key = device, *user_environment().items()
        if key not in described:
            described[key] = probe_machine(device, tick)
        return copy.deepcopy(described[key])

    with pytest.MonkeyPatch.context() as changed:
        changed.setattr("converter.measurement.benchmark.preparing.probe_machine", probe)
        yield


@pytest.fixture
def bench(tiny_repo: Path, tiny_release: Path, lensconv: Lensconv) -> Lensconv:
    """Run the benchmark of the tiny pipeline and its release, or of others."""

    def call(output: Path, *options: object, original: Path = tiny_repo, quantized: Path = tiny_release) -> Outcome:
        return lensconv("bench", original, quantized, "--out", output, *options, "--json")

    return call


def wait_for_rows(process: subprocess.Popen[Any], output: Path, images: int = 0) -> None:
    """Wait until a benchmark has noted something, and so many images."""
    deadline = time.monotonic() + LIMIT
    while not journal_rows(output) or len(image_rows(output)) < images:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def workers_below(output: Path) -> list[int]:
    """Processes that were told to write below a folder, or whose parent is gone."""
    found = []
    for place in Path("/proc").iterdir():
        with suppress(OSError):
            is_worker = b"converter.measurement.benchmark.worker" in (place / "cmdline").read_bytes()
            if is_worker and str(output).encode() in (place / "fd" / "0").read_bytes():
                found.append(int(place.name))
    return found


def journal_rows(output: Path) -> list[dict[str, Any]]:
    file = output / "measurements.jsonl"
    lines = file.read_text().splitlines()[1:] if file.exists() else []
    return [json.loads(line) for line in lines]


def image_rows(output: Path) -> list[dict[str, Any]]:
    return [row for row in journal_rows(output) if is_image_key(row["key"])]


@pytest.fixture(scope="module")
def finished(tiny_repo: Path, tiny_release: Path, suite: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Standard and offload, killed by SIGKILL after two images and run again."""
    output = tmp_path_factory.mktemp("bench") / "evidence"
    arguments = (
        "bench",
        tiny_repo,
        tiny_release,
        "--prompts",
        suite,
        "--out",
        output,
        *DRAWING,
        *CHAIN,
        *ONCE,
        "--json",
    )
    process = subprocess.Popen(command(*arguments), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    wait_for_rows(process, output, images=2)
    # A worker that stands still does not end by itself.
    for worker in workers_below(output):
        os.kill(worker, signal.SIGSTOP)
    process.kill()
    process.communicate()
    rows = len(image_rows(output))
    # A torn last line, as a kill in the middle of a write would leave it.
    with (output / "measurements.jsonl").open("a") as stream:
        stream.write('{"mode": "standard", "pai')
    deadline = time.monotonic() + 20
    while (orphans := workers_below(output)) and time.monotonic() < deadline:
        time.sleep(0.05)
    with time_limit(LIMIT):
        done = call(*arguments)
    assert done.code == 0, done.stderr
    return Finished(output, arguments, rows, orphans, done.result, read_evidence_folder(output))


def test_a_killed_run_leaves_no_worker_and_goes_on(finished: Finished) -> None:
    assert not finished.orphans
    assert finished.result["resumed"] == finished.rows_at_kill >= 2
    rows = [(row["mode"], row["model"], row["key"]) for row in journal_rows(finished.output)]
    assert len(rows) == len(set(rows)) == 15 + 4 + 8


def shaped(content: Any) -> Any:
    """The content without what differs between machines: figures and checksums."""
    if isinstance(content, dict):
        kept = ("components", "suite", "settings")
        # The worker is another one if the kill comes later; what is known of a machine depends on it.
        others = {"worker": "…", "conditions": [*content.get("conditions", ())]}
        return {key: others.get(key, value if key in kept else shaped(value)) for key, value in content.items()}
    if isinstance(content, list):
        return [shaped(value) for value in content]
    is_digest = isinstance(content, str) and len(content) == 64
    return "…" if is_digest or isinstance(content, float) else content


def test_all_that_a_benchmark_notes_and_says(finished: Finished, tiny_repo: Path, tiny_release: Path) -> None:
    jsonschema.validate(finished.result, load_schema("bench"))
    first = json.loads((finished.output / "measurements.jsonl").read_text().splitlines()[0])
    first["environment"] = [*first["environment"]]
    result = {**finished.result, "output": finished.output.name, "resumed": min(finished.result["resumed"], 2)}
    rows = journal_rows(finished.output)
    lines = [folded(shaped(content)) for content in (result, first)]
    cells = groupby(rows, lambda row: [row.pop(key) for key in ("mode", "pair", "attempt", "model")])
    for cell, found in cells:
        for shape, alike in groupby(found, lambda row: shaped({key: row[key] for key in row if key != "key"})):
            lines.append(f"{cell} {[row['key'] for row in alike]} {json.dumps(shape)}")
    check_expected("bench_rows.txt", "\n".join(lines))
    for row in filter(lambda row: "time_s" in row, rows):
        stages = row.get("stages", {"all": row}).values()
        assert sum(stage["time_s"] for stage in stages) == pytest.approx(row["time_s"], abs=0.002)
        assert row["peak_rss_gb"] == max(stage["peak_rss_gb"] for stage in stages) > 0.1
        assert min(stage["time_s"] for stage in stages) > 0
    metrics = finished.evidence["benchmark_metrics.json"]
    times = {name: model["generation_time_s"] for name, model in metrics["models"].items()}
    assert (finished.result["generation_time_s"], finished.result["slowdown"]) == (times, None)
    for row in rows:
        assert 0 < row["worker"] < 20
        if "conditions" in row:
            assert -0.01 < row["conditions"]["seconds"] - row["time_s"] < 10
            assert row["conditions"]["cpus"] == len(os.sched_getaffinity(0))
            assert row["conditions"]["cpu_probe_ms"] > 0
    assert 0 < finished.result["elapsed_s"] < LIMIT
    folder = tiny_release / "transformer"
    hashed = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}
    assert first["sources"]["quantized"]["transformer"] == hashed
    (size,) = (file.stat().st_size for file in folder.glob("*.safetensors"))
    assert metrics["sources"]["quantized"]["transformer"][0]["bytes"] == size
    text = json.dumps(finished.evidence)
    secrets = (str(finished.output.parent), str(tiny_repo.parent), os.uname().nodename)
    assert [name for name in secrets if name in text] == []


def test_fidelity_is_measured_beside_a_baseline(finished: Finished, tiny_release: Path) -> None:
    images = finished.evidence["image_fidelity.json"]
    for pair, number in zip(images["pairs"], (301, 302, 303), strict=True):
        size = (pair["num_inference_steps"], pair["width"], pair["height"], pair["baseline"]["seed"])
        assert (pair["seed"], *size) == (number, 2, 96, 64, number + 1000)
        # Another seed draws another image, quantization the same one a little differently.
        assert pair["psnr_db"] > pair["baseline"]["psnr_db"] + 5
        assert pair["ssim"] > pair["baseline"]["ssim"]
    assert "required" not in images["not_measured"].get("text", "")
    matrix = finished.evidence["comparison_matrix.json"]
    assert {row[name]["images_agree"] for row in matrix["prompts"] for name in ("original", "quantized")} == {True}
    assert images["sources"] == matrix["sources"]
    with Image.open(finished.output / matrix["prompts"][0]["original"]["image"]) as drawn:
        pixels = hashlib.sha256(drawn.tobytes()).hexdigest()
    assert pixels == image_rows(finished.output)[0]["pixels_sha256"]
    # The trajectories are those of the baseline images.
    prompts = images["trajectory"]["prompts"]
    assert [(prompt["seed"], len(prompt["steps"])) for prompt in prompts] == [(1301, 2), (1302, 2), (1303, 2)]
    assert 0.01 < images["trajectory"]["mean_error"] < images["trajectory"]["max_error"] < 0.5
    assert not (finished.output / ".trajectory").exists()
    assert images["flat_field"]["original"] != images["flat_field"]["quantized"]
    families = {part["name"] for part in finished.evidence["weight_fidelity.json"]["fidelity"]["families"]}
    assert {"attn", "img_mlp", "txt_mlp"} <= families
    name = "sdnq_quantization_summary.json"
    assert (finished.output / name).read_bytes() == (tiny_release / name).read_bytes()


def test_the_images_are_those_of_generate(finished: Finished, tiny_release: Path, lensconv: Lensconv) -> None:
    image = finished.output.parent / "B2.png"
    prompt = 'вывеска "ХЛЕБ" над дверью'
    outcome = lensconv("generate", tiny_release, "--prompt", prompt, "--seed", 302, "--out", image, *DRAWING, *CHAIN)
    shown = "B2.png:96x64,2steps,guidance5,seed302,bfloat16oncpu,SDNQuint4,"
    assert (outcome.code, shown in "".join(outcome.stderr.split())) == (0, True)
    assert image.read_bytes() == (finished.output / "images" / "quantized" / "B2-302-quantized.png").read_bytes()


def test_a_finished_run_measures_nothing_again_but_refuses_weights_that_change(
    finished: Finished, suite: Path, tiny_repo: Path, release: Path
) -> None:
    class Changing(Notes):
        def progress(self, label: str, total: int, unit: str = "") -> Progress:
            if label == "measuring":
                os.utime(release / "vae" / "diffusion_pytorch_model.safetensors")
            return super().progress(label, total, unit)

    before = (finished.output / "measurements.jsonl").read_bytes()
    drawing = converter.GenerateOptions(steps=2, height=64, width=96, negative_prompt="blur", int8="chain")
    prompts, once, said = converter.read_suite(suite), converter.BenchOptions(pairs=1), Changing()
    with pytest.raises(converter.LensconvError, match="changed while it was measured"):
        converter.bench(tiny_repo, release, finished.output, prompts, once, drawing, reporter=said)
    assert (said.texts, said.shown[-1].done) == (["15 of 15 images were measured by an earlier run"], 15)
    assert (finished.output / "measurements.jsonl").read_bytes() == before


def test_images_that_are_gone_or_others_are_left_out(finished: Finished, lensconv: Lensconv) -> None:
    copy = finished.output.parent / "copy"
    shutil.copytree(finished.output, copy)
    arguments = ["--out", copy, *finished.arguments[7:]]
    first, second = (copy / "images" / "quantized" / name for name in ("A1-301-quantized.png", "B2-302-quantized.png"))
    shutil.copyfile(copy / "images" / "original" / "A1-301-original.png", first)
    second.unlink()
    shutil.rmtree(copy / "images" / "baseline")
    # Nothing of this run's own mode draws them. What keeps its threshold and what was not measured exit with 3.
    thresholds = ("--fail-over", "psnr=0", "--fail-over", "lpips=1")
    outcome = lensconv(*finished.arguments[:5], *arguments, "--mode", "offload", "--no-baseline", *thresholds)
    assert outcome.code == 3, outcome.stdout
    jsonschema.validate(outcome.result, load_schema("bench"))
    assert [verdict["ok"] for verdict in outcome.result["thresholds"]] == [True, False]
    assert "images of A1, B2 are missing or were changed" in outcome.stderr
    evidence = read_evidence_folder(copy)
    assert [(pair["id"], pair["baseline"]) for pair in evidence["image_fidelity.json"]["pairs"]] == [("C3", None)]
    assert evidence["comparison_matrix.json"]["prompts"][0]["quantized"]["time_s"] > 0


def test_a_restart_deletes_what_was_measured(
    finished: Finished, tiny_repo: Path, release: Path, tmp_path: Path, lensconv: Lensconv
) -> None:
    """And what then fails is shown; a worker needs more than a second to start. This release has no summary."""
    summary = "sdnq_quantization_summary.json"
    (release / summary).unlink()
    (release / "scheduler" / "more.json").touch()
    (release / "vae" / "notes.txt").touch()
    copy = shutil.copytree(finished.output, tmp_path / "evidence")
    (copy / "images" / "original" / "mine.txt").touch()
    (tmp_path / "one.toml").write_text(SUITE[: SUITE.index('[[prompts]]\nid = "B2')])
    options = ("--prompts", tmp_path / "one.toml", "--out", copy, *DRAWING, *ONCE, "--mode", "standard")
    outcome = lensconv("bench", tiny_repo, release, *options, "--restart", "--timeout", 1)
    assert outcome.code == 1
    # The terminal may wrap within a path; so compare without spaces.
    shown = "".join(outcome.stderr.split()).replace(str(tmp_path), "")
    assert "thereposdifferinmorethanthetransformer:scheduler;figuresincludethese" in shown
    assert "earlier" not in shown
    hung = "A1:whileloading:wasstopped:noprogressfor1s(--timeout)"
    assert f"failed:original,standard,pair1,{hung}failed:original,standard,pair1,A1+1000:while" in shown
    ending = "s,3failed;runthesamecommandtotrytheseagain.Measurements:/evidence.Next:lensconvreport/evidence"
    assert re.search(rf"0imagesin\d+{ending}$", shown)
    assert "Promptbyprompt" in shown
    assert [*snapshot(copy / "images")] == ["original/mine.txt"]
    files = ["benchmark_metrics.json", "comparison_matrix.json", "images", "measurements.jsonl"]
    assert names_in(copy) == [*files, "weight_fidelity.json"]
    # A folder that is the release itself, under whatever name, keeps its summary.
    (copy / summary).touch()
    link = tmp_path / "link"
    link.symlink_to(copy)
    for output, folder in ((link, copy), (copy, link)):
        drop_earlier(output, folder)
        assert names_in(copy) == [*files[2:], summary]


def test_another_benchmark_in_the_same_folder_is_refused(
    finished: Finished, lensconv: Lensconv, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One with other settings, or with another environment of SDNQ."""
    for option, value, said in (
        ("--steps", 3, "steps was 2, and is now 3"),
        ("--compile", "blocks", 'compile was "none", and is now "blocks"'),
    ):
        outcome = lensconv(*finished.arguments, option, value)
        assert outcome.code == 2
        assert f"contains another benchmark: settings.{said}" in outcome.result["error"]["message"]
        assert "--restart" in outcome.result["error"]["hint"]
    monkeypatch.setenv("SDNQ_INCLUDE_MM_KERNEL_IN_COMPILE", "0")
    with time_limit(LIMIT):
        outcome = lensconv(*finished.arguments)
    assert outcome.code == 2
    assert outcome.result["error"]["message"].endswith(
        'environment.sdnq_environment.SDNQ_INCLUDE_MM_KERNEL_IN_COMPILE was null, and is now "0"'
    )


def test_ctrl_c_ends_the_worker_and_keeps_what_was_measured(
    tiny_repo: Path, tiny_release: Path, suite: Path, tmp_path: Path
) -> None:
    output = tmp_path / "evidence"
    arguments = ("bench", tiny_repo, tiny_release, "--prompts", suite, "--out", output, *DRAWING, "--json")
    process = subprocess.Popen(
        command(*arguments), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    wait_for_rows(process, output)
    workers = [Path(f"/proc/{worker}") for worker in workers_below(output)]
    scores = [worker.joinpath("oom_score_adj").read_text() for worker in workers]
    environments = [worker.joinpath("environ").read_bytes() for worker in workers]
    # The system should rather kill a worker than the process with the journal.
    assert scores == ["1000\n"]
    assert [b"\0OMP_WAIT_POLICY=PASSIVE\0GOMP_SPINCOUNT=1000\0" in text for text in environments] == [True]
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=30)
    assert (process.returncode, json.loads(stdout)["error"]["type"]) == (130, "Interrupted")
    assert "Traceback" not in stderr
    assert not workers_below(output)


def test_what_a_benchmark_refuses(
    tiny_repo: Path, tiny_release: Path, lens_output: Path, tmp_path: Path, bench: Lensconv
) -> None:
    """Models that do not belong together, bad summaries and options, and outputs that cannot be written or exist."""
    names = {"original": tiny_repo, "release": tiny_release, "bare": lens_output}
    shutil.copytree(tiny_repo, tmp_path / "copy")
    for name in ("flux", "contradictory", "other"):
        shutil.copytree(tiny_release, tmp_path / name)
    edit_json(tmp_path / "flux" / "model_index.json", _class_name="FluxPipeline")
    summary = "sdnq_quantization_summary.json"
    dtypes = json.loads((tiny_release / summary).read_text())["quant_transformer_dtypes"]
    edit_json(tmp_path / "contradictory" / summary, quant_transformer_dtypes={"UINT8": 1000})
    edit_json(tmp_path / "other" / summary, quant_transformer_dtypes=dtypes | {min(dtypes): dtypes[min(dtypes)] + 1})
    for place in ("linked", "scratch", "foreign", "pipe"):
        (tmp_path / place).mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "linked" / "images").symlink_to(tmp_path)
    (tmp_path / "scratch" / ".trajectory").symlink_to(tmp_path)
    (tmp_path / "within" / "images").mkdir(parents=True)
    (tmp_path / "within" / "images" / "baseline").symlink_to(tmp_path)
    (tmp_path / "foreign" / "weight_fidelity.json").write_text("{}")
    os.mkfifo(tmp_path / "pipe" / "measurements.jsonl")

    def outcome(original: str, quantized: str, output: str, *options: str) -> str:
        models = {"original": original, "quantized": quantized}
        with time_limit():
            found = bench(
                tmp_path / output,
                *(options or DRAWING),
                **{role: names.get(name, tmp_path / name) for role, name in models.items()},
            )
        assert found.code == 2
        said = f"{found.result['error']['message']} | {found.result['error']['hint']}".replace(str(tmp_path), "FOLDER")
        for name, folder in names.items():
            said = said.replace(str(folder), name.upper())
        return said

    check_cases("bench_refusals.jsonl", outcome)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_device_that_is_not_there(tmp_path: Path, bench: Lensconv) -> None:
    with time_limit(LIMIT):
        outcome = bench(tmp_path / "out", "--device", "cuda")
    assert (outcome.code, outcome.result["error"]["type"]) == (3, "DeviceError")


#: Runs before everything else in every process that has it on its path; plants faults into the workers' second model.
FAULTS = """
import sys

if "converter.measurement.benchmark.worker" in " ".join(sys.orig_argv):
    print("noise")
    import importlib.abc, importlib.machinery, os, signal, subprocess, time

    class Finder(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path, target=None):
            if name != "converter.measurement.benchmark.session":
                return None
            sys.meta_path.remove(self)
            spec = importlib.machinery.PathFinder.find_spec(name, path)
            load = spec.loader.exec_module

            def exec_module(module):
                load(module)
                plant(module.Session)

            spec.loader.exec_module = exec_module
            return spec

    def plant(session):
        measure, seen = session._measure, set()

        def faulty(self, settings):
            is_second = settings.seed in seen
            seen.add(settings.seed)
            if self.repo.quantization is not None:
                if settings.seed == 302:
                    subprocess.Popen(["flock", __file__, "sleep", "3600"], close_fds=False)
                    os.kill(os.getpid(), signal.SIGKILL)
                if settings.seed == 303:
                    import torch
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
                if settings.seed == 304 and is_second:
                    time.sleep(3600)
            return measure(self, settings)

        session._measure = faulty

    sys.meta_path.insert(0, Finder())
"""


def test_faults_become_failed_rows_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], bench: Lensconv
) -> None:
    """A worker that is killed, one that runs out of memory, one that hangs; then the same without the faults."""
    (tmp_path / "sitecustomize.py").write_text(FAULTS)
    longer = tmp_path / "longer.toml"
    longer.write_text(SUITE + '\n[[prompts]]\nid = "D4"\nscenario = "Blue"\nseed = 304\nprompt = "a blue cube"\n')
    output = tmp_path / "evidence"
    options = (
        "--prompts",
        longer,
        *DRAWING,
        "--mode",
        "standard",
        "--no-baseline",
        "--timeout",
        15,
        *ONCE,
        "--trajectory-prompts",
        0,
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with time_limit(LIMIT):
        outcome = bench(output, *options)
    assert outcome.code == 1
    # What workers print is not shown, and what they started has ended.
    assert "noise" not in capfd.readouterr().out
    with (tmp_path / "sitecustomize.py").open() as stream:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    reasons = {
        "B2": "killed by SIGKILL, perhaps because memory ran out",
        "C3": "while warming up: there is not enough memory: CUDA out of memory. Tried to allocate 20.00 GiB.",
        "D4": "was stopped: no progress for 15 s (--timeout)",
    }
    assert outcome.result["failed"] == [
        {"model": "quantized", "mode": "standard", "pair": 0, "attempt": 0, "prompt": key, "reason": reason}
        for key, reason in reasons.items()
    ]
    evidence = read_evidence_folder(output)
    matrix = evidence["comparison_matrix.json"]
    for row in matrix["prompts"]:
        assert row["original"]["time_s"] > 0
        assert row["quantized"].get("failed") == reasons.get(row["id"])
    assert matrix["summary"]["original"]["count"] == 4
    assert (matrix["summary"]["quantized"]["count"], "slowdown" in matrix["summary"]) == (1, False)
    (pair,) = matrix["timed_pairs"]
    (key,) = matrix["timed_prompts"]
    row = next(row for row in matrix["prompts"] if row["id"] == key)
    assert [pair["original_s"], pair["quantized_s"]] == [row[name]["time_s"] for name in ("original", "quantized")]
    assert len(evidence["benchmark_metrics.json"]["models"]["quantized"]["failed"]) == 3
    assert [pair["id"] for pair in evidence["image_fidelity.json"]["pairs"]] == ["A1"]
    assert outcome.result["ok"] is False
    jsonschema.validate(outcome.result, load_schema("bench"))

    monkeypatch.delenv("PYTHONPATH")
    with time_limit(LIMIT):
        again = bench(output, *options)
    assert (again.code, again.result["images"], again.result["resumed"]) == (0, 8, 5)
    sides = {row["id"]: row["quantized"] for row in read_evidence_folder(output)["comparison_matrix.json"]["prompts"]}
    attempts = {key: side["failed_attempts"] for key, side in sides.items() if "failed_attempts" in side}
    assert attempts == {key: [{"pair": 0, "attempt": 0, "reason": reason}] for key, reason in reasons.items()}
