"""The tiny pipelines of ``synth``: the libraries load and draw with them, and a conversion finds what it quantizes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file

from converter import plan
from converter.cli.synth import PRESETS as OFFERED
from converter.conversion.options import ConvertOptions
from converter.errors import UsageError
from converter.synthesis.pipelines.description import Model
from converter.synthesis.pipelines.presets import PIPELINES
from converter.synthesis.synthesize import PRESETS, synthesize
from tests.conftest import names_in, run_python, snapshot

#: What calls need beside a prompt: the smallest sizes at which all levels of the autoencoders have something to do.
ARGUMENTS: dict[str, dict[str, Any]] = {
    # Without this, Sana draws the nearest of the sizes that the real model has learned.
    "tiny-sana": {"use_resolution_binning": False},
    "tiny-wan": {"height": 32, "width": 32, "num_frames": 5},
}
SIDE = 64
MODELS = [(preset, model) for preset, pipeline in PIPELINES.items() for model in pipeline.models]
#: What Qwen-Image puts before a prompt, and how many tokens of it the pipeline drops.
QWEN_START = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial "
    "relationships of the objects and background:<|im_end|>\n<|im_start|>user\n"
)

pytestmark = pytest.mark.long
QWEN_DROPPED = 34


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def repos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all of them, each under the name of its preset."""
    folder = tmp_path_factory.mktemp("presets")
    for preset in PIPELINES:
        synthesize(folder / preset, preset=preset)
    return folder


def weights_of(repo: Path, model: Model) -> Path:
    return repo / model.name / f"{model.kind.stem}.safetensors"


def load_component(repo: Path, model: Model) -> tuple[Any, dict[str, Any]]:
    """A component, and what its library says about tensors that did not fit."""
    library = transformers if model.kind.is_transformers else diffusers
    loaded: tuple[Any, dict[str, Any]] = getattr(library, model.kind.class_name).from_pretrained(
        repo / model.name, output_loading_info=True
    )
    return loaded


def test_the_command_offers_every_preset() -> None:
    assert OFFERED == PRESETS


@pytest.mark.parametrize("preset", PIPELINES)
def test_a_pipeline_is_small_and_whole(repos: Path, preset: str) -> None:
    repo, pipeline = repos / preset, PIPELINES[preset]
    assert sum(map(len, snapshot(repo).values())) < 40e6
    index = json.loads((repo / "model_index.json").read_text())
    pipeline_class = getattr(diffusers, pipeline.class_name)
    required, optional = map(set, pipeline_class._get_signature_keys(pipeline_class))
    assert required <= {*index} - {"_class_name", "_diffusers_version"} <= required | optional
    folders = {name for name, entry in index.items() if isinstance(entry, list) and entry[0]}
    assert {*names_in(repo)} == {*folders, "model_index.json"}


@pytest.mark.parametrize(("preset", "model"), MODELS, ids=[f"{preset}-{model.name}" for preset, model in MODELS])
def test_a_component_fits_its_class(repos: Path, preset: str, model: Model, tmp_path: Path) -> None:
    """All tensors are loaded, finite, and in the file under the names that the library would write."""
    loaded, problems = load_component(repos / preset, model)
    assert not any(problems.values())
    state = loaded.state_dict()
    assert all(torch.isfinite(tensor).all() for tensor in state.values())
    loaded.save_pretrained(tmp_path)
    names = []
    for file in (weights_of(repos / preset, model), next(tmp_path.glob("*.safetensors"))):
        with safe_open(file, "pt") as opened:
            names.append({name.removeprefix(model.kind.prefix) for name in opened.keys()})  # noqa: SIM118 - no mapping
    assert names[0] == names[1]


@pytest.mark.parametrize(
    ("preset", "model"),
    [(preset, model) for preset, model in MODELS if model.name != "vae"],
    ids=[f"{preset}-{model.name}" for preset, model in MODELS if model.name != "vae"],
)
def test_a_conversion_quantizes_denoisers_and_text_encoders(repos: Path, preset: str, model: Model) -> None:
    planned = plan(repos / preset, options=ConvertOptions(components=(model.name,)))
    assert len(planned.plan.modules) >= 10


# numpy calls what torch's tensors offer in its old way; diffusers' schedulers make it do so.
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
@pytest.mark.parametrize("preset", PIPELINES)
def test_a_pipeline_draws_what_the_prompt_and_all_its_denoisers_decide(repos: Path, preset: str) -> None:
    pipe = diffusers.DiffusionPipeline.from_pretrained(repos / preset)
    pipe.set_progress_bar_config(disable=True)
    ran: set[str] = set()
    denoisers = [name for name in ("unet", "transformer", "transformer_2") if name in pipe.components]
    for name in denoisers:
        getattr(pipe, name).register_forward_hook(lambda *_, name=name: ran.add(name))

    def draw(prompt: str) -> Any:
        options = {"height": SIDE, "width": SIDE, **ARGUMENTS.get(preset, {})}
        generator = torch.Generator().manual_seed(0)
        drawn = pipe(prompt=prompt, num_inference_steps=2, output_type="np", generator=generator, **options)
        return np.asarray(drawn.frames if preset == "tiny-wan" else drawn.images)

    first, other = draw("a red cat"), draw("a green house on a hill")
    assert first.shape == ((1, 5, 32, 32, 3) if preset == "tiny-wan" else (1, SIDE, SIDE, 3))
    assert np.isfinite(first).all()
    assert first.std() > 0.1
    assert np.abs(first - other).mean() > 0.001
    assert ran == {*denoisers}


def test_tokenizers_know_the_formats(repos: Path) -> None:
    qwen = transformers.Qwen2Tokenizer.from_pretrained(repos / "tiny-qwen-image" / "tokenizer")
    assert len(qwen(QWEN_START).input_ids) == QWEN_DROPPED
    chat = [{"role": "user", "content": "a cat"}]
    asked = qwen.apply_chat_template(chat, tokenize=False, add_generation_prompt=True, enable_thinking=True)
    assert asked == "<|im_start|>user\na cat<|im_end|>\n<|im_start|>assistant\n"
    quick = qwen.apply_chat_template(chat, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    assert quick == f"{asked}<think>\n\n</think>\n\n"
    mistral = transformers.AutoTokenizer.from_pretrained(repos / "tiny-flux2" / "tokenizer")
    chat = [{"role": role, "content": role} for role in ("system", "user", "assistant")]
    text = "<s>[SYSTEM_PROMPT]system[/SYSTEM_PROMPT][INST]user[/INST]assistant</s>"
    assert mistral.apply_chat_template(chat, tokenize=False) == text
    gemma = transformers.GemmaTokenizer.from_pretrained(repos / "tiny-sana" / "tokenizer")
    for tokenizer, special in ((qwen, "<|im_end|>"), (mistral, "[/SYSTEM_PROMPT]"), (gemma, "<bos>")):
        assert len(tokenizer(special, add_special_tokens=False).input_ids) == 1
        assert tokenizer.decode(tokenizer("été, 12 cats", add_special_tokens=False).input_ids) == "été, 12 cats"
    assert gemma("a").input_ids == [gemma.bos_token_id, *gemma("a", add_special_tokens=False).input_ids]


@pytest.mark.parametrize("preset", PIPELINES)
def test_text_encoders_know_all_tokens(repos: Path, preset: str) -> None:
    for tokenizer in PIPELINES[preset].tokenizers:
        loaded = transformers.AutoTokenizer.from_pretrained(repos / preset / tokenizer.name)
        (encoder,) = (
            model
            for model in PIPELINES[preset].models
            if model.name == tokenizer.name.replace("tokenizer", "text_encoder")
        )
        known = encoder.config.get("vocab_size") or encoder.config["text_config"]["vocab_size"]
        assert len(loaded) <= known
        # CLIP takes the largest number for the end of a prompt.
        assert "CLIP" not in tokenizer.class_name or loaded.eos_token_id == known - 1


def test_components_of_the_same_class_have_other_numbers(repos: Path) -> None:
    first, second = (
        load_file(repos / "tiny-wan" / name / "diffusion_pytorch_model.safetensors")
        for name in ("transformer", "transformer_2")
    )
    assert first.keys() == second.keys()
    assert not any(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_another_seed_gives_other_numbers(repos: Path, tmp_path: Path) -> None:
    synthesize(tmp_path / "other", preset="tiny-sana", seed=1)
    name = "transformer/diffusion_pytorch_model.safetensors"
    first, other = load_file(repos / "tiny-sana" / name), load_file(tmp_path / "other" / name)
    assert not any(torch.equal(tensor, other[name]) for name, tensor in first.items())


ALL = """
import sys
from pathlib import Path
from converter.synthesis.pipelines.presets import PIPELINES
from converter.synthesis.synthesize import synthesize
for preset in PIPELINES:
    synthesize(Path(sys.argv[1]) / preset, preset=preset)
"""


def test_other_processes_write_the_same_bytes(repos: Path, tmp_path: Path) -> None:
    """Also where sets have another order."""
    done = run_python(ALL, tmp_path, env={**os.environ, "PYTHONHASHSEED": "1"})
    assert done.returncode == 0, done.stderr
    assert snapshot(tmp_path) == snapshot(repos)


@pytest.mark.parametrize("options", [{"component": "transformer"}, {"layers": 2}])
def test_other_pipelines_have_one_size(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"--{next(iter(options))}: the preset tiny-flux is a whole pipeline"):
        synthesize(tmp_path / "out", preset="tiny-flux", **options)
    assert names_in(tmp_path) == []
