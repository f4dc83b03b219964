"""The benchmark of pipelines of diffusers: what it opens, draws, notes and says, and the card that is made of it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from converter import convert
from converter.console import SILENT
from converter.conversion.options import ConvertOptions
from converter.errors import LensconvError, UsageError
from converter.measurement.benchmark.assembly import Assembly
from converter.measurement.benchmark.bench import bench
from converter.measurement.benchmark.fidelity import compare_weights
from converter.measurement.benchmark.job import Job, Task
from converter.measurement.benchmark.journal import LOAD_KEY, Cell, Journal
from converter.measurement.benchmark.machine import describe_machine
from converter.measurement.benchmark.options import BenchOptions
from converter.measurement.benchmark.pipeline_drawer import PipelineDrawer
from converter.measurement.benchmark.repos import choose_image_settings, cut_texts, open_measured
from converter.measurement.benchmark.session import Session
from converter.measurement.benchmark.subjects import Subject, open_subjects
from converter.measurement.evidence.files import read_evidence_folder, write_evidence
from converter.measurement.evidence.weights import measured_weights
from converter.measurement.generation.options import GenerateOptions
from converter.measurement.generation.pipeline_drawing import run_pipeline
from converter.measurement.generation.pipeline_loading import OpenPipeline
from converter.measurement.prompts.suite import PromptSuite, SuitePrompt
from converter.models.pipelines import Component, describe_pipeline
from converter.presentation.card.make_card import make_card
from converter.presentation.card.options import CardOptions
from converter.presentation.charts.footprint import footprint_chart
from converter.presentation.report.make_report import make_report
from converter.presentation.tables import conditions
from converter.synthesis.synthesize import synthesize
from tests.conftest import Lensconv, edit_json, run_python
from tests.generations import pixels
from tests.tiny_pipelines import save_stable_diffusion

pytestmark = pytest.mark.long

SUITE = PromptSuite("one", (SuitePrompt("A1", "A cube", 301, "a red cube", ()),))
SMALL: dict[str, Any] = {"steps": 2, "height": 64, "width": 48}


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Stable Diffusion, whose denoiser is a UNet."""
    return save_stable_diffusion(tmp_path_factory.mktemp("pipelines") / "original")


@pytest.fixture(scope="module")
def release(repo: Path) -> Path:
    output = repo.with_name("quantized")
    convert(repo, output)
    return output


@pytest.fixture(scope="module")
def subjects(repo: Path, release: Path) -> dict[str, Subject]:
    return {subject.name: subject for subject in open_subjects(repo, release, SILENT)}


def job_of(folder: Path, subject: Subject, offload: str = "none") -> Job:
    """Two images, of which the second is kept."""
    prompt = SUITE.prompts[0]
    settings = choose_image_settings(subject.repo, prompt.prompt, GenerateOptions(seed=prompt.seed, **SMALL))
    tasks = [Task("A1", asdict(settings), str(folder / f"{subject.name}.png"))]
    return Job(str(subject.repo.folder), dict(subject.states), offload, "cpu", "bfloat16", tasks)


def test_subjects_name_the_denoiser(subjects: dict[str, Subject], release: Path) -> None:
    original, quantized = subjects.values()
    assert (original.label, quantized.label) == ("Original original", "SDNQ uint4 static")
    source = quantized.source()
    assert source["denoiser"] == "unet"
    assert list(measured_weights(source)) == ["unet", "safety_checker", "text_encoder", "vae"]
    assert source["transformer"][0]["bytes"] == (release / "unet" / source["transformer"][0]["name"]).stat().st_size
    assert quantized.footprint()["class_name"] == "UNet2DConditionModel"
    assert {"scheduler", "feature_extractor", "tokenizer"} < quantized.components.keys()
    found = compare_weights(subjects, SILENT)
    assert found is not None
    assert found["sources"]["quantized"] == source


@pytest.mark.parametrize("offload", ["none", "model", "sequential"])
def test_a_worker_draws_as_generate_does(
    offload: str, subjects: dict[str, Subject], tmp_path: Path, lensconv: Lensconv
) -> None:
    """Also with offloading, which on a CPU saves nothing, but is what the mode says."""
    job = job_of(tmp_path, subjects["quantized"], offload)
    session = Session(job)
    loaded = session.load()
    assert (loaded["quantization"]["sdnq_compiles"], "mxfp4" in loaded) == (False, False)
    models = {"safety_checker", "text_encoder", "unet", "vae"}
    assert loaded["components"].keys() == (models if offload == "none" else loaded["components"].keys() & models)
    assert hasattr(session.pipeline.unet, "_hf_hook") == (offload != "none")
    figures = session.generate(job.tasks[0])
    assert list(figures["stages"]) == ["text_encoder", "transformer", "vae"]
    assert (figures["width"], figures["height"]) == (48, 64)
    assert session.warm_ups(job.tasks[0], job.tasks) == []
    size = ("--height", 64, "--width", 48)
    line = ("generate", job.repo, "--prompt", "a red cube", "--seed", 301, "--steps", 2, *size)
    outcome = lensconv(*line, "--out", tmp_path / "generated.png", "--json")
    assert outcome.code == 0, outcome.stderr
    assert (pixels(tmp_path / "generated.png") == pixels(tmp_path / "quantized.png")).all()
    with Image.open(tmp_path / "generated.png") as first, Image.open(tmp_path / "quantized.png") as second:
        assert first.info == second.info


def test_stages_that_a_pipeline_does_not_show_are_left_out(
    subjects: dict[str, Subject], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the length of a schedule is not known, so that every step may be the last."""

    def run(pipeline: Any, repo: Any, settings: Any, device: Any, step_done: Callable[[Any, bool], None]) -> Any:
        return run_pipeline(pipeline, repo, settings, device, lambda latents, _: step_done(latents, True))

    monkeypatch.setattr("converter.measurement.benchmark.pipeline_drawer.run_pipeline", run)
    job = job_of(tmp_path, subjects["original"])
    session = Session(job)
    session.load()
    figures = session.generate(job.tasks[0])
    assert figures["time_s"] > 0
    assert "stages" not in figures
    files = assembled(subjects, tmp_path / "evidence", {"original": figures, "quantized": figures})
    assert "stages" not in files["comparison_matrix.json"]["prompts"][0]["original"]
    assert "stages" not in files["benchmark_metrics.json"]["models"]["original"]


def test_prompts_that_are_cut_are_said(subjects: dict[str, Subject], tiny_repo: Path) -> None:
    repo = subjects["original"].repo
    settings = [choose_image_settings(repo, prompt, GenerateOptions(**SMALL)) for prompt in ("short", "word " * 200)]
    (note,) = cut_texts(repo, settings)
    assert "tokens for tokenizer, which takes 75" in note
    assert [*cut_texts(open_measured(tiny_repo), settings)] == []


def assembled(
    subjects: dict[str, Subject], folder: Path, drawn: dict[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Files of measurements of both models, each of one image."""
    options = GenerateOptions(seed=301, **{**SMALL, "height": None, "width": None})
    settings = [choose_image_settings(subjects["original"].repo, SUITE.prompts[0].prompt, options)]
    with Journal(folder, {}, restart=True) as journal:
        for model, figures in drawn.items():
            journal.note(Cell("standard", 0, 0, model), LOAD_KEY, {"time_s": 1.0, "cache_warm": True, "components": {}})
            journal.note(Cell("standard", 0, 0, model), "A1", {**figures, "image_sha256": "0" * 64})
        environment = describe_machine("cpu")
        files = Assembly(journal, SUITE, settings, subjects, environment, BenchOptions(mode="standard")).files()
    for name, content in files.items():
        write_evidence(folder, name, content)
    return files


def test_which_of_several_denoisers_counts(repo: Path) -> None:
    """The one that is called transformer or unet, else the last; their images have no stages."""
    described = describe_pipeline(repo)
    others = tuple(component for component in described.components if component.role != "denoiser")

    def opened(*names: str) -> OpenPipeline:
        denoisers = (Component(repo / name, "diffusers", "UNet2DConditionModel") for name in names)
        return OpenPipeline(replace(described, components=(*denoisers, *others)), ())

    cases = {("unet",): "unet", ("unet", "prior"): "unet", ("prior", "decoder_unet"): "decoder_unet"}
    cases |= {("unet", "transformer"): "transformer"}
    for names, expected in cases.items():
        found = opened(*names)
        assert found.denoiser == expected
        assert PipelineDrawer(found, torch.device("cpu"), "none")._has_stages == (len(names) == 1)
    without = replace(described, components=tuple(item for item in described.components if item.name != "vae"))
    assert not PipelineDrawer(OpenPipeline(without, ()), torch.device("cpu"), "none")._has_stages


FIGURES = {
    "time_s": 1.0,
    "stages": {name: {"time_s": 0.3, "peak_rss_gb": 0.2} for name in ("text_encoder", "transformer", "vae")},
    "width": 48,
    "height": 64,
    "pixels_sha256": "0" * 64,
}


@pytest.fixture
def evidence(subjects: dict[str, Subject], tmp_path: Path) -> Path:
    assembled(subjects, tmp_path / "evidence", {"original": FIGURES, "quantized": FIGURES})
    return tmp_path / "evidence"


def test_what_files_of_measurements_say(evidence: Path) -> None:
    found = read_evidence_folder(evidence)
    settings = found["comparison_matrix.json"]["settings"]
    chosen: dict[str, Any] = {
        "pipeline": "StableDiffusionPipeline",
        "guidance_argument": "guidance_scale",
        "max_sequence_length": None,
    }
    chosen |= {"num_inference_steps": 2, "guidance_scale": 7.5, "dtype": "bfloat16", "width": 48, "height": 64}
    assert chosen.items() <= settings.items()
    shown = conditions.settings({**settings, "max_sequence_length": 77})
    assert shown[:2] == [("pipeline", "StableDiffusionPipeline"), ("max sequence length", "77")]
    assert not {"date", "int8", "base_resolution", "aspect_ratio"} & settings.keys()


def test_sentences_call_a_unet_a_unet(evidence: Path, release: Path, tmp_path: Path) -> None:
    make_report(evidence)
    page = (evidence / "report.html").read_text()
    assert re.search(r"UNet</\w+>", page)
    assert not re.search(r">[^<]*\b[Tt]ransformer\b", page)
    chart: Any = footprint_chart(read_evidence_folder(evidence))
    assert chart.description.startswith("Stored size of the UNet: ")
    copy = Path(shutil.copytree(release, tmp_path / "release"))
    make_card(copy, evidence, CardOptions(repo="owner/Tiny", license="mit"))
    text = (copy / "README.md").read_text()
    for sentence in ("the UNet takes", "| UNet tensors, GB |", "Sizes of the UNet count", "Both UNets, counted"):
        assert sentence in text
    words = re.sub(r"https?://\S+|transformers|`[^`]*`|sdnq\S*", "", text)
    assert not re.findall(r".*\b(?:[Tt]ransformer|Lens)\b.*", words)


def test_the_usage_of_a_card_runs(evidence: Path, release: Path, tmp_path: Path) -> None:
    """Once it was measured, with a call; else it only loads."""
    copy = Path(shutil.copytree(release, tmp_path / "release"))
    programs = []
    for folder in (None, evidence):
        make_card(copy, folder, CardOptions(license="mit"))
        (program,) = re.findall(r"## Usage\n.*?```python\n(.*?)```", (copy / "README.md").read_text(), flags=re.DOTALL)
        programs.append(program)
    assert ["cat.png" in program for program in programs] == [False, True]
    arguments = ("height=64", "width=48", "num_inference_steps=2", "guidance_scale=7.5", "generator=")
    assert ",\n    ".join(arguments) in programs[1]
    done = run_python(programs[1], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "cat.png") as image:
        assert image.size == (48, 64)


def test_what_is_refused(repo: Path, release: Path, tmp_path: Path, lensconv: Lensconv, tiny_repo: Path) -> None:
    other = Path(shutil.copytree(release, tmp_path / "other"))
    edit_json(other / "model_index.json", _class_name="StableDiffusionImg2ImgPipeline")
    for first, second, reason in (
        (repo, other, "is for StableDiffusionImg2ImgPipeline, and .* for StableDiffusionPipeline"),
        (tiny_repo, release, "is for StableDiffusionPipeline, and .* for LensPipeline"),
        (other, release, "needs more than a prompt: an image"),
    ):
        with pytest.raises(LensconvError, match=reason):
            open_subjects(first, second, SILENT)
    for options, drawing, reason in (
        (BenchOptions(trajectory_blocks=True), GenerateOptions(), "--trajectory-blocks: is measured for Lens only"),
        (BenchOptions(), GenerateOptions(int8="chain"), "--int8: is for Lens only"),
        (BenchOptions(), GenerateOptions(max_sequence_length=9), "--max-sequence-length: .* does not take it"),
    ):
        with pytest.raises(UsageError, match=reason):
            bench(repo, release, tmp_path / "out", SUITE, options, drawing)
    outcome = lensconv("bench", repo, release, "--out", tmp_path / "out", "--fail-over", "trajectory=1", "--json")
    assert (outcome.code, outcome.result["error"]["type"]) == (3, "MissingFigure")
    assert "measured for Lens only" in outcome.result["error"]["message"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("preset", "components", "modes"),
    [("tiny-flux", ("transformer", "text_encoder_2"), "standard"), ("tiny-sdxl", ("unet",), "standard,offload")],
)
def test_the_whole_day(
    preset: str, components: tuple[str, ...], modes: str, tmp_path: Path, lensconv: Lensconv
) -> None:
    """From a repo to the page of its release."""
    original, quantized, output = tmp_path / "A", tmp_path / "B", tmp_path / "evidence"
    synthesize(original, preset=preset)
    convert(original, quantized, options=ConvertOptions(components=components))
    suite = tmp_path / "two.toml"
    rows = "".join(f'[[prompts]]\nid = "P{n}"\nscenario = "x"\nseed = {n}\nprompt = "a cube {n}"\n' for n in (1, 2))
    suite.write_text(f'name = "two"\n{rows}')
    options = ("--height", 64, "--width", 64, "--steps", 2, "--mode", modes, "--pairs", 2)
    line = ("bench", original, quantized, "--prompts", suite, "--out", output, *options, "--json")
    outcome = lensconv(*line)
    assert outcome.code == 0, outcome.stderr
    assert (outcome.result["images"], outcome.result["resumed"]) == (10 + 8 * modes.count("offload"), 0)
    found = read_evidence_folder(output)
    images = found["image_fidelity.json"]
    assert images["not_measured"]["trajectory"].startswith("measured for Lens only, not for ")
    assert "trajectory" not in images
    assert ("model_cpu_offload_benchmark.json" in found) == ("offload" in modes)
    families = {row["name"] for row in found["weight_fidelity.json"]["fidelity"]["families"]}
    assert families
    for model, source in found["comparison_matrix.json"]["sources"].items():
        folder = original if model == "original" else quantized
        assert {f"{name}/{file['name']}" for name, files in measured_weights(source).items() for file in files} == {
            str(file.relative_to(folder)) for file in folder.glob("*/*.safetensors")
        }
    again = lensconv(*line)
    assert (again.code, again.result["resumed"]) == (0, outcome.result["images"])
    for command in ("grid", "charts", "report", "evidence"):
        done = lensconv(command, output)
        assert done.code == 0, done.stderr
    done = lensconv("compare", output / "images" / "original", output / "images" / "quantized", "--json")
    assert (done.code, len(done.result["pairs"])) == (0, 2)
    done = lensconv(
        *("card", quantized, "--evidence", output, "--repo", "o/B", "--base-model", "o/A", "--license", "mit", "--json")
    )
    assert done.code == 0, done.stderr
    assert not done.result["unverified"]
    assert {"usage", "benchmark", "images", "weights", "charts"} <= set(done.result["sections"])
    assert json.loads((quantized / "comparison_matrix.json").read_text()) == found["comparison_matrix.json"]
