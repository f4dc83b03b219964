"""``lensconv generate`` with pipelines of diffusers: the image is the one that diffusers alone makes."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from converter import __version__, convert
from converter.libraries import package_versions
from converter.measurement.generation import memory
from converter.synthesis.pipelines.presets import PIPELINES
from converter.synthesis.synthesize import synthesize
from tests.conftest import Lensconv, Outcome, edit_json, names_in, run_python
from tests.forms import accepted
from tests.generations import change_tensors, pixels
from tests.tiny_pipelines import save_stable_diffusion

#: Diffusers alone, in a process that does not import lensconv; SDNQ is imported for its weights.
ORACLE = """
import json, sys, torch, sdnq
from diffusers import DiffusionPipeline
for repo, output, arguments in json.loads(sys.argv[1]):
    pipeline = DiffusionPipeline.from_pretrained(repo, torch_dtype=torch.bfloat16, local_files_only=True)
    generator = torch.Generator("cpu").manual_seed(arguments.pop("seed"))
    pipeline(generator=generator, **arguments).images[0].save(output)
assert "converter" not in sys.modules
"""


def drawn_by_diffusers(folder: Path, *calls: tuple[Path, dict[str, Any]]) -> list[np.ndarray]:
    """The images of calls of pipelines: repos and arguments."""
    files = [folder / f"{number}.png" for number in range(len(calls))]
    jobs = [(str(repo), str(file), arguments) for (repo, arguments), file in zip(calls, files, strict=True)]
    done = run_python(ORACLE, json.dumps(jobs), cwd=folder)
    assert done.returncode == 0, done.stderr
    return [pixels(file) for file in files]


def draw(lensconv: Lensconv, repo: Path, output: Path, *options: object, prompt: str = "a red cube") -> Outcome:
    return lensconv("generate", repo, "--prompt", prompt, "--out", output, "--steps", 2, *options, "--json")


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Stable Diffusion, whose safety checker finds nothing."""
    return save_stable_diffusion(tmp_path_factory.mktemp("pipelines") / "stable-diffusion")


def copied(repo: Path, folder: Path) -> Path:
    return Path(shutil.copytree(repo, folder / "repo"))


def test_the_image_is_that_of_diffusers(repo: Path, tmp_path: Path, lensconv: Lensconv) -> None:
    quantized = tmp_path / "quantized"
    convert(repo, quantized)
    options = ("--seed", 7, "--guidance", 4, "--negative-prompt", "blur", "--height", 48, "--width", 64)
    arguments = {"prompt": "a red cube", "negative_prompt": "blur", "seed": 7, "guidance_scale": 4.0}
    arguments |= {"num_inference_steps": 2, "height": 48, "width": 64}
    expected = drawn_by_diffusers(tmp_path, (repo, arguments), (quantized, arguments))
    for source, image_of_diffusers in zip((repo, quantized), expected, strict=True):
        outcome = draw(lensconv, source, tmp_path / "image.png", *options, "--overwrite")
        assert outcome.code == 0, outcome.stderr
        assert (pixels(tmp_path / "image.png") == image_of_diffusers).all()
        assert accepted(outcome.result, "generate") == []
        settings = outcome.result["settings"]
        with Image.open(tmp_path / "image.png") as image:
            texts = image.text  # type: ignore[attr-defined]
        assert texts["lensconv"] == json.dumps(settings, sort_keys=True, ensure_ascii=False)
        layers = settings.pop("quantization")
        assert settings == {
            "pipeline": "StableDiffusionPipeline",
            "prompt": "a red cube",
            "negative_prompt": "blur",
            "seed": 7,
            "steps": 2,
            "guidance": 4.0,
            "max_sequence_length": None,
            "height": 48,
            "width": 64,
            "dtype": "bfloat16",
            "compile": "none",
            "device": "cpu",
            "versions": {"lensconv": __version__, **package_versions()},
        }
    assert (list(layers), layers["unet"]["weights_dtype"], layers["unet"]["layers"] > 0) == (["unet"], "uint4", True)


@pytest.mark.long
def test_every_tiny_pipeline_draws_as_diffusers_does(tmp_path: Path, lensconv: Lensconv) -> None:
    """Originals and quantized ones; Qwen-Image is guided with an empty negative prompt, which diffusers leaves out."""
    calls: list[tuple[Path, dict[str, Any]]] = []
    drawn: list[Path] = []
    for preset in PIPELINES:
        repo = tmp_path / preset
        synthesize(repo, preset=preset)
        if preset == "tiny-wan":
            outcome = draw(lensconv, repo, tmp_path / "x.png")
            assert outcome.code == 2
            assert "WanPipeline makes videos; lensconv draws images only" in outcome.result["error"]["message"]
            continue
        quantized = tmp_path / f"{preset}-uint4"
        convert(repo, quantized)
        for source in (repo, quantized):
            drawn.append(source.with_suffix(".png"))
            outcome = draw(lensconv, source, drawn[-1], "--height", 64, "--width", 96)
            assert outcome.code == 0, outcome.stderr
            assert accepted(outcome.result, "generate") == []
            assert (outcome.result["settings"]["quantization"] is None) == (source == repo)
            more = {"negative_prompt": ""} if preset == "tiny-qwen-image" else {}
            sizes = {"height": 64, "width": 96, "num_inference_steps": 2}
            calls.append((source, {"prompt": "a red cube", "seed": 0, **sizes, **more}))
    for file, image in zip(drawn, drawn_by_diffusers(tmp_path, *calls), strict=True):
        assert (pixels(file) == image).all(), file


@pytest.mark.long
def test_a_size_that_is_rounded_and_each_text_encoder_that_sees_less(tmp_path: Path, lensconv: Lensconv) -> None:
    synthesize(tmp_path / "flux", preset="tiny-flux")
    options = ("--height", 100, "--width", 90, "--max-sequence-length", 128)
    outcome = draw(lensconv, tmp_path / "flux", tmp_path / "x.png", *options, prompt="a red cube " * 20)
    settings = outcome.result["settings"]
    assert (settings["height"], settings["width"], settings["max_sequence_length"]) == (96, 80, 128)
    assert "FluxPipeline rounds sizes: asked for 90x100, drawn 80x96" in outcome.stderr
    for name, room in (("tokenizer", 75), ("tokenizer_2", 127)):
        assert re.search(rf"the prompt has \d+ tokens for {name}, which takes {room}; ", outcome.stderr)
    outcome = draw(lensconv, tmp_path / "flux", tmp_path / "y.png", "--negative-prompt", "blur")
    assert outcome.result["error"]["message"].endswith("FluxPipeline ignores it, as its true_cfg_scale is 1")
    outcome = draw(lensconv, tmp_path / "flux", tmp_path / "y.png", "--max-sequence-length", 513)
    assert (outcome.code, outcome.result["error"]["type"]) == (2, "UsageError")


def test_defaults_are_those_of_the_pipeline(repo: Path, tmp_path: Path, lensconv: Lensconv) -> None:
    for offload in ("none", "model", "sequential"):
        outcome = draw(lensconv, repo, tmp_path / f"{offload}.png", "--offload", offload)
        assert ("saves no memory on a CPU" in outcome.stderr) == (offload != "none")
        assert (tmp_path / f"{offload}.png").read_bytes() == (tmp_path / "none.png").read_bytes()
    settings = outcome.result["settings"]
    assert (settings["guidance"], settings["height"], settings["width"]) == (7.5, 64, 64)
    shown = lensconv("generate", repo, "--prompt", "x", "--out", tmp_path / "x.png", "--steps", 1).stderr
    assert "64x64, 1 steps, guidance 7.5, seed 0, bfloat16 on cpu, not quantized" in " ".join(shown.split())


def test_a_prompt_that_is_cut_is_said(repo: Path, tmp_path: Path, lensconv: Lensconv) -> None:
    for length, cut in ((75, None), (78, "'c c c'")):
        outcome = draw(lensconv, repo, tmp_path / f"{length}.png", prompt="c " * length)
        said = f"the prompt has {length} tokens for tokenizer, which takes 75; its text encoder"
        assert (said in outcome.stderr) == (cut is not None)
        assert cut is None or cut in outcome.stderr
    assert (pixels(tmp_path / "75.png") == pixels(tmp_path / "78.png")).all()


def test_a_safety_checker_is_used(repo: Path, tmp_path: Path, lensconv: Lensconv) -> None:
    blocking = save_stable_diffusion(tmp_path / "blocking", blocks_all=True)
    outcome = draw(lensconv, blocking, tmp_path / "x.png")
    assert (outcome.code, outcome.result["error"]["type"]) == (1, "ImageError")
    assert "its safety checker blacked the image out" in outcome.result["error"]["message"]
    free = copied(blocking, tmp_path)
    edit_json(free / "model_index.json", safety_checker=[None, None], feature_extractor=[None, None])
    assert draw(lensconv, free, tmp_path / "free.png").code == 0
    assert draw(lensconv, repo, tmp_path / "checked.png").code == 0
    assert pixels(tmp_path / "free.png").any()


def test_options_that_the_pipeline_does_not_take(repo: Path, tmp_path: Path, lensconv: Lensconv) -> None:
    for options, said in (
        (("--int8", "chain"), "--int8: is for Lens only; StableDiffusionPipeline does not take it"),
        (("--aspect-ratio", "16:9"), "--aspect-ratio: is for Lens only"),
        (("--features", tmp_path), "--features: is for Lens only"),
        (("--date", "2020-01-01"), "--date: is for Lens only"),
        (("--max-sequence-length", 100), "--max-sequence-length: StableDiffusionPipeline does not take it"),
        (("--height", 64), "give --height and --width together"),
        (("--height", 65, "--width", 64), "StableDiffusionPipeline refuses these options: `height` and `width` have"),
        (("--prompt", "lone \udcff surrogate"), "--prompt: is not text"),
    ):
        outcome = draw(lensconv, repo, tmp_path / "x.png", *options)
        assert (outcome.code, outcome.result["error"]["type"]) == (2, "UsageError"), options
        assert said in outcome.result["error"]["message"]
    assert names_in(tmp_path) == []


def test_weights_at_fault(repo: Path, tmp_path: Path, lensconv: Lensconv, monkeypatch: pytest.MonkeyPatch) -> None:
    def error(source: Path, *options: object) -> str:
        outcome = draw(lensconv, source, tmp_path / "x.png", *options)
        shutil.rmtree(tmp_path / "repo", ignore_errors=True)
        found = outcome.result["error"]
        return f"{outcome.code} {found['type']} {found['message']}".replace(str(tmp_path), "")

    name = "conv_out.weight"
    source = copied(repo, tmp_path)
    weights = source / "unet" / "diffusion_pytorch_model.safetensors"
    change_tensors(weights, lambda tensors: tensors.pop(name))
    expected = "2 MalformedCheckpoint /repo/unet: tensor conv_out.weight: is missing, and UNet2DConditionModel needs it"
    assert error(source) == expected
    for dtype in ("bfloat16", "float32"):
        source = copied(repo, tmp_path)
        change_tensors(weights, lambda tensors: tensors[name].fill_(float("nan")))
        expected = "1 ImageError the model computed numbers that are not finite"
        assert error(source, "--dtype", dtype) == expected
    source = copied(repo, tmp_path)
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    assert "2 UnsupportedCheckpoint /repo/unet/diffusion_pytorch_model.bin: may contain a pickle" in error(source)
    source = copied(repo, tmp_path)
    edit_json(source / "model_index.json", unet=["evil", "UNet"])
    (source / "unet" / "evil.py").write_text("raise SystemExit(99)")
    assert error(source).startswith("2 ")
    source = copied(repo, tmp_path)
    edit_json(source / "model_index.json", tokenizer=["os", "PathLike"])
    assert "tokenizer is os.PathLike; lensconv loads components of diffusers and transformers only" in error(source)
    monkeypatch.setattr(memory, "free_memory_bytes", lambda: 1000)
    assert error(repo).startswith("3 MemoryLimitError generating takes at least ")
    assert names_in(tmp_path) == []


def test_variants_of_the_weights_are_loaded(repo: Path, tmp_path: Path, lensconv: Lensconv) -> None:
    source = copied(repo, tmp_path)
    file = source / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor.half() for name, tensor in load_file(file).items()}, file.with_suffix(".x"))
    file.unlink()
    file.with_suffix(".x").rename(file.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert draw(lensconv, source, tmp_path / "fp16.png").code == 0
    assert draw(lensconv, repo, tmp_path / "plain.png").code == 0
    assert np.abs(pixels(tmp_path / "fp16.png") - pixels(tmp_path / "plain.png")).mean() < 10


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_blocks_are_compiled(repo: Path, tmp_path: Path, lensconv: Lensconv) -> None:
    for kind in ("none", "blocks"):
        outcome = draw(lensconv, repo, tmp_path / f"{kind}.png", "--compile", kind)
        assert (outcome.code, outcome.result.get("settings", {}).get("compile")) == (0, kind), outcome.stderr
    assert np.abs(pixels(tmp_path / "none.png") - pixels(tmp_path / "blocks.png")).mean() < 10
