"""Pipelines in folders: offloading, saving and loading, adapters."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Callable
from functools import partial
from logging.handlers import BufferingHandler
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

from converter.lens import LensGptOssEncoder, LensPipeline
from tests.conftest import edit_json, names_in
from tests.lens import pipelines
from tests.lens.models import adapted, make_adapter
from tests.lens.prompts import LAYERS, MXFP4, notices, pack_experts

#: ``model_index.json`` of microsoft/Lens, without its version of diffusers.
MODEL_INDEX: dict[str, Any] = {"_class_name": "LensPipeline", "vae": ["diffusers", "AutoencoderKLFlux2"]}
MODEL_INDEX |= {"scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"]}
MODEL_INDEX |= {"tokenizer": ["transformers", "PreTrainedTokenizerFast"]}
MODEL_INDEX |= {"text_encoder": ["transformers", "LensGptOssEncoder"]}
MODEL_INDEX |= {"transformer": ["diffusers", "LensTransformer2DModel"]}
#: Arguments and defaults of upstream's ``__call__``, in their order; ours are behind them.
ARGUMENTS = (
    "self prompt=None negative_prompt='' height=None width=None base_resolution=None aspect_ratio=None "
    "num_inference_steps=50 guidance_scale=4.0 num_images_per_prompt=1 generator=None latents=None prompt_embeds=None "
    "prompt_mask=None negative_prompt_embeds=None negative_prompt_mask=None output_type='pil' return_dict=True "
    "callback_on_step_end=None callback_on_step_end_tensor_inputs=('latents',) max_sequence_length=512 "
    "enable_reasoner=False attention_kwargs=None"
)


def offload_by_model(pipe: Any) -> bool:
    pipe.enable_model_cpu_offload(device="cpu")
    return all(hasattr(model, "_hf_hook") for model in (pipe.text_encoder, pipe.transformer, pipe.vae))


def offload_by_layer(pipe: Any) -> bool:
    pipe.enable_sequential_cpu_offload(device="cpu")
    models = (pipe.text_encoder, pipe.transformer, pipe.vae)
    return all(parameter.is_meta for model in models for parameter in model.parameters())


def offload_by_group(pipe: Any, **options: Any) -> bool:
    cpu = torch.device("cpu")
    pipe.enable_group_offload(onload_device=cpu, offload_device=cpu, **options)
    return all(
        any(hasattr(module, "_diffusers_hook") for module in model.modules()) for model in (pipe.transformer, pipe.vae)
    )


def offload_twice(pipe: Any) -> bool:
    """By layer after a run by model."""
    assert offload_by_model(pipe)
    pipelines.picture(pipe)
    return offload_by_layer(pipe)


OFFLOADS = [
    offload_by_model,
    offload_by_layer,
    offload_twice,
    partial(offload_by_group, offload_type="block_level", num_blocks_per_group=2),
    partial(offload_by_group, offload_type="leaf_level"),
]


@pytest.fixture(scope="module", params=["folder", "quantized_folder"])
def drawn(request: pytest.FixtureRequest) -> tuple[Path, bytes]:
    """A folder, and what its pipeline draws."""
    source = request.getfixturevalue(request.param)
    return source, pipelines.picture(pipelines.load(source))


@pytest.mark.parametrize("offload", OFFLOADS)
def test_offloading_changes_no_bit(drawn: tuple[Path, bytes], offload: Callable[[Any], bool]) -> None:
    source, expected = drawn
    pipe = pipelines.load(source)
    assert offload(pipe)
    # The second run finds its models where the first one left them.
    assert [pipelines.picture(pipe), pipelines.picture(pipe)] == [expected, expected]


def test_models_are_sent_back_after_a_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the models in turn, the next one sends the one before it back; nobody comes after the last."""
    pipe = pipelines.load(folder)
    assert offload_by_model(pipe)
    order: list[str] = []

    def noted(name: str, function: Callable[..., Any], *values: Any, **options: Any) -> Any:
        order.append(name)
        return function(*values, **options)

    for owner, name in ((pipe.vae, "decode"), (pipe, "maybe_free_model_hooks")):
        monkeypatch.setattr(owner, name, partial(noted, name, getattr(owner, name)))
    pipelines.picture(pipe)
    assert order == ["decode", "maybe_free_model_hooks"]


def test_offloading_to_an_accelerator_is_left_to_diffusers(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(DiffusionPipeline, "enable_sequential_cpu_offload", lambda _, *device: asked.append(device))
    pipe.enable_sequential_cpu_offload()
    pipe.enable_sequential_cpu_offload(1, "cuda")
    assert asked == [(None, None), (1, "cuda")]


def index_of(folder: Path) -> dict[str, Any]:
    index = json.loads((folder / "model_index.json").read_text())
    return {name: value for name, value in index.items() if name not in ("_diffusers_version", "_name_or_path")}


def test_a_saved_pipeline_is_one_of_microsofts(drawn: tuple[Path, bytes], tmp_path: Path) -> None:
    source, expected = drawn
    pipelines.load(source).save_pretrained(tmp_path / "saved")
    assert index_of(tmp_path / "saved") == MODEL_INDEX
    assert names_in(tmp_path / "saved") == ["model_index.json", *sorted(MODEL_INDEX.keys() - {"_class_name"})]
    encoder = json.loads((tmp_path / "saved" / "text_encoder" / "config.json").read_text())
    assert encoder["architectures"] == ["GptOssForCausalLM"]
    loaded = pipelines.quiet(DiffusionPipeline.from_pretrained(tmp_path / "saved", dtype=torch.float32))
    assert (type(loaded), type(loaded.text_encoder)) == (LensPipeline, LensGptOssEncoder)
    assert pipelines.picture(loaded) == expected


def test_a_pipeline_works_without_a_text_encoder(folder: Path, pipe: Any, tmp_path: Path) -> None:
    alone = pipelines.load(folder, text_encoder=None, tokenizer=None)
    assert alone.text_encoder is alone.tokenizer is None
    whole = pipelines.embeddings(pipe)
    expected = pipelines.draw(pipe, None, **whole, latents=pipelines.noise())
    assert torch.equal(pipelines.draw(alone, None, **whole, latents=pipelines.noise()), expected)
    positive = {key: value for key, value in whole.items() if key.startswith("prompt")}
    blank = pipelines.draw(pipe, None, **positive, latents=pipelines.noise())
    assert torch.equal(pipelines.draw(alone, None, **positive, latents=pipelines.noise()), blank)
    dog = {**positive, "prompt": None, "negative_prompt": "dog"}
    for lacking, options in ((alone, {}), (alone, dog), (pipelines.load(folder, tokenizer=None), {})):
        with pytest.raises(ValueError, match=r"no (text encoder|tokenizer); give prompt_embeds"):
            pipelines.draw(lacking, **options)
    alone.save_pretrained(tmp_path / "saved")
    assert names_in(tmp_path / "saved") == ["model_index.json", "scheduler", "transformer", "vae"]
    loaded = pipelines.quiet(DiffusionPipeline.from_pretrained(tmp_path / "saved", dtype=torch.float32))
    assert torch.equal(pipelines.draw(loaded, None, **whole, latents=pipelines.noise()), expected)


def test_components_may_come_later(folder: Path, pipe: Any) -> None:
    late = pipelines.load(folder, tokenizer=None, transformer=None)
    assert late.latent_channels is None
    late.tokenizer, late.transformer = pipe.tokenizer, pipe.transformer
    late.text_encoder = LensGptOssEncoder.from_pretrained(folder / "text_encoder", dtype=torch.float32)
    assert torch.equal(pipelines.draw(late, latents=pipelines.noise()), pipelines.draw(pipe, latents=pipelines.noise()))


def test_the_pipeline_looks_like_upstreams(pipe: Any) -> None:
    assert (pipe.vae_scale_factor, pipe.latent_channels) == (16, 128)
    assert (pipe.txt_offset, pipe.default_sample_size) == (97, 1024)
    assert pipe.text_encoder._lens_selected_layers == LAYERS
    assert LensPipeline.model_cpu_offload_seq == "text_encoder->transformer->vae"
    assert LensPipeline._callback_tensor_inputs == ["latents", "prompt_embeds", "negative_prompt_embeds"]
    components = ["self", "scheduler", "vae", "text_encoder", "tokenizer", "transformer"]
    assert list(inspect.signature(LensPipeline.__init__).parameters) == components
    parameters = inspect.signature(LensPipeline.__call__).parameters.values()
    defaults = [f"={parameter.default!r}" if parameter.name != "self" else "" for parameter in parameters]
    named = [parameter.name + default for parameter, default in zip(parameters, defaults, strict=True)]
    assert named == ARGUMENTS.split(" ")
    assert LensPipeline.prompt_date is None


def test_a_packed_text_encoder_is_announced_by_the_pipeline(
    folder: Path, tmp_path: Path, log: BufferingHandler
) -> None:
    source = tmp_path / "packed"
    shutil.copytree(folder, source)
    weights, config = source / "text_encoder" / "model.safetensors", source / "text_encoder" / "config.json"
    packed, dense = pack_experts(load_file(weights))
    # As in the real checkpoint: 411 tensors, and one more for each of 48 stacks of experts.
    assert (len(dense), len(packed)) == (411, 459)
    save_file(packed, weights, metadata={"format": "pt"})
    edit_json(config, quantization_config=MXFP4)
    pipe = pipelines.load(source)
    (notice,) = notices(log)
    assert "it is unpacked" in notice
    found = pipe.text_encoder.state_dict()
    assert found.keys() == dense.keys()
    assert all(torch.equal(found[name].bfloat16(), tensor) for name, tensor in dense.items())
    assert pipelines.draw(pipe, latents=pipelines.noise()).isfinite().all()


def test_an_adapter_is_loaded_and_unloaded(folder: Path, tmp_path: Path) -> None:
    pipe = pipelines.load(folder)
    state = pipe.transformer.state_dict()
    before = pipelines.draw(pipe, latents=pipelines.noise())
    adapter = {name: 0.3 * tensor for name, tensor in make_adapter(pipe.transformer).items()}
    save_file({f"transformer.{name}": tensor for name, tensor in adapter.items()}, tmp_path / "adapter.safetensors")
    merged = adapted(state, (adapter, 1.0))
    features, blank = pipelines.reference_features(pipe, [pipelines.PROMPT]), pipelines.reference_blank(1)
    run = pipelines.Reference(pipe, features, blank, 4.0, merged)
    expected = run.latents(pipelines.noise())
    pipe.load_lora_weights(tmp_path)
    found = pipelines.draw(pipe, latents=pipelines.noise())
    torch.testing.assert_close(found, expected, **pipelines.TOLERANCE)
    assert (found - before).abs().max() > 0.1
    assert torch.equal(pipelines.draw(pipe, latents=pipelines.noise(), attention_kwargs={"scale": 0.0}), before)
    assert pipe.attention_kwargs == {"scale": 0.0}
    pipe.unload_lora_weights()
    assert torch.equal(pipelines.draw(pipe, latents=pipelines.noise()), before)
    assert pipe.transformer.state_dict().keys() == state.keys()


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")
def test_a_component_that_is_set_later_keeps_its_name_in_the_index(folder: Path, tmp_path: Path) -> None:
    pipe = pipelines.load(folder)
    pipe.text_encoder, pipe.tokenizer = pipe.text_encoder, pipe.tokenizer
    pipe.transformer = torch.compile(pipe.transformer)
    pipe.another = pipe.tokenizer
    pipe.save_pretrained(tmp_path / "saved")
    assert index_of(tmp_path / "saved") == MODEL_INDEX


def test_a_fresh_pipeline_can_be_asked_how_it_is(folder: Path) -> None:
    pipe = pipelines.load(folder, text_encoder=None, tokenizer=None)
    assert (pipe.current_timestep, pipe.interrupt, pipe.num_timesteps) == (None, False, 0)
    assert (pipe.attention_kwargs, pipe.do_classifier_free_guidance) == (None, False)
