"""``generate --lora``: an original with LoRA adapters draws as what diffusers merged in float32."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch

from converter import AdapterChoice
from converter.errors import MalformedCheckpoint, UnsupportedCheckpoint
from converter.measurement.benchmark.job import Job, Task
from converter.measurement.benchmark.repos import choose_image_settings, open_measured
from converter.measurement.benchmark.session import Session
from converter.measurement.generation.adapters import open_adapters
from converter.measurement.generation.options import GenerateOptions
from converter.schemas import load_schema
from converter.synthesis.synthesize import synthesize
from tests.conftest import Lensconv, call, snapshot
from tests.generations import SMALL, draw, pixels
from tests.lora_files import RANK, factors, paths_of, prefixed, write
from tests.lora_pipelines import SCALES, fused_copy, load, options_of, weak_adapters
from tests.test_adapters_conversion import flux_of_kohya, fuse, save_pipeline
from tests.tiny_models import build_model


@pytest.mark.parametrize("preset", ["tiny", "tiny-flux", pytest.param("tiny-sdxl", marks=pytest.mark.long)])
def test_an_original_with_adapters_draws_as_what_diffusers_merged(
    preset: str, tiny_repo: Path, tmp_path: Path, lensconv: Lensconv
) -> None:
    """The transformer of Lens; the transformer of FLUX with one text encoder; the UNet of SDXL with both."""
    repo = tiny_repo if preset == "tiny" else tmp_path / "repo"
    if repo != tiny_repo:
        synthesize(repo, preset=preset)
    choices = weak_adapters(tmp_path, repo)
    before = snapshot(repo)
    images, predicted = {}, {}
    for name, source, options in (
        ("added", repo, options_of(choices)),
        ("plain", repo, []),
        ("fused", fused_copy(repo, choices, tmp_path / "fused"), []),
    ):
        outcome = draw(lensconv, source, tmp_path / f"{name}.png", *options)
        assert outcome.code == 0, outcome.stderr
        jsonschema.validate(outcome.result, load_schema("generate"))
        images[name] = pixels(tmp_path / f"{name}.png")
        predicted[name] = outcome.result["predicted_memory_bytes"]
        adapters = outcome.result["settings"].get("adapters", {})
        assert [*adapters] == (load(repo)._lora_loadable_modules if options else [])
        assert all([each["scale"] for each in found] == [*SCALES] for found in adapters.values())
    assert (images["added"] == images["fused"]).all()
    assert (images["added"] != images["plain"]).any()
    assert predicted["added"] - predicted["plain"] == open_adapters(repo, choices).bytes > 0
    # Weights are mapped from the files.
    assert snapshot(repo) == before


def test_biases_and_tensors_that_converters_make_are_added_to_a_model(tmp_path: Path) -> None:
    """Kohya's names of FLUX, whose factors diffusers splits; without rounding, and to weights of another dtype."""
    source, models, choice = flux_of_kohya(tmp_path)
    model, path = models["transformer"], "x_embedder"
    tensors = factors(model, [path])
    tensors[f"{path}.lora_B.bias"] = torch.ones(model.x_embedder.out_features)
    config = {"r": RANK, "lora_alpha": 2, "lora_bias": True, "target_modules": [path]}
    metadata = {"lora_adapter_metadata": json.dumps({f"transformer.{key}": each for key, each in config.items()})}
    with_bias = AdapterChoice(write(tmp_path / "bias.safetensors", prefixed(tensors, "transformer"), metadata), 0.5)
    added = open_adapters(source, [choice, with_bias])
    changed, half = copy.deepcopy(model), copy.deepcopy(model).half()
    added.add("text_encoder", changed)
    assert_equal(changed, model)
    for each in (changed, half):
        added.add("transformer", each)
    fuse("flux", models, [choice, with_bias])
    assert_equal(changed, model)
    assert_equal(half, copy.deepcopy(model).half())
    # The largest weight in float32, what is added to it, and a product; and the tensors that a converter made.
    largest = max(parameter.numel() for parameter in model.parameters())
    assert added.bytes >= added.fitted.held_bytes + 3 * 4 * largest > 3 * 4 * largest
    choice.file.touch()
    with pytest.raises(MalformedCheckpoint, match=r"kohya\.safetensors: was changed while it was read"):
        added.add("transformer", changed)


def assert_equal(model: Any, expected: Any) -> None:
    """Compare weights bit for bit."""
    wanted = expected.state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in model.state_dict().items())


def test_what_generate_refuses(tiny_repo: Path, tiny_release: Path, tmp_path: Path) -> None:
    output = tmp_path / "x.png"
    good = write(
        tmp_path / "good.safetensors", prefixed(factors(load(tiny_repo).transformer, ["img_in"]), "transformer")
    )
    wrong = write(tmp_path / "wrong.safetensors", {"x": torch.ones(3)})
    quantized = (
        "transformer is quantized, and nothing can be added to its weights. Give the original. If it was converted"
    )
    for repo, given, words in (
        (tiny_release, good, quantized),
        (tiny_repo, tmp_path / "no.safetensors", "No such file"),
        (tiny_repo, wrong, "is not a LoRA adapter"),
        (tiny_repo, f"{good}=0", "leaves the weights as they are"),
    ):
        refused = call("generate", repo, "--prompt", "x", "--out", output, *SMALL, "--lora", given)
        assert (refused.code, words in refused.stderr) == (2, True), refused.stderr
    assert not output.exists()


def test_components_that_a_pipeline_lacks(tmp_path: Path) -> None:
    """Their parts of an adapter have no effect; without any component for it, it is refused."""
    model = build_model("FluxTransformer2DModel")
    source = save_pipeline(tmp_path / "source", {"transformer": model}, "FluxPipeline")
    tensors = prefixed(factors(model, paths_of(model)[:1]), "transformer")
    more = {"text_encoder.text_model.q_proj.lora_A.weight": torch.ones(4, 8)}
    choice = AdapterChoice(write(tmp_path / "both.safetensors", tensors | more))
    (note,) = open_adapters(source, [choice]).notes
    assert note.startswith("both.safetensors: 1 tensor for text_encoder, to which nothing is added: ")
    shutil.move(source / "transformer", source / "other")
    index = {"_class_name": "FluxPipeline", "other": ["diffusers", "FluxTransformer2DModel"]}
    (source / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UnsupportedCheckpoint, match="has no transformer and no text_encoder to add adapters to"):
        open_adapters(source, [choice])


@pytest.mark.long
def test_a_worker_adds_to_a_pipeline_of_diffusers(tmp_path: Path, lensconv: Lensconv) -> None:
    """To all components that the job names, and to no others."""
    repo = tmp_path / "repo"
    synthesize(repo, preset="tiny-flux")
    choices = weak_adapters(tmp_path, repo)
    drawing = GenerateOptions(steps=2, height=64, width=96)
    settings = choose_image_settings(open_measured(repo), "a red cube", drawing)
    images = {}
    for adapted in (["transformer", "text_encoder"], ["transformer"]):
        task = Task("A1", asdict(settings), str(tmp_path / "worker.png"))
        given = [(str(choice.file), choice.scale) for choice in choices]
        session = Session(Job(str(repo), {}, "model", "cpu", "bfloat16", [task], given, adapted))
        session.load()
        session.generate(task)
        images[len(adapted)] = pixels(tmp_path / "worker.png")
    assert draw(lensconv, repo, tmp_path / "x.png", *options_of(choices)).code == 0
    assert (images[2] == pixels(tmp_path / "x.png")).all()
    assert (images[1] != images[2]).any()
