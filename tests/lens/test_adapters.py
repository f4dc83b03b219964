"""LoRA adapters in all naming schemes, also on quantized weights, and quantized matmul."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import shutil
from logging.handlers import BufferingHandler
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.hub_utils import _get_model_file
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file, save_file

from converter.libraries import load_library
from converter.models.lens.adapters import HUB_OPTIONS, LensLoraLoaderMixin
from converter.models.lens.layout import LensConfig
from converter.models.lens.quantized import apply_serialized_matmul
from converter.models.lens.transformer import LensTransformer2DModel
from converter.models.sdnq_layers import quantized_layers
from converter.verification.dequantizing import dequantize
from tests.lens import models
from tests.lens.models import ALPHA, RANK, TOLERANCE, adapted, distance, golden, make_adapter, reference, run
from tests.lens.prompts import notices
from tests.lora_files import lens_pipeline

WEIGHTS = "adapter_model.safetensors"
PREFIXES = ["", "transformer.", "base_model.model.", "base_model.model.transformer."]
PREFIXES += ["diffusion_model.", "model.diffusion_model."]
#: What an adapter is loaded from, and with which options.
Source = tuple[Any, dict[str, Any]]
MODULE = "transformer_blocks.1.attn.img_qkv"
#: Options of PEFT's that change how its factors are used.
PEFT_OPTIONS: list[dict[str, Any]] = [
    *({}, {"use_rslora": True}, {"use_dora": True}, {"lora_bias": True}),
    {"rank_pattern": {MODULE: 2}, "alpha_pattern": {MODULE: 7.0}},
]


def save_with_peft(folder: Path, **options: Any) -> torch.Tensor:
    """Save an adapted golden model as PEFT does; return what its own model puts out."""
    peft = importlib.import_module("peft")
    torch.manual_seed(0)
    defaults = {"r": RANK, "lora_alpha": ALPHA, "target_modules": [*models.ADAPTED], "init_lora_weights": False}
    model = peft.get_peft_model(golden(), peft.LoraConfig(**defaults | options)).eval()
    for name, parameter in model.named_parameters():
        if "magnitude" in name:
            # At first it is the one that changes nothing.
            parameter.data *= 1.5
    model.save_pretrained(folder)
    return run(model)


def golden_with_adapter(scale: float = 1.0) -> tuple[Any, dict[str, torch.Tensor], torch.Tensor]:
    """The golden model, an adapter for it, and what both put out at this scale."""
    model = golden()
    tensors = make_adapter(model)
    return model, tensors, reference(adapted(model.state_dict(), (tensors, scale)))


def as_a_repository(folder: Path, cache: Path) -> Source:
    """In the Hub's cache, so that no network is needed."""
    repository, commit = cache / f"models--someone--{folder.name}", "0" * 40
    shutil.copytree(folder, repository / "snapshots" / commit / "inside")
    (repository / "refs").mkdir()
    (repository / "refs" / "branch").write_text(commit, "utf-8")
    options = {"weight_name": WEIGHTS, "subfolder": "inside", "revision": "branch"}
    return f"someone/{folder.name}", {**options, "cache_dir": str(cache), "local_files_only": True}


def sources(folder: Path, cache: Path) -> list[Source]:
    """Where an adapter may come from, and how its tensors may be spelled."""
    weights = load_file(folder / WEIGHTS)
    # As ComfyUI's trainers write them: each module's alpha is a tensor.
    alphas = {name.replace("base_model.model.", "diffusion_model."): tensor for name, tensor in weights.items()}
    alphas |= {f"{name.partition('.lora_')[0]}.alpha": torch.tensor(ALPHA) for name in alphas}
    down_up = {re.sub("lora_A", "lora_down", re.sub("lora_B", "lora_up", name)): alphas[name] for name in alphas}
    dots = {re.sub(r"lora_(?=down|up)", "lora.", name): tensor for name, tensor in down_up.items()}
    alone = cache / "alone"
    alone.mkdir()
    save_file(alphas, alone / WEIGHTS)
    files: list[Any] = [folder, str(folder), folder / WEIGHTS, alphas, down_up, dots, alone]
    subfolder: Source = folder.parent, {"subfolder": folder.name, "weight_name": WEIGHTS}
    # Alphas in tensors count, whatever a config says.
    both: Source = alphas, {"metadata": {"r": RANK, "lora_alpha": 1.0}}
    repositories = [as_a_repository(place, cache) for place in (folder, alone)]
    return [*((file, {}) for file in files), subfolder, both, *repositories]


def model_loader(model: Any) -> Any:
    return model.load_lora_adapter


def pipeline_loader(model: Any) -> Any:
    return lens_pipeline(model).load_lora_weights


def test_where_an_adapter_comes_from(tmp_path: Path) -> None:
    """Its alpha is not lost, wherever that is."""
    folder = tmp_path / "adapters" / "golden"
    expected = save_with_peft(folder)
    assert distance(expected, run(golden())) > 0.1
    for source, options in sources(folder, tmp_path):
        for load in (model_loader, pipeline_loader):
            model = golden()
            load(model)(source, **options)
            assert distance(run(model), expected) <= TOLERANCE, (source, options)
    tensors = {name.removeprefix("base_model.model."): tensor for name, tensor in load_file(folder / WEIGHTS).items()}
    assert len(tensors) == 12
    assert distance(reference(adapted(golden().state_dict(), (tensors, ALPHA / RANK))), expected) <= TOLERANCE
    assert LensLoraLoaderMixin.lora_state_dict(folder).keys() == load_file(folder / WEIGHTS).keys()
    # These are all that diffusers and the Hub's client take to find a file.
    theirs = (inspect.signature(function).parameters.keys() for function in (hf_hub_download, _get_model_file))
    assert {*HUB_OPTIONS, "user_agent"} == set.intersection(*map(set, theirs))


# PEFT's own, which takes a bias for a broken factor.
@pytest.mark.filterwarnings("ignore:Adapter 'default'")
@pytest.mark.parametrize("options", PEFT_OPTIONS, ids=lambda options: next(iter(options), "plain"))
def test_kinds_of_adapters_of_pefts(options: dict[str, Any], tmp_path: Path) -> None:
    """PEFT puts the adapter's name into those of weights and biases."""
    expected, model, saved = save_with_peft(tmp_path, **options), golden(), load_file(tmp_path / WEIGHTS)
    named = {re.sub(r"(?<=lora_[AB])", ".default", name): tensor for name, tensor in saved.items()}
    model.load_lora_adapter(named, metadata=json.loads((tmp_path / "adapter_config.json").read_text()))
    assert distance(run(model), expected) <= TOLERANCE


def test_an_adapter_of_kronecker_products() -> None:
    model, module = golden(), "transformer_blocks.1.attn.to_out.0"
    state, factors = golden().state_dict(), (torch.randn(4, 4), 0.1 * torch.randn(12, 12))
    model.load_lora_adapter({f"diffusion_model.{module}.lokr_w{n}": factor for n, factor in enumerate(factors, 1)})
    state[f"{module}.weight"] += torch.kron(*factors)
    assert distance(run(model), reference(state)) <= TOLERANCE


@pytest.mark.parametrize("is_configured", [False, True])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_spellings_of_adapters(prefix: str, is_configured: bool) -> None:
    """Without a config, and with one, where PEFT puts the adapter's name into those of tensors."""
    model, tensors, expected = golden_with_adapter(ALPHA / RANK if is_configured else 1.0)
    assert distance(expected, run(model)) > 0.1
    metadata = {f"{prefix}r": RANK, f"{prefix}lora_alpha": ALPHA, f"{prefix}alpha_pattern": None}
    ending = ".default.weight" if is_configured else ".weight"
    named = {prefix + name.replace(".weight", ending): tensor for name, tensor in tensors.items()}
    model.load_lora_adapter(named, metadata=metadata if is_configured else None)
    assert distance(run(model), expected) <= TOLERANCE


def test_adapters_that_are_refused(tmp_path: Path) -> None:
    """Pickled ones, too, where safetensors is asked for."""
    model, tensors, expected = golden(), make_adapter(golden()), run(golden())

    def with_module(name: str) -> models.State:
        return {**tensors, f"{name}.lora_B.weight": torch.ones(48, RANK), f"{name}.lora_A.weight": torch.ones(RANK, 48)}

    def without(factor: str) -> models.State:
        return {name: tensor for name, tensor in tensors.items() if factor not in name}

    alpha = {"transformer_blocks.0.attn.txt_qkv.alpha": torch.tensor(ALPHA)}
    lacks = "the adapter has 2 of 14 tensors for modules that the model lacks, such as {}.lora_A.weight"
    for adapter, message in (
        (with_module("transformer_blocks.3.attn.img_qkv"), lacks.format("transformer_blocks.3.attn.img_qkv")),
        (with_module("transformer.transformer_blocks.0.attn.to_q"), lacks.format("transformer_blocks.0.attn.to_q")),
        (with_module("base_model.model.text_encoder.layer"), lacks.format("text_encoder.layer")),
        ({}, "the adapter contains no tensors for the transformer"),
        ({**tensors, **alpha}, "the adapter has an alpha for transformer_blocks.0.attn.txt_qkv and no weights"),
        # PEFT would draw the other factor at random.
        (without("lora_A"), "the adapter has no lora_A for transformer_blocks.0.attn.img_qkv"),
        (without("lora_B"), "the adapter has no lora_B for transformer_blocks.0.attn.img_qkv"),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            model.load_lora_adapter(adapter)
        assert torch.equal(run(model), expected), message
    torch.save(tensors, tmp_path / "pytorch_lora_weights.bin")
    with pytest.raises(OSError, match="safetensors"):
        model.load_lora_adapter(tmp_path, use_safetensors=True)


# PEFT's, whenever there is more than one.
@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning")
def test_several_adapters() -> None:
    model = golden()
    state, one, two = model.state_dict(), make_adapter(model), make_adapter(model, seed=1, rank=3)
    model.load_lora_adapter(one, adapter_name="one", metadata={"r": RANK, "lora_alpha": ALPHA})
    model.load_lora_adapter(two, adapter_name="two")

    def check(*adapters: models.Delta) -> None:
        assert distance(run(model), reference(adapted(state, *adapters))) <= 2 * TOLERANCE

    model.set_adapters(["one", "two"], [0.5, 2.0])
    check((one, 0.5 * ALPHA / RANK), (two, 2.0))
    model.set_adapters("one")
    check((one, ALPHA / RANK))
    model.disable_lora()
    check()
    model.enable_lora()
    check((one, ALPHA / RANK))
    model.set_adapters("two")
    model.delete_adapters("one")
    check((two, 1.0))
    with pytest.raises(ValueError, match="one"):
        model.set_adapter("one")
    model.load_lora_adapter(one, adapter_name="one")
    model.set_adapters(["two", "one"])
    check((two, 1.0), (one, 1.0))
    model.unload_lora()
    check()
    assert model.state_dict().keys() == state.keys()


def test_an_adapter_is_scaled_for_a_call_and_merged_for_good() -> None:
    model, tensors, expected = golden_with_adapter()
    state = golden().state_dict()
    model.load_lora_adapter(tensors)
    for scale in (0.5, 2.0):
        scaled = reference(adapted(state, (tensors, scale)))
        assert distance(run(model, attention_kwargs={"scale": scale}), scaled) <= TOLERANCE
    assert distance(run(model), expected) <= TOLERANCE
    model.fuse_lora()
    weight = model.transformer_blocks[1].attn.img_qkv.base_layer.weight
    assert distance(weight, adapted(state, (tensors, 1.0))[f"{MODULE}.weight"]) <= 1e-6
    assert distance(run(model), expected) <= TOLERANCE
    model.unfuse_lora()
    model.unload_lora()
    assert distance(run(model), reference(state)) <= TOLERANCE


def test_an_adapter_saved_by_diffusers(tmp_path: Path) -> None:
    model, tensors, expected = golden_with_adapter(ALPHA / RANK)
    model.load_lora_adapter(tensors, adapter_name="one", metadata={"r": RANK, "lora_alpha": ALPHA})
    model.save_lora_adapter(tmp_path, adapter_name="one")
    loaded = golden()
    loaded.load_lora_adapter(tmp_path)
    assert distance(run(loaded), expected) <= TOLERANCE


#: What SDNQ's dequantizer takes.
PARTS = ("weight", "scale", "zero_point", "svd_up", "svd_down")


def tiny_inputs() -> models.Inputs:
    """Inputs for the tiny source of the fixtures; SDNQ multiplies as asked from 32 tokens in a batch on."""
    generator = torch.Generator().manual_seed(0)
    return {
        "hidden_states": torch.randn(2, 24, 128, generator=generator),
        "encoder_hidden_states": [torch.randn(2, 18, 64, generator=generator) for _ in range(4)],
        "mask": torch.arange(18) < torch.tensor([[18], [11]]),
        "timestep": torch.tensor([0.7, 0.25]),
        "grid": (4, 6),
    }


def unquantized(model: Any) -> Any:
    """A model of the same config, with other weights."""
    return LensTransformer2DModel(**{key: model.config[key] for key in LensConfig().to_dict()}).eval()


def set_matmul(model: Any, use_quantized_matmul: bool) -> None:
    """Turn quantized matmul on or off as a loader may leave it; the configuration keeps asking for it."""
    load_library("sdnq.loader").apply_sdnq_options_to_model(model, use_quantized_matmul=use_quantized_matmul)
    model.quantization_config.use_quantized_matmul = True


def uses_matmul(model: Any) -> set[bool]:
    return {layer.sdnq_dequantizer.use_quantized_matmul for layer in quantized_layers(model)}


def test_an_adapter_on_quantized_weights(lens_output: Path) -> None:
    model, inputs = LensTransformer2DModel.from_pretrained(lens_output), tiny_inputs()
    assert len(quantized_layers(model)) == 20
    set_matmul(model, False)
    plain = unquantized(model)
    state = {name: tensor for name, tensor in model.state_dict().items() if name in plain.state_dict()}
    for name, module in model.named_modules():
        if hasattr(module, "sdnq_dequantizer"):
            parts = {part: getattr(module, part, None) for part in PARTS}
            state[f"{name}.weight"] = dequantize(module.sdnq_dequantizer, parts)
    plain.load_state_dict(state)
    before = run(model, inputs)
    assert distance(before, run(plain, inputs)) <= 1e-4
    # In another dtype than the model's.
    tensors = {name: tensor.to(torch.bfloat16) for name, tensor in make_adapter(plain).items()}
    for adapted_model in (model, plain):
        adapted_model.load_lora_adapter(tensors, metadata={"r": RANK, "lora_alpha": ALPHA})
    after = run(model, inputs)
    assert distance(after, run(plain, inputs)) <= 1e-4
    assert distance(after, before) > 1e-2
    with pytest.raises(ValueError, match="quantized weights"):
        model.fuse_lora()
    assert torch.equal(run(model, inputs), after)
    model.disable_lora()
    assert torch.equal(run(model, inputs), before)


def test_an_adapter_is_of_the_models_dtype(lens_output: Path) -> None:
    plain = golden().to(torch.bfloat16)
    quantized = LensTransformer2DModel.from_pretrained(lens_output, torch_dtype=torch.bfloat16)
    for model in (plain, quantized):
        tensors = make_adapter(unquantized(model))
        # As pipelines load adapters; without it, PEFT allocates float32 tensors next to packed weights.
        model.load_lora_adapter(tensors)
        found = {name: parameter for name, parameter in model.named_parameters() if "lora_" in name}
        assert len(found) == len(tensors)
        assert {parameter.dtype for parameter in found.values()} == {torch.bfloat16}


@pytest.mark.parametrize(("asks", "works"), [(True, True), (True, False), (False, True)])
def test_quantized_matmul_that_a_loader_left_off(
    asks: bool, works: bool, lens_output: Path, log: BufferingHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is applied where the checkpoint asks for it and SDNQ can; what is not in effect is not said to be."""
    model, inputs = LensTransformer2DModel.from_pretrained(lens_output), tiny_inputs()
    assert uses_matmul(model) == {True}
    assert not apply_serialized_matmul(model)
    assert notices(log) == []
    expected = run(model, inputs)
    set_matmul(model, False)
    model.quantization_config.use_quantized_matmul = asks
    dequantized = run(model, inputs)
    assert not torch.equal(dequantized, expected)
    if not works:
        monkeypatch.setattr("sdnq.loader.apply_sdnq_options_to_model", lambda model, **_: model)
    done = asks and works
    assert apply_serialized_matmul(model) is done
    assert uses_matmul(model) == {done}
    assert torch.equal(run(model, inputs), expected if done else dequantized)
    warning = (
        "LensTransformer2DModel: use_quantized_matmul of the checkpoint's quantization config was not in effect after "
        f"loading; {'it is now' if works else 'this machine cannot do it'} (int8)"
    )
    assert notices(log) == ([warning] if asks else [])


def test_quantized_matmul_is_not_for_weights_that_are_not_quantized(log: BufferingHandler) -> None:
    model = golden()
    assert not apply_serialized_matmul(model)
    model.quantization_config = SimpleNamespace(use_quantized_matmul=True)
    assert not apply_serialized_matmul(model)
    assert notices(log) == []


@pytest.mark.parametrize("with_information", [False, True])
def test_loading_applies_quantized_matmul(
    with_information: bool, lens_output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under a loader that leaves it off."""
    original = ModelMixin.from_pretrained.__func__

    def leaves_it_off(cls: Any, *arguments: Any, **options: Any) -> Any:
        loaded = original(cls, *arguments, **options)
        set_matmul(loaded[0] if with_information else loaded, False)
        return loaded

    monkeypatch.setattr(ModelMixin, "from_pretrained", classmethod(leaves_it_off))
    loaded = LensTransformer2DModel.from_pretrained(lens_output, output_loading_info=with_information)
    assert isinstance(loaded, tuple) == with_information
    assert uses_matmul(loaded[0] if with_information else loaded) == {True}
