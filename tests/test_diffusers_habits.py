"""What diffusers' own tests ask of every pipeline and model, asked of Lens: the original and the quantized one."""

from __future__ import annotations

import copy
import os
import pickle
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback, SDCFGCutoffCallback
from diffusers.hooks import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    LayerSkipConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    SeaCacheConfig,
    TaylorSeerCacheConfig,
    TextKVCacheConfig,
    apply_layer_skip,
)
from diffusers.models.attention_processor import AttnProcessor
from diffusers.training_utils import EMAModel
from peft.utils import get_peft_model_state_dict
from torch._dynamo.utils import counters

from converter.lens import LensPipeline, LensTransformer2DModel
from converter.models.sdnq_layers import quantized_layers
from tests.faults import raising
from tests.lens import pipelines
from tests.lens.models import as_arguments, make_adapter, run
from tests.lens.pipelines import OTHER_PROMPT, PROMPT, SIZE, embeddings, noise, quiet
from tests.lens.test_adapters import tiny_inputs, unquantized

# Advice that diffusers and torch give in passing.
pytestmark = [
    pytest.mark.long,
    pytest.mark.filterwarnings(
        "ignore:`torch.jit.script_method`:DeprecationWarning", "ignore:Already found a `peft_config`:UserWarning"
    ),
]
#: Steps of a run, and of one in which every cache skips some.
STEPS, CACHED_STEPS = 2, 6
#: Components that a pipeline lacks which only encodes, and one which only denoises.
ENCODER, DENOISER = {"transformer": None, "vae": None}, {"text_encoder": None, "tokenizer": None}


def draw(pipe: Any, prompt: Any = PROMPT, **options: Any) -> Any:
    """Latents of a run with guidance from the same noise, unless something else is asked for."""
    defaults = {"negative_prompt": "dog", "latents": noise(), "num_inference_steps": STEPS}
    return pipelines.draw(pipe, prompt, **(defaults | options))


@pytest.fixture(scope="module", params=["tiny_repo", "tiny_release"])
def source(request: pytest.FixtureRequest) -> Path:
    """A pipeline on disk."""
    folder: Path = request.getfixturevalue(request.param)
    return folder


@pytest.fixture(scope="module")
def shared(source: Path) -> Any:
    """Its pipeline, for tests that leave it as it was."""
    return pipelines.load(source)


@pytest.fixture(scope="module")
def expected(shared: Any) -> Any:
    """What it draws."""
    return draw(shared)


@pytest.fixture(scope="module")
def plain(tiny_repo: Path) -> Any:
    """The pipeline that is not quantized."""
    return pipelines.load(tiny_repo)


@contextmanager
def runs_of(module: Any) -> Iterator[list[int]]:
    """The batch size of each call."""
    sizes: list[int] = []
    handle = module.register_forward_hook(lambda _module, inputs, _output: sizes.append(len(inputs[0])))
    yield sizes
    handle.remove()


def draw_cached(pipe: Any, **options: Any) -> Any:
    return draw(pipe, None, num_inference_steps=CACHED_STEPS, **options)


def turn_guidance_off(pipe: Any, *_: Any) -> None:
    pipe._guidance_scale = 1.0


TURNS_GUIDANCE_OFF = {"callback_on_step_end": turn_guidance_off}


def caches(pipe: Any, *, skips: bool) -> dict[str, Any]:
    """Every cache of diffusers that works with Lens, set to skip much or nothing."""
    now = {"current_timestep_callback": lambda: pipe.current_timestep}
    between = {"spatial_attention_timestep_skip_range": (-1, 901 if skips else -1)}
    first = 2 if skips else CACHED_STEPS
    broadcast = {"spatial_attention_block_skip_range": 2 if skips else 1}
    return {
        "first block": FirstBlockCacheConfig(threshold=9.0 if skips else 0.0),
        "taylor": TaylorSeerCacheConfig(cache_interval=3, disable_cache_before_step=first),
        "taylor lite": TaylorSeerCacheConfig(use_lite_mode=True, disable_cache_before_step=first),
        "attention broadcast": PyramidAttentionBroadcastConfig(**broadcast, **between, **now),
        "faster": FasterCacheConfig(
            is_guidance_distilled=True, attention_weight_callback=lambda _: 0.5, **between, **now
        ),
        "magnitude": MagCacheConfig(9.0 if skips else -1.0, num_inference_steps=CACHED_STEPS, mag_ratios=[1.0]),
        "spectral": SeaCacheConfig(threshold=9.0 if skips else 0.0),
    }


@dataclass(frozen=True)
class Uncached:
    """A pipeline that only denoises, and what it draws without a cache."""

    pipe: Any
    texts: dict[str, Any]
    image: Any
    unguided: Any
    """An image whose guidance a callback turns off after the first step."""


@pytest.fixture(scope="module")
def denoiser(source: Path, shared: Any) -> Uncached:
    """With a negative prompt, or with a blank one, whose sample has no text."""
    pipe = pipelines.load(source, **DENOISER)
    texts = embeddings(shared, negative="" if quantized_layers(pipe.transformer) else "dog")
    image, unguided = (draw_cached(pipe, **texts, **options) for options in ({}, TURNS_GUIDANCE_OFF))
    return Uncached(pipe, texts, image, unguided)


@pytest.fixture
def uncached(denoiser: Uncached) -> Iterator[Uncached]:
    """The same; a test that fails leaves no cache to the next one."""
    yield denoiser
    denoiser.pipe.transformer.disable_cache()


@pytest.mark.parametrize("cache", caches(None, skips=True))
def test_a_cache_skips_what_it_is_told_to(uncached: Uncached, cache: str) -> None:
    """Alike in every run, also after one that failed, and with a guidance that a callback turns off."""
    pipe, whole, expected = uncached.pipe, uncached.texts, uncached.image
    model = pipe.transformer
    with runs_of(model.transformer_blocks[1].attn.to_out[0]) as runs:
        model.enable_cache(caches(pipe, skips=True)[cache])
        with pytest.raises(ValueError, match="already been enabled"):
            model.enable_cache(FirstBlockCacheConfig())
        found = draw_cached(pipe, **whole)
        assert (0 < len(runs) < CACHED_STEPS, found.isfinite().all(), torch.equal(found, expected)) == (
            True,
            True,
            False,
        )
        with pytest.raises(InterruptedError):
            draw_cached(pipe, **whole, callback_on_step_end=raising(InterruptedError()))
        assert torch.equal(draw_cached(pipe, **whole), found)
        turned_off = draw_cached(pipe, **whole, **TURNS_GUIDANCE_OFF)
        assert (turned_off.shape, turned_off.isfinite().all()) == (expected.shape, True)
        model.disable_cache()
        model.enable_cache(caches(pipe, skips=False)[cache])
        runs.clear()
        assert torch.equal(draw_cached(pipe, **whole), expected)
        assert len(runs) == CACHED_STEPS
        turned_off = draw_cached(pipe, **whole, **TURNS_GUIDANCE_OFF)
        model.disable_cache()
    assert not model.is_cache_enabled
    assert torch.equal(draw_cached(pipe, **whole), expected)
    tolerance = 2e-4 if not quantized_layers(model) else 0.3
    torch.testing.assert_close(turned_off, uncached.unguided, rtol=0, atol=tolerance)


def test_caches_that_cannot_work_are_refused(tiny_repo: Path) -> None:
    model = LensTransformer2DModel.from_pretrained(tiny_repo / "transformer")
    for config, message in (
        (TextKVCacheConfig(), "TextKVCacheConfig is for NucleusMoE-Image"),
        (FasterCacheConfig(current_timestep_callback=lambda: 0), "pass is_guidance_distilled=True"),
    ):
        with pytest.raises(ValueError, match=message):
            model.enable_cache(config)
        assert not model.is_cache_enabled


def save(pipe: Any, folder: Path, **options: Any) -> Any:
    pipe.save_pretrained(folder, **options)
    variant = {"variant": options["variant"]} if "variant" in options else {}
    return LensPipeline.from_pretrained(folder, **variant)


def from_disk(source: Path, folder: Path) -> Any:
    """With a transformer of which only a part is in memory."""
    options: dict[str, Any] = {"device_map": "auto", "max_memory": {"cpu": 8_000_000}, "offload_folder": folder}
    transformer = LensTransformer2DModel.from_pretrained(source / "transformer", dtype=torch.float32, **options)
    return pipelines.load(source, transformer=transformer)


def with_an_idle_adapter(source: Path) -> Any:
    pipe, cpu = pipelines.load(source), torch.device("cpu")
    pipe.transformer.enable_group_offload(onload_device=cpu, offload_device=cpu, offload_type="leaf_level")
    pipe.load_lora_weights(make_adapter(unquantized(pipe.transformer)))
    pipe.disable_lora()
    return pipe


#: Ways to another pipeline that must draw the same, from a folder, its pipeline and a place to write to.
WAYS: dict[str, Callable[[Path, Any, Path], Any]] = {
    "found by diffusers": lambda source, *_: DiffusionPipeline.from_pretrained(source, dtype=torch.float32),
    "of its components": lambda _source, pipe, _folder: LensPipeline(**pipe.components),
    "copied": lambda _source, pipe, _folder: copy.deepcopy(pipe),
    "moved": lambda _source, pipe, _folder: pipe.to("cpu", silence_dtype_warnings=True),
    "saved": lambda _source, pipe, folder: save(pipe, folder),
    "saved as a variant": lambda _source, pipe, folder: save(pipe, folder, variant="fp16", max_shard_size="2MB"),
    "mapped to a device": lambda source, *_: LensPipeline.from_pretrained(
        source, device_map="cpu", dtype=torch.float32
    ),
    "mapped to the disk": lambda source, _pipe, folder: from_disk(source, folder),
    "attention slicing": lambda _source, pipe, _folder: pipe.enable_attention_slicing() or pipe,
    "adapter on an offloaded model": lambda source, *_: with_an_idle_adapter(source),
}


@pytest.mark.parametrize("way", WAYS)
def test_another_pipeline_draws_the_same(source: Path, shared: Any, expected: Any, way: str, tmp_path: Path) -> None:
    other = quiet(WAYS[way](source, shared, tmp_path))
    assert (type(other), other.device, other.dtype) == (LensPipeline, torch.device("cpu"), torch.float32)
    assert torch.equal(draw(other), expected)


def test_a_pipeline_from_another_one(plain: Any, tiny_release: Path) -> None:
    """diffusers casts it, which it refuses for quantized weights."""
    assert torch.equal(draw(quiet(LensPipeline.from_pipe(plain))), draw(plain))
    assert LensPipeline.from_pipe(copy.deepcopy(plain), dtype=torch.bfloat16).dtype == torch.bfloat16
    quantized = pipelines.load(tiny_release)
    for action in (LensPipeline.from_pipe, lambda pipe: pipe.to(torch.bfloat16)):
        with pytest.raises(ValueError, match="Casting a quantized model"):
            action(quantized)


def test_variants_and_shards_reach_every_component(source: Path, tmp_path: Path) -> None:
    pipelines.load(source).save_pretrained(tmp_path, variant="fp16", max_shard_size="300KB")
    for name in ("text_encoder", "transformer", "vae"):
        weights = [file.name for file in (tmp_path / name).glob("*.safetensors")]
        assert len(weights) > 1
        assert all(re.search(r"\.fp16-\d{5}-of-\d{5}\.safetensors$", file) for file in weights)
    for options in ({}, {"variant": "other"}):
        with pytest.raises((OSError, ValueError), match=r"no file named|no such modeling files"):
            LensPipeline.from_pretrained(tmp_path, **options)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(source: Path, expected: Any, dtype: torch.dtype) -> None:
    """Of every component, loaded or cast; named for each component or for all."""
    loaded = pipelines.load(source, dtype=dtype)
    other = torch.bfloat16 if dtype == torch.float16 else torch.float16
    mixed = pipelines.load(source, dtype={"transformer": dtype, "default": other})
    assert [mixed.transformer.dtype, mixed.vae.dtype, mixed.text_encoder.dtype] == [dtype, other, other]
    pipes = [loaded]
    if not quantized_layers(loaded.transformer):
        pipes.append(pipelines.load(source).to(dtype))
    images = draw(loaded, output_type="pt")
    assert (images.dtype, images.isfinite().all()) == (dtype, True)
    for pipe in pipes:
        latents = draw(pipe)
        assert (latents.dtype, latents.device) == (dtype, torch.device("cpu"))
        assert (latents.float() - expected).norm() < 0.2 * expected.norm()
    assert {model.dtype for pipe in pipes for model in models_of(pipe)} == {dtype}


def models_of(pipe: Any) -> list[Any]:
    return [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]


def test_one_image_in_every_form(plain: Any) -> None:
    forms = {form: draw(plain, output_type=form) for form in ("pt", "np", "pil", "latent")}
    assert (forms["pt"].shape, forms["pt"].dtype) == ((1, 3, 64, 96), torch.float32)
    assert np.array_equal(forms["pt"].permute(0, 2, 3, 1).numpy(), forms["np"])
    assert np.abs(np.asarray(forms["pil"][0]) / 255 - forms["np"][0]).max() < 1 / 255
    options: dict[str, Any] = {"num_inference_steps": STEPS, "output_type": "pt", "return_dict": False, **SIZE}
    (images,) = plain(PROMPT, "dog", latents=noise(), **options)
    assert torch.equal(images, forms["pt"])


def test_batches(plain: Any) -> None:
    """Of any size; an image does not depend on those beside it."""
    for prompts in (1, 3):
        for times in (1, 2):
            images = draw(plain, [PROMPT] * prompts, num_images_per_prompt=times, output_type="np", latents=None)
            assert images.shape == (prompts * times, 64, 96, 3)
    generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
    pair = draw(plain, [PROMPT, OTHER_PROMPT], generator=generators, latents=None)
    alone = draw(plain, OTHER_PROMPT, generator=torch.Generator().manual_seed(1), latents=None)
    torch.testing.assert_close(pair[1:], alone, rtol=0, atol=2e-4)


def test_one_pipeline_encodes_and_another_denoises(source: Path, expected: Any, tmp_path: Path) -> None:
    """Loaded in part, or saved in part."""
    encoder, denoiser = (pipelines.load(source, **parts) for parts in (ENCODER, DENOISER))
    encoders = [encoder, pipelines.load(source, **ENCODER, scheduler=None), quiet(save(encoder, tmp_path / "encoder"))]
    denoisers = [denoiser, quiet(save(denoiser, tmp_path / "denoiser"))]
    assert encoders[2].transformer is encoders[2].vae is denoisers[1].text_encoder is None
    for first in encoders:
        whole = embeddings(first)
        for second in denoisers:
            assert torch.equal(draw(second, None, **whole), expected)
    without_vae = pipelines.load(source, vae=None)
    assert torch.equal(draw(without_vae), expected)
    for pipe, message in (
        (encoder, "this pipeline has no transformer; it can only encode prompts, with encode_prompt"),
        (without_vae, "this pipeline has no vae; pass output_type='latent'"),
        (denoiser, "this pipeline has no text encoder; give prompt_embeds and negative_prompt_embeds"),
        (pipelines.load(source, tokenizer=None), "this pipeline has no tokenizer"),
        (pipelines.load(source, scheduler=None), "this pipeline has no scheduler"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            draw(pipe, output_type="np")


def test_callbacks_say_themselves_what_they_need(plain: Any) -> None:
    names = ["latents", "prompt_embeds"]

    def clear_the_last(_self: Any, _pipe: Any, step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        assert list(tensors) == names
        return {"latents": tensors["latents"] * (0.0 if step == STEPS - 1 else 1.0)}

    callback_class = type("Callback", (PipelineCallback,), {"tensor_inputs": names, "callback_fn": clear_the_last})
    one = callback_class(cutoff_step_ratio=1.0, cutoff_step_index=None)
    for callback in (one, MultiPipelineCallbacks([one])):
        assert draw(plain, callback_on_step_end=callback).eq(0).all()


def test_a_callback_returns_tensors_of_the_same_shapes(plain: Any) -> None:
    """Callbacks for other pipelines cut the batch in half, which here are the layers."""
    embeds = embeddings(plain)["prompt_embeds"]
    for changed in ({"prompt_embeds": embeds[0]}, {"negative_prompt_embeds": None}, {"latents": noise(2)}):
        with pytest.raises(ValueError, match=f"returned {next(iter(changed))} of shapes"):
            draw(plain, callback_on_step_end=lambda *_, changed=changed: changed)
    with pytest.raises(ValueError, match="To turn guidance off, set _guidance_scale to 1"):
        draw(plain, callback_on_step_end=SDCFGCutoffCallback(cutoff_step_ratio=0.0))
    assert torch.equal(draw(plain, callback_on_step_end=lambda *_: {"prompt_embeds": tuple(embeds)}), draw(plain))


def saved_adapter(pipe: Any, folder: Path, safe: bool) -> Path:
    """Train nothing, and save it as training scripts do."""
    config = peft.LoraConfig(r=4, lora_alpha=4, target_modules=["img_qkv", "to_out.0"], init_lora_weights=False)
    torch.manual_seed(0)
    pipe.transformer.add_adapter(config)
    state = get_peft_model_state_dict(pipe.transformer)
    LensPipeline.save_lora_weights(folder, transformer_lora_layers=state, safe_serialization=safe)
    (file,) = folder.iterdir()
    return file


@pytest.mark.parametrize("safe", [True, False])
def test_an_adapter_is_saved_and_loaded(source: Path, expected: Any, tmp_path: Path, safe: bool) -> None:
    """As safetensors or as a pickle; by its path, its folder, or its name in it."""
    trained = pipelines.load(source)
    file = saved_adapter(trained, tmp_path / "adapter", safe)
    adapted = draw(trained)
    assert (file.suffix, float((adapted - expected).abs().max()) > 0.1) == (".safetensors" if safe else ".bin", True)
    trained.transformer.save_lora_adapter(tmp_path / "again")
    pipe = pipelines.load(source)
    for place, options in (
        (file, {}),
        (file.parent, {"weight_name": file.name}),
        (tmp_path / "again", {}),
    ):
        pipe.unload_lora_weights()
        pipe.load_lora_weights(place, adapter_name="one", **options)
        assert torch.equal(draw(pipe), adapted)
    assert (pipe.get_active_adapters(), pipe.get_list_adapters()) == (["one"], {"transformer": ["one"]})
    pipe.load_lora_weights(file, adapter_name="one", hotswap=True)
    assert torch.equal(draw(pipe), adapted)
    with pytest.raises(ValueError, match="Adapter name other not found"):
        pipe.transformer.save_lora_adapter(tmp_path, adapter_name="other")
    pipe.delete_adapters("one")
    assert torch.equal(draw(pipe), expected)


def test_an_adapter_that_would_run_code_does_not(plain: Any, tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "ran"),)

    (tmp_path / "x.bin").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(OSError, match="Unable to load weights"):
        plain.load_lora_weights(tmp_path / "x.bin")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("repo", "method"),
    [("tiny_repo", "compile"), ("tiny_repo", "compile_repeated_blocks"), ("tiny_release", "compile_repeated_blocks")],
)
def test_it_is_compiled_once(repo: str, method: str, request: pytest.FixtureRequest) -> None:
    """One graph for the whole model, or for all blocks, in all steps."""
    pipe = pipelines.load(request.getfixturevalue(repo))
    expected = draw(pipe)
    getattr(pipe.transformer, method)(fullgraph=True, backend="eager")
    torch.compiler.reset()
    counters.clear()
    try:
        with torch._dynamo.config.patch(error_on_recompile=True):
            torch.testing.assert_close(draw(pipe), expected, rtol=0, atol=2e-4)
        assert counters["stats"]["unique_graphs"] == 1
    finally:
        torch.compiler.reset()


def test_a_model_is_exported(plain: Any) -> None:
    arguments = as_arguments(tiny_inputs())
    exported = torch.export.export(plain.transformer, args=(), kwargs=arguments).module()
    with torch.no_grad():
        torch.testing.assert_close(exported(**arguments).sample, run(plain.transformer, tiny_inputs()))


def test_a_model_is_trained(tiny_repo: Path, tmp_path: Path) -> None:
    """With checkpoints or without, in mixed precision, and with a moving average that is saved."""
    model = LensTransformer2DModel.from_pretrained(tiny_repo / "transformer").train()
    average = EMAModel(model.parameters(), model_cls=LensTransformer2DModel, model_config=model.config)
    gradients = []
    for dtype in (torch.float32, torch.bfloat16):
        for checkpoints in (True, False):
            (model.enable_gradient_checkpointing if checkpoints else model.disable_gradient_checkpointing)()
            assert model.is_gradient_checkpointing == checkpoints
            model.zero_grad()
            with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
                sample = model(**as_arguments(tiny_inputs()))[0]
            sample.float().square().mean().backward()
            gradients.append(model.img_in.weight.grad.clone())
    assert torch.equal(gradients[0], gradients[1])
    assert torch.equal(gradients[2], gradients[3])
    assert 0 < (gradients[0] - gradients[2]).norm() < 0.1 * gradients[0].norm()
    average.step(model.parameters())
    average.save_pretrained(tmp_path)
    assert LensTransformer2DModel.from_pretrained(tmp_path).config.num_layers == model.config.num_layers


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float16])
def test_weights_that_are_cast_layer_by_layer(source: Path, expected: Any, dtype: torch.dtype) -> None:
    pipe = pipelines.load(source)
    before = pipe.transformer.get_memory_footprint()
    pipe.transformer.enable_layerwise_casting(storage_dtype=dtype, compute_dtype=torch.float32)
    assert pipe.transformer.dtype == torch.float32
    assert pipe.transformer.get_memory_footprint() < before
    found = draw(pipe)
    assert (found - expected).norm() < 0.3 * expected.norm()


def test_attention_that_is_skipped(tiny_repo: Path, plain: Any) -> None:
    """Of one layer, for guidance by a weaker model."""
    for options in ({"skip_ff": False}, {"skip_attention": False, "skip_attention_scores": True, "skip_ff": False}):
        pipe = pipelines.load(tiny_repo)
        with runs_of(pipe.transformer.transformer_blocks[1].attn.to_out[0]) as runs:
            apply_layer_skip(pipe.transformer, LayerSkipConfig(indices=[1], **options))
            assert not torch.allclose(draw(pipe), draw(plain), atol=0.1)
        assert len(runs) == (STEPS if "skip_attention_scores" in options else 0)


def test_processors_are_set_by_name(tiny_repo: Path) -> None:
    model = LensTransformer2DModel.from_pretrained(tiny_repo / "transformer")
    with pytest.raises(ValueError, match="number of processors"):
        model.set_attn_processor({next(iter(model.attn_processors)): AttnProcessor()})
    model.set_attn_processor(dict.fromkeys(model.attn_processors, AttnProcessor()))
    assert {type(processor) for processor in model.attn_processors.values()} == {AttnProcessor}
    assert LensTransformer2DModel.from_config(model.config).config == model.config
