"""Velocity errors along the original's trajectory: their size, their cost, and what happens to traces and failures."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from converter.checkpoint.checksum import file_sha256
from converter.cli.compare import render_summary
from converter.console import Progress
from converter.errors import DiskError, ImageError
from converter.lens import LensPipeline
from converter.measurement.benchmark.events import WorkerEvents
from converter.measurement.benchmark.job import GENERATED, Task
from converter.measurement.benchmark.journal import Cell, Journal
from converter.measurement.benchmark.measuring import Bench, Place
from converter.measurement.benchmark.options import BenchOptions
from converter.measurement.benchmark.trace_files import remove_traces, trace_file
from converter.measurement.benchmark.traces import read_trace, replay_trace, tracing, write_trace
from converter.measurement.benchmark.trajectory import TrajectoryMeasurement
from converter.measurement.comparison.trajectory import (
    Step,
    Trace,
    block_steps,
    recording,
    replay,
    trajectory_errors,
)
from converter.measurement.evidence.folder_agreement import disagreements_between
from converter.measurement.evidence.images import changed_flat_fields
from converter.measurement.evidence.names import IMAGES_NAME, MATRIX_NAME
from converter.measurement.evidence.trajectory import summarise_errors, trajectory_disagreements
from converter.measurement.generation.settings import Settings
from converter.measurement.prompts.suite import PromptSuite, SuitePrompt
from converter.presentation.tables.fidelity import images_summary_table
from converter.presentation.tables.table import NOTHING
from tests import charts as of
from tests.reporters import Notes

STEPS = 3
CALL = {"height": 64, "width": 96, "num_inference_steps": STEPS, "guidance_scale": 5.0}


def loaded(repo: Path, dtype: torch.dtype) -> Any:
    pipeline = LensPipeline.from_pretrained(repo, dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def original(tiny_repo: Path) -> Any:
    return loaded(tiny_repo, torch.float32)


@pytest.fixture(scope="module")
def candidate(tiny_repo: Path) -> Any:
    """The same weights, loaded once more; a copy in memory has another alignment, and other roundings."""
    return loaded(tiny_repo, torch.float32)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(7)


@contextmanager
def noise(pipeline: Any, scale: float) -> Iterator[None]:
    """Add noise to one weight of the second block."""
    weight = pipeline.transformer.transformer_blocks[1].img_mlp.w1.weight
    before = weight.detach().clone()
    with torch.no_grad():
        weight += scale * before.std() * torch.randn(weight.shape, generator=seeded())
        yield
        weight.copy_(before)


def calls_of(pipeline: Any, calls: list[int]) -> Any:
    return pipeline.transformer.register_forward_pre_hook(lambda *_: calls.append(1))


def test_the_error_is_zero_for_equal_models_and_grows_with_noise(original: Any, candidate: Any) -> None:
    """The same on a re-run, for one call of each transformer a step."""
    with recording(original) as trace:
        image = original("a red cube", generator=seeded(), **CALL).images[0]
    assert image.tobytes() == original("a red cube", generator=seeded(), **CALL).images[0].tobytes()
    means = []
    for scale in (0.0, 0.03, 0.1, 0.3):
        calls = list[int]()
        hook = calls_of(candidate, calls)
        with noise(candidate, scale):
            found = replay(candidate, trace, **CALL)
            hook.remove()
            assert replay(candidate, trace, **CALL) == found
        assert len(calls) == STEPS
        errors = [step.error for step in found.steps]
        means.append(sum(errors) / STEPS)
        assert [step.step for step in found.steps] == [0, 1, 2]
        assert (min(errors) > 0) == (max(errors) > 0) == (scale > 0)
    assert means == sorted(set(means))
    assert means[0] == 0
    assert 2 < means[3] / means[2] < 4
    sigmas = [step.sigma for step in found.steps]
    assert sigmas[0] == 1
    assert sigmas == sorted(sigmas, reverse=True)


def test_recording_costs_no_call_and_leaves_no_trace_in_the_pipeline(original: Any) -> None:
    calls = list[int]()
    hook = calls_of(original, calls)
    try:
        found = trajectory_errors(original, original, "a red cube", generator=seeded(), **CALL)
    finally:
        hook.remove()
    # The original's own calls, and one more for each step.
    assert len(calls) == 2 * STEPS
    assert [step.error for step in found.steps] == [0.0] * STEPS
    for owner, name in ((original, "encode_prompt"), (original.scheduler, "step")):
        assert name not in vars(owner)


@pytest.mark.parametrize(
    ("guidance", "negative", "prompt", "branches"),
    [(5.0, "", "a red cube", 2), (5.0, "blur", "a red cube", 2), (1.0, "", "a red cube", 1), (5.0, "", "", 2)],
)
def test_guidance_and_an_empty_prompt(
    guidance: float, negative: str, prompt: str, branches: int, original: Any, candidate: Any, tmp_path: Path
) -> None:
    """The velocity is the guided one, of the size of the latents; a trace is read as it was written."""
    options = {**CALL, "guidance_scale": guidance}
    with recording(original, blocks=block_steps(STEPS)) as trace:
        original(prompt, negative, generator=seeded(), **options, output_type="latent")
    assert [step.velocity.shape for step in trace.steps] == [step.latents.shape for step in trace.steps]
    assert [state.shape for state in trace.steps[0].blocks] == [(branches, 24, 192)] * 4
    assert len(trace.features) == 2 * branches
    write_trace(trace, tmp_path / "trace")
    again = read_trace(tmp_path / "trace")
    assert torch.equal(again.steps[2].blocks[3], trace.steps[2].blocks[3])
    found = replay(original, again, **options)
    assert [step.error for step in found.steps] + [*found.blocks] == [0.0] * 7
    with noise(candidate, 0.3):
        damaged = replay(candidate, again, **options)
    assert damaged.blocks[0] == 0
    assert min(damaged.blocks[1:]) > 0


@pytest.mark.parametrize("way", ["quantized", "sequential", "compiled", "int8 chain"])
def test_quantized_offloaded_and_compiled_models(way: str, original: Any, tiny_release: Path) -> None:
    """Equal to themselves, and not to the original; blocks are seen from outside of what is compiled."""
    with recording(original, blocks=block_steps(STEPS)) as expected:
        original("a red cube", generator=seeded(), **CALL, output_type="latent")
    pipeline = loaded(tiny_release, torch.bfloat16)
    if way == "sequential":
        pipeline.enable_sequential_cpu_offload(device="cpu")
    elif way == "compiled":
        pipeline.transformer.compile_repeated_blocks(backend="eager", dynamic=False)
    elif way == "int8 chain":
        from converter.models.lens.int8_chain import enable_int8_chain

        enable_int8_chain(pipeline.transformer, torch.device("cpu"))
    with recording(pipeline, blocks=block_steps(STEPS)) as own:
        pipeline("a red cube", generator=seeded(), **CALL, output_type="latent")
    found = replay(pipeline, own, **CALL)
    assert [step.error for step in found.steps] + [*found.blocks] == [0.0] * 7
    errors = replay(pipeline, expected, **CALL)
    assert all(0.01 < step.error < 0.5 for step in errors.steps)
    assert all(0.001 < error < 0.5 for error in errors.blocks)


TASK = Task("(trajectory) A1", {}, None)
SETTINGS = Settings("a red cube", "", 7, STEPS, 5.0, 64, 96, "float32", "2026-05-23")


def test_what_cannot_be_compared_is_a_reason(original: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A velocity that is zero or not finite, and a disk that is full; the image is drawn all the same."""
    task = replace(TASK, settings=vars(SETTINGS), trace=str(tmp_path / "trace"))
    with tracing(original, task) as figures:
        original("a red cube", generator=seeded(), **CALL, output_type="latent")
    assert figures["trace"]["blocks"] is False
    trace = read_trace(tmp_path / "trace")
    for value, reason in ((0.0, "the original's velocity is zero"), (float("nan"), "a velocity is not finite")):
        steps = [Step(step.sigma, step.latents, torch.full_like(step.velocity, value)) for step in trace.steps]
        with pytest.raises(ImageError, match=reason):
            replay(original, Trace(trace.features, steps), **CALL)
        write_trace(Trace(trace.features, steps), tmp_path / "other")
        assert replay_trace(original, replace(task, replay=str(tmp_path / "other"))) == {"failed": reason}

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with tracing(original, task) as figures:
        image = original("a red cube", generator=seeded(), **CALL).images[0]
    assert image.size == (96, 64)
    assert figures == {"trace": {"failed": f"{tmp_path}/trace: No space left on device"}}


PROMPTS = tuple(SuitePrompt(key, key, number, key, ()) for number, key in enumerate(("A1", "B2", "C3")))
STAGES = {name: {"time_s": 1.0} for name in ("text_encoder", "transformer", "vae")}
DRAWN = {"time_s": 1.0, "stages": STAGES, "pixels_sha256": "0" * 64}
STEP_ROWS = [{"step": step, "sigma": 1 - step / 4, "error": 0.1 + step / 10} for step in range(STEPS)]


@dataclass
class Workers:
    """Workers that take no time; the scheduling, the journal and the files are real."""

    folder: Path
    failing: dict[str, str] = field(default_factory=dict)
    """What fails, by its key, and why."""
    said: list[str] = field(default_factory=list)

    def run(self, **options: Any) -> tuple[dict[str, Any], Notes]:
        """Run the last step of a benchmark, or continue it; return what it adds to the evidence."""
        with Journal(self.folder, {}, restart=False) as journal:
            settings = [SETTINGS] * len(PROMPTS)
            chosen = BenchOptions(**{"mode": "standard", "trajectory_prompts": 2, **options})
            subject = SimpleNamespace(repo=SimpleNamespace(folder=Path("/repo")), repo_id="repo", choices=())
            subjects: Any = dict.fromkeys(("original", "quantized"), subject)
            bench = Bench(self.folder, subjects, PromptSuite("three", PROMPTS), settings, chosen, "cpu", {}, journal)
            for model in ("original", "quantized"):
                journal.note(Cell("standard", 0, 0, model), "A1", DRAWN)
            bench._run_worker = self._work(bench)  # type: ignore[method-assign]
            measurement, said = TrajectoryMeasurement(bench), Notes()
            measurement.measure(said)
            # As a benchmark does; those of a sweep stay until all models have repeated them.
            remove_traces(self.folder)
            return measurement.add_to({"methods": {}, "not_measured": {}}), said

    def _work(self, bench: Bench) -> Any:
        def work(cell: Cell, missing: Sequence[Task], shown: Progress, _: Place) -> bool:
            self.said.append(f"{cell.model}: {', '.join(task.key for task in missing)}")
            bench.journal.worker += 1
            for task in missing:
                reason = self.failing.get(task.key)
                if reason == "disk":
                    raise DiskError(f"{self.folder}/out: No space left on device")
                if reason == "killed":
                    raise KeyboardInterrupt
                if reason is not None:
                    bench.fail(cell, [task], reason, shown)
                    return False
                events = WorkerEvents(bench, cell, bench.journal.worker, [task], shown, is_timed=True)
                events.take({"event": GENERATED, "key": task.key, **self._figures(task)})
            return False

        return work

    def _figures(self, task: Task) -> dict[str, Any]:
        if task.replay is not None:
            return {"steps": STEP_ROWS} | ({"blocks": [{"block": 0, "error": 0.1}]} if task.blocks else {})
        file = Path(str(task.trace or task.image))
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64), "grey").save(file, "PNG")
        digest = file_sha256(file)
        return {"trace": {"sha256": digest, "blocks": task.blocks}} if task.trace else {**DRAWN, "image_sha256": digest}


ALL = ["original: (trace) A1, (trace) B2, (flat field)", "quantized: (trajectory) A1, (trajectory) B2, (flat field)"]


def test_a_run_that_is_killed_goes_on_and_measures_nothing_twice(tmp_path: Path) -> None:
    workers = Workers(tmp_path, {"(trajectory) B2": "killed"})
    with pytest.raises(KeyboardInterrupt):
        workers.run()
    assert workers.said == ALL
    # A trace that somebody else wrote, and one that is as it was noted.
    workers.said.clear()
    trace_file(tmp_path, "A1").write_bytes(b"mine")
    workers.failing.clear()
    found, _ = workers.run()
    assert workers.said == ["quantized: (trajectory) B2, (flat field)"]
    assert [prompt["id"] for prompt in found["trajectory"]["prompts"]] == ["A1", "B2"]
    assert [prompt["seed"] for prompt in found["trajectory"]["prompts"]] == [1000, 1001]
    assert (found["trajectory"]["mean_error"], found["trajectory"]["max_error"]) == (0.2, 0.1 + 0.2)
    assert set(found["methods"]) == {"trajectory", "flat_field"}
    assert found["flat_field"]["original"]["image"] == "images/flat-field/flat-field-0-original.png"
    assert found["not_measured"] == {}
    workers.said.clear()
    assert workers.run()[0] == found
    assert workers.said == []
    # With blocks, which the trace lacks, all is recorded anew.
    workers.run(trajectory_blocks=True, trajectory_prompts=1)
    assert workers.said[0] == "original: (trace) A1"


def test_a_trace_that_was_changed_is_recorded_anew(tmp_path: Path) -> None:
    workers = Workers(tmp_path, {"(trajectory) A1": "killed"})
    with pytest.raises(KeyboardInterrupt):
        workers.run()
    trace_file(tmp_path, "A1").write_bytes(b"mine")
    trace_file(tmp_path, "B2").unlink()
    workers.said.clear()
    workers.failing.clear()
    workers.run()
    assert workers.said == ["original: (trace) A1, (trace) B2", ALL[1]]


@pytest.mark.parametrize(
    ("key", "reason", "expected"),
    [
        ("(trajectory) A1", "no memory", {"trajectory": "A1: no memory"}),
        ("(trace) B2", "a velocity is not finite", {"trajectory": "B2: a velocity is not finite"}),
        ("(flat field)", "hung", {"flat_field": "hung"}),
        (
            "(trace) A1",
            "disk",
            {"trajectory": "A1: ev/out: No space left on device; B2: ev/out: No space left on device"},
        ),
    ],
)
def test_what_fails_is_a_reason_and_harms_nothing_else(
    key: str, reason: str, expected: dict[str, str], tmp_path: Path
) -> None:
    workers = Workers(tmp_path / "ev", {key: reason})
    found, said = workers.run()
    shown = dict(found["not_measured"])
    if reason == "disk":
        assert shown.pop("flat_field") == "ev/out: No space left on device"
        assert "trajectory" not in found
    elif "trajectory" in expected:
        assert [prompt["id"] for prompt in found["trajectory"]["prompts"]] == [{"A1": "B2", "B2": "A1"}[key[-2:]]]
    assert shown == expected
    assert any(text.startswith(f"{name.replace('_', ' ')}: not measured: ") for text in said.texts for name in expected)
    # The next run tries again.
    workers.failing.clear()
    assert workers.run()[0]["not_measured"] == {}


def test_nothing_is_done_that_nobody_asked_for(tmp_path: Path) -> None:
    workers = Workers(tmp_path)
    for options, reason in (
        ({"trajectory_prompts": 0}, "not requested"),
        ({"mode": "offload"}, "measured with --mode standard only"),
    ):
        found, said = workers.run(**options)
        assert found["not_measured"] == {"trajectory": reason, "flat_field": reason}
        assert (reason == "not requested") == (said.texts == [])
    assert workers.said == []


def test_evidence_of_a_trajectory_agrees_with_itself() -> None:
    prompts = [{"id": "A1", "seed": 1, "steps": STEP_ROWS}]
    content = {"prompts": prompts, **summarise_errors(prompts)}
    assert [*trajectory_disagreements(content)] == []
    wrong = {**content, "mean_error": 0.21, "prompts": [{**prompts[0], "blocks": [{"block": 1, "error": 0.1}]}]}
    assert [*trajectory_disagreements(wrong)] == [
        "trajectory: the blocks of A1 are not numbered from 0",
        "trajectory.mean_error is 0.21, but its steps give 0.2",
    ]


FLAT = {"seed": 0, "periodic_grid": {"original": 1.0, "quantized": 1.5, "added": 2.0}}


def test_what_tables_and_the_terminal_show() -> None:
    content = of.images(P01=(0.1, 0.2, 0.6)) | {"flat_field": FLAT}
    assert images_summary_table(content).rows[-2:] == [
        ["Velocity error of a step, at the original's latents", "0.3000", "0.2000", "0.1000", "0.6000", NOTHING],
        ["Added periodic pattern, empty prompt, grey levels", "2.00", *[NOTHING] * 4],
    ]
    text = "\n".join(str(line).strip() for line in render_summary(content))
    assert "at the original's latents: mean 0.3000, largest 0.6000, 1 prompt\n" in text
    assert "\nempty prompt: added pattern 2.00 grey levels; own patterns 1.00 in the original's image, 1.50 in " in text


def test_files_of_a_folder_agree_about_trajectories(tmp_path: Path) -> None:
    rows = of.matrix({"P01": (1.0, 2.0)}) | {"settings": {"num_inference_steps": 2}}
    files = {IMAGES_NAME: of.images(P01=(0.1, 0.2)), MATRIX_NAME: rows}
    assert [*disagreements_between(files)] == []
    files[IMAGES_NAME] = of.images(P01=(0.1,), P02=(0.1, 0.2))
    assert [reason for _, reason in disagreements_between(files)] == [
        "trajectory: P01 has 1 steps, but comparison_matrix.json has 2",
        "trajectory: prompt P02 is not in comparison_matrix.json",
    ]
    image = {"image": "flat.png", "image_sha256": "0" * 64}
    content = {"flat_field": {"original": image, "quantized": {**image, "image": "../flat.png"}}}
    assert [*changed_flat_fields(tmp_path, content)] == ["../flat.png is outside of the folder"]
    (tmp_path / "flat.png").touch()
    assert next(changed_flat_fields(tmp_path, content)) == "flat.png is not the image that was measured"
