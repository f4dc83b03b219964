"""scripts/gpu: its steps on a CPU, and what it does when one of them hangs, dies, or cannot run."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from converter.lens import LensPipeline
from scripts.gpu_runner import EXTRA_SECONDS, Runner
from scripts.gpu_steps import Step, conversion
from scripts.gpu_steps.conversion import measure_speed
from scripts.gpu_steps.images import compare_images, run_benchmark
from scripts.gpu_steps.process import StepRun
from scripts.gpu_steps.transformer import check_products, guided_call, measure_step
from scripts.gpu_steps.workers import run_workers
from scripts.gpu_table import BENCHMARKS, END, full_table, marked, read_reports, short_table, tables
from tests.conftest import ROOT, names_in, run_program
from tests.gpu_steps import FEW_SIZES
from tests.lens.models import calls_of
from tests.tiny_models import build_model

#: Seconds that nothing may take, even on a busy machine.
_LIMIT = 300.0


def start(folder: Path, *words: object) -> subprocess.Popen[str]:
    """Run the steps of ``tests.gpu_steps`` in a folder: models go to ``work``, the JSON to ``out.json``."""
    line = [sys.executable, "-m", "tests.gpu_steps", "--work", "work", "--out", "out.json", *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PROCESSES": str(folder / "processes")}
    return subprocess.Popen(
        line, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(folder: Path, *words: object) -> tuple[int, dict[str, Any], str]:
    """Run them to the end; return the exit code, the steps in the JSON, and stderr."""
    process = start(folder, *words)
    _, stderr = process.communicate(timeout=_LIMIT)
    file = folder / "out.json"
    return process.returncode, json.loads(file.read_text())["steps"] if file.exists() else {}, stderr


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _LIMIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_alive(number: str) -> bool:
    """Whether a process exists and is not only waited for."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_steps_that_fail_or_are_skipped_do_not_stop_the_others(tmp_path: Path) -> None:
    code, steps, stderr = finish(tmp_path, "--device", "cpu", "--budget", 100)
    assert (code, stderr) == (1, "")
    ended = {name: step.get("problems", step.get("skipped")) for name, step in steps.items()}
    hung = ended.pop("hang")
    assert len(hung) == 1
    assert hung[0].startswith("was stopped: not done after 3 s")
    assert ended == {
        "0": [],
        "parts": [],
        "die": ["ended with exit code 7"],
        "crash": ["was killed by SIGSEGV"],
        "fail": ["ended with exit code 1: ValueError: model.safetensors is not there"],
        "lack": "nh3 is not installed. Install it.",
        "compiler": ["gcc fails. Install another."],
        "problem": ["1 byte differs"],
        "long": ended["long"],
        "renamed": [ended["renamed"][0]],
        "large": "needs 80 GB of device memory; 2.0 GB are free",
        "last": [],
    }
    assert ended["long"].startswith("takes about 1000 s; of the budget, ")
    assert {name for name, step in steps.items() if step.get("ok")} == {"0", "parts", "last"}
    assert steps["die"]["figures"] == steps["hang"]["figures"] == {"begun": True}
    given = {"small": True, "file": "file"}
    always = {"HF_HUB_OFFLINE": "1", FEW_SIZES: "128"}
    first = {**given, "environment": {**always, "SDNQ_USE_TORCH_COMPILE": "0"}, "earlier": {}}
    second = {**given, "environment": {**always, "SDNQ_USE_TORCH_COMPILE": "1"}}
    assert steps["parts"]["figures"]["first"] == first
    assert steps["parts"]["figures"]["second"] == {**second, "earlier": {"first": {**first, "file": "file"}}}
    assert steps["parts"]["figures"]["third"] == {"skipped": "needs CUDA"}
    assert not any(map(is_alive, (tmp_path / "processes").read_text().split()))
    assert names_in(tmp_path / "work") == []
    assert str(tmp_path) not in (tmp_path / "out.json").read_text()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--only", "last"), 0, ""),
        (("--only", "lack,large"), 0, ""),
        (("--only", "last,problem"), 1, ""),
        (("--only", "last,7"), 2, "--only 7: steps are 0, parts, hang"),
        (("--only", ","), 2, "--only : steps are 0, parts, hang"),
        (("--device", "gpu"), 2, "--device gpu: must be cpu, cuda, or cuda:0, cuda:1 …"),
        (("--budget", "-1"), 2, "--budget: must be a positive number of seconds"),
        (("--out", "missing/out.json"), 2, "--out missing/out.json: the folder does not exist"),
        (("--out", "."), 2, "--out .: is a folder"),
        (("--work", "/proc/work"), 2, "--out or --work: [Errno 2]"),
        (("--device", "cuda:7"), 3, "nothing could run: no such GPU. Use another."),
        (("--budget", "0.01"), 3, "nothing could run: takes about 0.1 s; of the budget, 0 s are left"),
    ],
)
def test_exit_codes(tmp_path: Path, words: tuple[str, ...], code: int, said: str) -> None:
    found, steps, stderr = finish(tmp_path, "--device", "cpu", "--only", "last", *words)
    assert (found, said in stderr) == (code, True), stderr
    assert bool(stderr) == bool(said)
    assert code == 2 or len(stderr.splitlines()) == bool(said)
    assert bool(steps) == (code != 2)
    assert not (tmp_path / "work").exists() or names_in(tmp_path / "work") == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_run_leaves_the_json_and_no_process(tmp_path: Path, number: signal.Signals) -> None:
    """Folders of a run that was killed are removed by the next one."""
    process = start(tmp_path, "--device", "cpu", "--only", "last,hang")
    wait_until((tmp_path / "processes").exists)
    process.send_signal(number)
    process.communicate(timeout=_LIMIT)
    assert process.returncode == (-9 if number is signal.SIGKILL else 130)
    assert list(json.loads((tmp_path / "out.json").read_text())["steps"]) == ["0"]
    leader, _ = (tmp_path / "processes").read_text().split()
    wait_until(lambda: not is_alive(leader))
    assert bool(names_in(tmp_path / "work")) == (number is signal.SIGKILL)
    if number is signal.SIGKILL:
        assert finish(tmp_path, "--device", "cpu", "--only", "last")[0] == 0
        assert names_in(tmp_path / "work") == []


def test_a_hidden_gpu_is_one_line(tmp_path: Path) -> None:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHON": sys.executable}
    done = run_program(ROOT / "scripts" / "gpu", "--work", "work", cwd=tmp_path, env=environment)
    assert done.returncode == 3, done.stderr
    assert done.stderr.startswith("nothing could run: --device cuda: torch ")
    assert len(done.stderr.splitlines()) == 1
    assert names_in(tmp_path / "work") == []


@pytest.mark.long
def test_steps_on_a_cpu(tmp_path: Path) -> None:
    line = (ROOT / "scripts" / "gpu", "--device", "cpu", "--work", "work", "--only", "1a")
    done = run_program(*line, cwd=tmp_path, env={**os.environ, "PYTHON": sys.executable})
    steps = json.loads((tmp_path / "gpu-cpu.json").read_text())["steps"]
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert [(name, step.get("ok")) for name, step in steps.items()] == [("0", True), ("1a", True)], steps
    assert names_in(tmp_path / "work") == []
    assert set(steps["1a"]["figures"]["differing_bytes"].values()) == {0}


def carry_out(folder: Path, *steps: Callable[[StepRun], None], part: str = "", **earlier: Any) -> StepRun:
    """Carry out steps in this process, which has imported the libraries already."""
    run = StepRun(part, "cpu", False, folder, folder / "result.json", _LIMIT, earlier)
    for step in steps:
        step(run)
    assert run.problems == []
    return run


@pytest.mark.long
def test_steps_with_a_transformer(tmp_path: Path) -> None:
    assert carry_out(tmp_path, measure_speed).figures["differing_bytes"] == 0
    products = carry_out(tmp_path, check_products, part="eager").figures
    assert 0 < products["layer_error"] < products["int8"]["error"] < 0.2
    original = carry_out(tmp_path, measure_step, part="original").figures
    assert original["bf16"]["ms"] > 0
    quantized = carry_out(tmp_path, measure_step, part="eager", original=original).figures
    for kind in ("int8", "int8 chain", "dequantized"):
        assert 0 < quantized[kind]["difference_from_original"] < 0.5


@pytest.mark.long
def test_steps_with_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = carry_out(tmp_path, compare_images, run_benchmark, run_workers)
    assert list(run.figures["equal"].values()) == 6 * [True]
    assert run.figures["images"] == 2
    assert run.figures["quantized, standard"]["cold"]["time_s"] > 0
    # SDNQ's own functions may give other bytes on the device, which the release then names.
    monkeypatch.setattr(conversion, "_differing_bytes", lambda *_: 1)
    conversion.compare_bytes(run)
    promised = run.figures["promised"]
    assert {name for name, is_promised in promised.items() if not is_promised} == {
        f"{source}, sdnq-int8 from bfloat16" for source in ("tiny-transformer", "hostile")
    }
    assert len(run.problems) == sum(promised.values())


def test_the_timed_step_is_called_as_the_pipeline_calls_it() -> None:
    """Two samples, of which the one without a prompt has no text."""
    model = build_model("LensTransformer2DModel").eval()
    call = guided_call(model, 4, 40)
    prompt, blank = zip(*(feature.chunk(2) for feature in call["encoder_hidden_states"]), strict=True)
    pipe = LensPipeline(FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), None, None, None, model)
    pipe.set_progress_bar_config(disable=True)
    mask = torch.ones(1, 40, dtype=torch.bool)
    with calls_of(model) as calls:
        pipe(
            prompt_embeds=prompt,
            prompt_mask=mask,
            negative_prompt_embeds=blank,
            negative_prompt_mask=~mask,
            height=64,
            width=64,
            num_inference_steps=1,
            output_type="latent",
        )
    (found,) = calls
    assert call.keys() <= found.keys()
    assert {name for name, value in found.items() if value is not None} <= {*call, "return_dict", "attention_kwargs"}
    for name in call.keys() - {"hidden_states", "timestep"}:
        torch.testing.assert_close(call[name], type(call[name])(found[name]) if name == "text_lengths" else found[name])
    assert call["hidden_states"].shape == found["hidden_states"].shape


def test_pages_show_what_was_measured() -> None:
    """The text between the marks is what ``scripts/gpu --table`` makes of the reports in the repository."""
    for page, table in tables(read_reports(BENCHMARKS)).items():
        assert marked(table) in page.read_text(), f"run scripts/gpu --table: {page.name}"


def test_a_report_becomes_a_row(tmp_path: Path) -> None:
    report = {
        "date": "2026-12-01",
        "device": "cuda:1",
        "steps": {
            "0": {"ok": True, "figures": {"card": "NVIDIA H200", "machine": {"torch": "2.11.0"}}},
            "1b": {"ok": True, "figures": {"device": {"gb_s": 4.04}}},
            "3": {
                "ok": True,
                "figures": {
                    "original": {"bf16": {"ms": 245.4, "peak_allocated_gb": 10.5}, "bf16, blocks": {"ms": 181.9}},
                    "eager": {"int8": {"ms": 320.0}, "int8, blocks": {"skipped": "no time is left for it"}},
                    "compiled": {"int8": {"ms": 240.0, "peak_allocated_gb": 6.6}},
                },
            },
            "4": {"ok": False, "figures": {}},
            "5": {"skipped": "nh3 is not installed"},
        },
    }
    (tmp_path / "gpu-nvidia-h200.json").write_text(json.dumps(report))
    (tmp_path / "conversion.json").write_text("{}")
    reports = read_reports(tmp_path)
    *_, row = full_table(reports).splitlines()
    times = "245 / 182 | - / - | 320 / - | 240 / - | - / -"
    assert row == f"| NVIDIA H200 | 2026-12-01 | 2.11.0 | {times} | 10.50 / 6.60 | 4.0 | 4, 5 |"
    assert short_table(reports).splitlines()[-1] == "|NVIDIA H200|245|240|10.50/6.60|"


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"device": "cuda", "date": ""}', '{"device": "cpu", "date": "", "steps": {}}',
     '{"device": "cuda", "date": "", "steps": {"1b": {"figures": {"device": {"gb_s": "<b>"}}}}}'],
)  # fmt: skip
def test_what_is_no_report_of_a_card_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "gpu-x.json").write_text(content)
    with pytest.raises(ValueError, match=r"^gpu-x\.json is not a report of a card: .+$"):
        read_reports(tmp_path)


def test_a_name_cannot_break_the_table() -> None:
    report = {"device": "cuda", "date": "", "steps": {"0": {"figures": {"card": f"A|B\n<b>{END}"}}}}
    for table in (full_table([report]), short_table([report])):
        row = table.splitlines()[-1]
        assert re.match(r"\| ?A B b -- cards: end -- ?\|", row)


def test_some_steps_do_not_replace_the_figures_of_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for device, is_whole in (("cuda", True), ("cuda", False), ("cpu", True)):
        runner = Runner(device, tmp_path, None, 1, is_whole=is_whole)
        runner.report = {"steps": {"0": {"figures": {"card": "NVIDIA H200"}}}}
        runner._choose_output()
        folder = BENCHMARKS if (device, is_whole) == ("cuda", True) else Path()
        assert runner.out == folder / "gpu-nvidia-h200.json"


def test_a_step_does_not_use_a_gpu_beyond_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU may be lent; a CPU is not, and other programs use it."""
    deadlines: list[tuple[float, float]] = []

    def note(*given: Any) -> dict[str, Any]:
        deadlines.append(given[-1])
        return {}

    monkeypatch.setattr(Runner, "_perform_part", note)
    for device in ("cuda:1", "cpu"):
        runner = Runner(device, tmp_path, None, budget=100)
        runner._perform(Step("x", "a step", "", seconds=100, cpu_seconds=100))
        latest = runner.started + 100, runner.started + 100 + EXTRA_SECONDS
        is_within = [found <= most for found, most in zip(deadlines.pop(), latest, strict=True)]
        assert is_within == 2 * [device != "cpu"]


def test_what_lensconv_cannot_import_of_itself_is_a_failure(tmp_path: Path) -> None:
    code, steps, _ = finish(tmp_path, "--device", "cpu", "--only", "renamed")
    assert code == 1
    assert "ImportError: cannot import name 'gone'" in steps["renamed"]["problems"][0]
