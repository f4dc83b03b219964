"""Releases with LoRA are measured against the original with the same adapters; cards say so, or that they were not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from converter import AdapterChoice, ConvertOptions, convert, make_card
from converter.console import SILENT
from converter.errors import EvidenceError, UsageError
from converter.measurement.benchmark.assembly import Assembly
from converter.measurement.benchmark.fidelity import compare_weights
from converter.measurement.benchmark.identity import describe_identity
from converter.measurement.benchmark.job import Job, Task
from converter.measurement.benchmark.journal import LOAD_KEY, Cell, Journal
from converter.measurement.benchmark.machine import describe_machine
from converter.measurement.benchmark.measuring import Bench
from converter.measurement.benchmark.meter import Stopwatch
from converter.measurement.benchmark.options import BenchOptions
from converter.measurement.benchmark.repos import choose_image_settings
from converter.measurement.benchmark.session import Session
from converter.measurement.benchmark.subjects import Subject, open_subjects
from converter.measurement.evidence.files import read_evidence_folder, write_evidence
from converter.measurement.evidence.folder_agreement import disagreements_between
from converter.measurement.evidence.statistics import spread
from converter.measurement.generation.adapters import AddedAdapters
from converter.measurement.generation.options import GenerateOptions
from converter.measurement.prompts.suite import PromptSuite, SuitePrompt
from converter.presentation.card.options import CardOptions
from converter.presentation.report.sections import find_provenance, find_sections
from tests.checkpoints import edit_manifest
from tests.conftest import Lensconv, call
from tests.generations import SMALL, change_tensors, draw, pixels
from tests.lora_pipelines import fused_copy, options_of, weak_adapters
from tests.published import image_fidelity, image_pair
from tests.reporters import Notes

PROMPT = SuitePrompt("A1", "A cube", 0, "a red cube", ())
SUITE = PromptSuite("one", (PROMPT,))
DRAWING = GenerateOptions(steps=2, height=64, width=96)
Subjects = Mapping[str, Subject]


@dataclass(frozen=True)
class Measured:
    """A tiny Lens, a release of it with two adapters, and how far the release's weights are from the original's."""

    original: Path
    release: Path
    choices: tuple[AdapterChoice, ...]
    weights: Mapping[str, Any]
    notes: tuple[str, ...]
    """What was noted of the weights."""

    def open(self, *choices: AdapterChoice, original: Path | None = None) -> tuple[Subjects, list[str]]:
        """Both models, and what is noted when they are opened."""
        notes = Notes()
        found = open_subjects(original or self.original, self.release, notes, choices)
        return {subject.name: subject for subject in found}, notes.texts


@pytest.fixture(scope="module")
def measured(tiny_repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Measured:
    folder = tmp_path_factory.mktemp("adapters")
    choices, notes = weak_adapters(folder, tiny_repo), Notes()
    convert(tiny_repo, folder / "release", options=ConvertOptions(adapters=choices))
    found = open_subjects(tiny_repo, folder / "release", SILENT, choices)
    weights = compare_weights({subject.name: subject for subject in found}, notes) or {}
    return Measured(tiny_repo, folder / "release", choices, weights, tuple(notes.texts))


def test_a_benchmark_adds_what_the_manifest_names(measured: Measured) -> None:
    subjects, notes = measured.open(*measured.choices)
    original, quantized = subjects.values()
    assert notes == []
    assert (original.label, quantized.label) == ("Original tiny + LoRA", "SDNQ uint4 static + LoRA")
    adapters = original.source()["adapters"]
    assert adapters == quantized.source()["adapters"]
    added = [("0.safetensors", 1.0), ("1.safetensors", -0.4)]
    assert [(each["name"], each["scale"]) for each in adapters["transformer"]] == added
    assert {str(choice.file) for choice in measured.choices} <= original.states.keys()
    assert (measured.weights["sources"]["original"], measured.notes) == (original.source(), ())
    without, notes = measured.open()
    words = "0.safetensors with scale 1, 1.safetensors with scale -0.4; unless the original contains it, name the files"
    assert [words in note and "include the effect of LoRA" in note for note in notes] == [True]
    assert (without["original"].label, "adapters" in without["original"].source()) == ("Original tiny", False)
    compare_weights(without, said := Notes())
    assert "the check 'quantized weights are near the source' failed" in " ".join(said.texts)
    settings = choose_image_settings(original.repo, "x", DRAWING)
    identities = [
        describe_identity([*each.values()], SUITE, settings, {}, BenchOptions())["settings"].get("adapters")
        for each in (subjects, without)
    ]
    listed = [(each["sha256"], each["scale"], "") for each in adapters["transformer"]]
    assert identities == [{"transformer": listed}, None]


def test_other_adapters_are_refused_before_anything_is_measured(
    measured: Measured, tiny_release: Path, tmp_path: Path
) -> None:
    first, second = measured.choices
    for others in ((first,), (second, first), (first, replace(second, scale=0.5)), (first, second, second)):
        with pytest.raises(UsageError, match=r"--lora: the manifest names other adapters for transformer: 0\.safe"):
            measured.open(*others)
    renamed = replace(first, file=Path(shutil.copy(first.file, tmp_path / "renamed.safetensors")))
    subjects, _ = measured.open(renamed, second)
    assert subjects["original"].adapters["transformer"][0]["name"] == "renamed.safetensors"
    # With a config beside it, it would be of another strength.
    factors = {name: each for name, each in load_file(first.file).items() if name.endswith("lora_B.weight")}
    ranks = {name.split(".lora_B")[0].removeprefix("transformer."): each.shape[1] for name, each in factors.items()}
    config = renamed.file.with_name("adapter_config.json")
    config.write_text(json.dumps({"r": 4, "lora_alpha": 9, "rank_pattern": ranks}))
    with pytest.raises(UsageError, match="--lora: the manifest names other adapters"):
        measured.open(renamed, second)
    with pytest.raises(UsageError, match=r"--lora: the quantized repo has no lensconv_manifest\.json that names"):
        open_subjects(measured.original, tiny_release, SILENT, (first,))
    line = ("bench", measured.original, measured.release, "--out", tmp_path / "out", "--lora", first.file)
    refused = call(*line, "--json")
    assert (refused.code, refused.result["error"]["type"]) == (2, "UsageError")
    assert not (tmp_path / "out").exists()


def test_an_original_with_other_headers_may_contain_the_adapters(measured: Measured, tmp_path: Path) -> None:
    """It is certainly not the source of the release, so nothing is said to be missing."""
    fused = fused_copy(measured.original, measured.choices, tmp_path / "fused")
    (file,) = (fused / "transformer").glob("*.safetensors")
    change_tensors(file, lambda tensors: tensors.update({name: each.bfloat16() for name, each in tensors.items()}))
    subjects, notes = measured.open(original=fused)
    compare_weights(subjects, said := Notes())
    assert (notes, said.texts) == ([], [])


def test_a_worker_draws_the_original_as_generate_does(
    measured: Measured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where each layer is moved, and its weights are on no device after loading."""
    subjects, _ = measured.open(*measured.choices)
    settings = [choose_image_settings(subjects["original"].repo, PROMPT.prompt, DRAWING)]
    task = Task("A1", asdict(settings[0]), str(tmp_path / "worker.png"))
    with Journal(tmp_path / "evidence", {}, restart=False) as journal:
        bench = Bench(tmp_path, subjects, SUITE, settings, BenchOptions(), "cpu", {}, journal)
    jobs = [bench._job(Cell("sequential", 0, 0, model), [task]).to_json() for model in subjects]
    original, quantized = map(Job.from_json, jobs)
    assert (len(original.adapters), original.adapted) == (2, ["transformer"])
    assert (quantized.adapters, quantized.adapted) == ([], [])
    monkeypatch.setattr("converter.measurement.benchmark.session.Stopwatch", Watch)
    session = Session(original)
    session._adapters = Telling(session._adapters.fitted, session._adapters.checkpoints)
    session.load()
    # Adding is no part of loading, and what it holds is released.
    assert SAID == ["paused", "transformer", "continued"]
    assert session._adapters.bytes == 0
    session.generate(task)
    assert draw(call, measured.original, tmp_path / "x.png", *options_of(measured.choices)).code == 0
    assert (pixels(tmp_path / "worker.png") == pixels(tmp_path / "x.png")).all()
    with Image.open(tmp_path / "worker.png") as first, Image.open(tmp_path / "x.png") as second:
        assert first.info == second.info
    assert bench.without_paths(f"{measured.choices[0].file}: is gone", "original") == "0.safetensors: is gone"


#: What was done while a model was loaded.
SAID: list[str] = []


class Watch(Stopwatch):
    """A stopwatch that says when it is paused."""

    @contextmanager
    def paused(self) -> Iterator[None]:
        with super().paused():
            SAID.append("paused")
            yield
            SAID.append("continued")


class Telling(AddedAdapters):
    """Adapters that say to what they are added."""

    def add(self, component: str, model: torch.nn.Module) -> None:
        super().add(component, model)
        SAID.append(component)


def write_measurements(measured: Measured, subjects: Subjects, folder: Path) -> dict[str, dict[str, Any]]:
    """Files of measurements of both models, each of one image, and of their weights."""
    stages = {name: {"time_s": 0.3, "peak_rss_gb": 0.2} for name in ("text_encoder", "transformer", "vae")}
    figures = {"time_s": 1.0, "stages": stages, "pixels_sha256": "0" * 64, "image_sha256": "0" * 64}
    settings = [choose_image_settings(subjects["original"].repo, PROMPT.prompt, DRAWING)]
    with Journal(folder, {}, restart=True) as journal:
        for model in subjects:
            journal.note(Cell("standard", 0, 0, model), LOAD_KEY, {"time_s": 1.0, "cache_warm": True, "components": {}})
            journal.note(Cell("standard", 0, 0, model), "A1", figures)
        environment, options = describe_machine("cpu"), BenchOptions(mode="standard")
        files = Assembly(journal, SUITE, settings, subjects, environment, options).files()
    sources = {"sources": files["comparison_matrix.json"]["sources"]}
    files["image_fidelity.json"] = compared_images() | {"num_inference_steps": 2} | sources
    files["weight_fidelity.json"] = {**measured.weights, **sources}
    for name, content in files.items():
        write_evidence(folder, name, content)
    return read_evidence_folder(folder)


def compared_images() -> dict[str, Any]:
    """``image_fidelity.json`` of one pair of images, without what was compared."""
    figures = {"psnr_db": 30.0, "ssim": 0.5, "periodic_grid_added": 0.1}
    summary = {name: spread([figure]).to_dict() for name, figure in figures.items()}
    return image_fidelity([image_pair("A1", 0, 30.0, 0.1)], summary)


LORA = "The quantized model contains LoRA. "
SAME = (
    f"{LORA}The original was measured with the same LoRA added to its weights, so the differences do not include the "
)
WITHOUT = f"{LORA}The original was measured without adding it: unless its files contain the same LoRA already, all "
UNKNOWN = f"{LORA}Whether the original had it when it was measured was not recorded: the differences may include the "


def test_cards_and_reports_say_which_original_was_measured(measured: Measured, tmp_path: Path) -> None:
    found = {}
    for name, choices, sentence in (("same", measured.choices, SAME), ("without", (), WITHOUT)):
        found[name] = write_measurements(measured, measured.open(*choices)[0], tmp_path / name)
        release = Path(shutil.copytree(measured.release, tmp_path / f"{name} release"))
        make_card(release, tmp_path / name, CardOptions(license="mit"))
        card = (release / "README.md").read_text()
        # Of images and of weights; there is no comparison grid.
        assert (card.count(sentence), card.count(LORA)) == (2, 2)
        assert ("| Original tiny + LoRA | SDNQ uint4 static + LoRA |" in card) == bool(choices)
        # Programs do not load what is in the weights already.
        assert "load_lora" not in card
        sections = {section.anchor: section for section in find_sections(found[name], ("a", "b"))}
        for anchor in ("fidelity", "weights"):
            assert any(note.startswith(sentence) for note in sections[anchor].notes)
        tables = find_provenance(found[name]).tables
        (table,) = (each.table for each in tables if each.caption == "LoRA in these weights")
        assert [row[0] for row in table.rows] == [*(["Original"] * len(choices)), "Quantized", "Quantized"]
        outcome = call("evidence", tmp_path / name)
        assert (outcome.code, sentence[:60] in outcome.stderr.replace("\n", " ")) == (0, True)
    # Files of two benchmarks.
    mixed = {**found["same"], "weight_fidelity.json": found["without"]["weight_fidelity.json"]}
    for files in (mixed, dict(reversed(mixed.items()))):
        reasons = [reason for _, reason in disagreements_between(files)]
        assert any(reason.startswith("sources.original.adapters is not the same in ") for reason in reasons)
    # Other adapters than those of the quantized model.
    changed = json.loads(json.dumps(found["same"]["weight_fidelity.json"]))
    changed["sources"]["quantized"]["adapters"]["transformer"].reverse()
    with pytest.raises(EvidenceError, match="sources: the adapters that were added to the original are not those"):
        write_evidence(tmp_path, "weight_fidelity.json", changed)
    # The manifest says otherwise.
    release = tmp_path / "same release"
    edit_manifest(release, lambda content: content["components"][0]["source"]["adapters"].pop())
    with pytest.raises(EvidenceError, match="is stale: the original was measured with other LoRA"):
        make_card(release, tmp_path / "same", CardOptions(license="mit"))


def test_measurements_that_do_not_say_what_was_measured(measured: Measured, tmp_path: Path) -> None:
    release = Path(shutil.copytree(measured.release, tmp_path / "release"))
    (tmp_path / "evidence").mkdir()
    (tmp_path / "evidence" / "image_fidelity.json").write_text(json.dumps(compared_images()))
    make_card(release, tmp_path / "evidence", CardOptions(license="mit", unverified=True))
    assert (release / "README.md").read_text().count(UNKNOWN) == 1


@pytest.mark.long
def test_the_whole_day_of_a_release_with_lora(measured: Measured, tmp_path: Path, lensconv: Lensconv) -> None:
    """From the benchmark, whose workers add the adapters, to the rehearsal, which does not add them again."""
    release, output = Path(shutil.copytree(measured.release, tmp_path / "release")), tmp_path / "evidence"
    suite = tmp_path / "one.toml"
    suite.write_text('name = "one"\n[[prompts]]\nid = "A1"\nscenario = "x"\nseed = 0\nprompt = "a red cube"\n')
    once = (*SMALL, "--mode", "standard", "--pairs", 1)
    line = ("bench", measured.original, release, "--prompts", suite, "--out", output, *once, "--json")
    outcome = lensconv(*line, *options_of(measured.choices))
    assert (outcome.code, outcome.result["images"]) == (0, 3), outcome.stderr
    assert draw(lensconv, measured.original, tmp_path / "x.png", *options_of(measured.choices)).code == 0
    assert (pixels(tmp_path / "x.png") == pixels(next((output / "images" / "original").glob("A1*")))).all()
    refused = lensconv(*line)
    assert (refused.code, "settings.adapters was" in refused.result["error"]["message"]) == (2, True)
    for command in ("grid", "report"):
        assert lensconv(command, output).code == 0
    assert SAME in (output / "report.html").read_text()
    assert lensconv("card", release, "--evidence", output, "--repo", "o/B", "--license", "mit").code == 0
    # The grid, the images and the weights are compared with the original.
    assert (release / "README.md").read_text().count(SAME) == 3
    outcome = lensconv("publish", release, "o/B", "--rehearse", "--json")
    assert (outcome.code, [step["ok"] for step in outcome.result["steps"]]) == (0, [True] * 5), outcome.stderr
