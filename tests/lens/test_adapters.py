"""LoRA adapters in all naming schemes, also on quantized weights, and quantized matmul."""

from __future__ import annotations

import importlib
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.modeling_utils import ModelMixin
from safetensors.torch import load_file, save_file

from converter.libraries import load_library
from converter.models.lens.layout import LensConfig
from converter.models.lens.quantized import apply_serialized_matmul, quantized_layers
from converter.models.lens.transformer import LensTransformer2DModel
from converter.verification.nearness import dequantize
from tests.lens.models import (
    ALPHA,
    RANK,
    TOLERANCE,
    Delta,
    Inputs,
    State,
    adapted,
    distance,
    golden,
    make_adapter,
    reference,
    run,
)

WEIGHTS = "adapter_model.safetensors"
PREFIXES = ["", "transformer.", "base_model.model."]
#: What an adapter is loaded from, and with which options.
Source = tuple[Any, dict[str, Any]]


@pytest.fixture(scope="module")
def peft_adapter(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor]:
    """What PEFT saves of an adapted golden model, and what its own model puts out."""
    peft = importlib.import_module("peft")
    folder = tmp_path_factory.mktemp("adapters") / "golden"
    torch.manual_seed(0)
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["img_qkv", "to_out.0"], init_lora_weights=False)
    model = peft.get_peft_model(golden(), config).eval()
    model.save_pretrained(folder)
    return folder, run(model)


def golden_with_adapter(scale: float = 1.0) -> tuple[Any, dict[str, torch.Tensor], torch.Tensor]:
    """The golden model, an adapter for it, and what both put out at this scale."""
    model = golden()
    tensors = make_adapter(model)
    return model, tensors, reference(adapted(model.state_dict(), (tensors, scale)))


def as_a_repository(folder: Path, cache: Path) -> Source:
    """In the Hub's cache, so that no network is needed."""
    repository, commit = cache / "models--someone--adapter", "0" * 40
    shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit, "utf-8")
    return "someone/adapter", {"weight_name": WEIGHTS, "cache_dir": str(cache), "local_files_only": True}


def sources(folder: Path, cache: Path) -> list[Source]:
    """Where an adapter may come from, and how its tensors may be spelled."""
    weights = load_file(folder / WEIGHTS)
    # As ComfyUI's trainers write them: each module's alpha is a tensor.
    alphas = {name.replace("base_model.model.", "diffusion_model."): tensor for name, tensor in weights.items()}
    alphas |= {f"{name.partition('.lora_')[0]}.alpha": torch.tensor(ALPHA) for name in alphas}
    down_up = {re.sub("lora_A", "lora_down", re.sub("lora_B", "lora_up", name)): alphas[name] for name in alphas}
    dots = {re.sub(r"lora_(?=down|up)", "lora.", name): tensor for name, tensor in down_up.items()}
    files: list[Any] = [folder, str(folder), folder / WEIGHTS, alphas, down_up, dots]
    subfolder: Source = folder.parent, {"subfolder": folder.name, "weight_name": WEIGHTS}
    return [*((file, {}) for file in files), subfolder, as_a_repository(folder, cache)]


def test_an_adapter_of_pefts(peft_adapter: tuple[Path, torch.Tensor], tmp_path: Path) -> None:
    """Its alpha is not lost, wherever it comes from."""
    folder, expected = peft_adapter
    assert distance(expected, run(golden())) > 0.1
    for source, options in sources(folder, tmp_path):
        model = golden()
        model.load_lora_adapter(source, **options)
        assert distance(run(model), expected) <= TOLERANCE, source
    tensors = {name.removeprefix("base_model.model."): tensor for name, tensor in load_file(folder / WEIGHTS).items()}
    assert len(tensors) == 12
    assert distance(reference(adapted(golden().state_dict(), (tensors, ALPHA / RANK))), expected) <= TOLERANCE


@pytest.mark.parametrize(
    "prefix", [*PREFIXES, "base_model.model.transformer.", "diffusion_model.", "model.diffusion_model."]
)
def test_spellings_of_adapters(prefix: str) -> None:
    model, tensors, expected = golden_with_adapter()
    assert distance(expected, run(model)) > 0.1
    model.load_lora_adapter({prefix + name: tensor for name, tensor in tensors.items()})
    assert distance(run(model), expected) <= TOLERANCE


@pytest.mark.parametrize("prefix", PREFIXES)
def test_metadata_of_adapters(prefix: str) -> None:
    model, tensors, expected = golden_with_adapter(ALPHA / RANK)
    metadata = {f"{prefix}r": RANK, f"{prefix}lora_alpha": ALPHA, f"{prefix}alpha_pattern": None}
    named = {prefix + name.replace(".weight", ".default.weight"): tensor for name, tensor in tensors.items()}
    model.load_lora_adapter(named, metadata=metadata)
    assert distance(run(model), expected) <= TOLERANCE


def test_ranks_and_alphas_by_module() -> None:
    model = golden()
    tensors = make_adapter(model)
    narrow = make_adapter(model, seed=1, rank=2)
    module = "transformer_blocks.1.attn.img_qkv"
    tensors.update((name, tensor) for name, tensor in narrow.items() if name.startswith(module))
    parts = [
        ({name: tensor for name, tensor in tensors.items() if name.startswith(module)}, 7.0 / 2),
        ({name: tensor for name, tensor in tensors.items() if not name.startswith(module)}, ALPHA / RANK),
    ]
    expected = reference(adapted(model.state_dict(), *parts))
    metadata = {"r": RANK, "lora_alpha": ALPHA, "rank_pattern": {module: 2}, "alpha_pattern": {module: 7.0}}
    model.load_lora_adapter(tensors, metadata=metadata)
    assert distance(run(model), expected) <= TOLERANCE


def test_adapters_that_are_refused() -> None:
    model, tensors, expected = golden(), make_adapter(golden()), run(golden())

    def with_module(name: str) -> State:
        return {**tensors, f"{name}.lora_A.weight": torch.ones(RANK, 48), f"{name}.lora_B.weight": torch.ones(48, RANK)}

    def without(factor: str) -> State:
        return {name: tensor for name, tensor in tensors.items() if factor not in name}

    alpha = {"transformer_blocks.0.attn.txt_qkv.alpha": torch.tensor(ALPHA)}
    for adapter, message in (
        (with_module("transformer_blocks.3.attn.img_qkv"), r"2 of 14 tensors .* transformer_blocks\.3\."),
        (with_module("transformer_blocks.0.attn.to_q"), "2 of 14 tensors .*to_q"),
        (with_module("base_model.model.text_encoder.layer"), "2 of 14 tensors .* text_encoder"),
        ({}, "0 of 0 tensors"),
        ({**tensors, **alpha}, r"alpha for transformer_blocks\.0\.attn\.txt_qkv and no weights"),
        # PEFT would draw the other factor at random.
        (without("lora_A"), r"no lora_A for transformer_blocks\.0\.attn"),
        (without("lora_B"), r"no lora_B for transformer_blocks\.0\.attn"),
    ):
        with pytest.raises(ValueError, match=message):
            model.load_lora_adapter(adapter)
        assert torch.equal(run(model), expected), message


def test_the_scale_of_adapters() -> None:
    model = golden()
    tensors = make_adapter(model)
    state = model.state_dict()
    model.load_lora_adapter(tensors)
    for scale in (0.5, 2.0, 1.0):
        expected = reference(adapted(state, (tensors, scale)))
        assert distance(run(model, attention_kwargs={"scale": scale}), expected) <= TOLERANCE
    # The scale is that of one call.
    assert distance(run(model), expected) <= TOLERANCE


# PEFT's, whenever there is more than one.
@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning")
def test_several_adapters() -> None:
    model = golden()
    state, one, two = model.state_dict(), make_adapter(model), make_adapter(model, seed=1, rank=3)
    model.load_lora_adapter(one, adapter_name="one", metadata={"r": RANK, "lora_alpha": ALPHA})
    model.load_lora_adapter(two, adapter_name="two")

    def check(*adapters: Delta) -> None:
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


def test_merging_an_adapter() -> None:
    model, state = golden(), golden().state_dict()
    tensors = make_adapter(model)
    expected = adapted(state, (tensors, 1.0))
    model.load_lora_adapter(tensors)
    model.fuse_lora()
    weight = model.transformer_blocks[0].attn.img_qkv.base_layer.weight
    assert distance(weight, expected["transformer_blocks.0.attn.img_qkv.weight"]) <= 1e-6
    assert distance(run(model), reference(expected)) <= TOLERANCE
    model.unfuse_lora()
    model.unload_lora()
    assert distance(run(model), reference(state)) <= TOLERANCE


def test_an_adapter_saved_by_diffusers(tmp_path: Path) -> None:
    model = golden()
    model.load_lora_adapter(make_adapter(model), adapter_name="one", metadata={"r": RANK, "lora_alpha": ALPHA})
    model.save_lora_adapter(tmp_path, adapter_name="one")
    loaded = golden()
    loaded.load_lora_adapter(tmp_path)
    assert torch.equal(run(loaded), run(model))
    assert distance(run(loaded), run(golden())) > 0.1


def test_a_repository_without_a_config(tmp_path: Path) -> None:
    model, tensors, expected = golden_with_adapter()
    (tmp_path / "source").mkdir()
    save_file(tensors, tmp_path / "source" / WEIGHTS)
    place, options = as_a_repository(tmp_path / "source", tmp_path / "cache")
    model.load_lora_adapter(place, **options)
    assert distance(run(model), expected) <= TOLERANCE


#: What SDNQ's dequantizer takes.
PARTS = ("weight", "scale", "zero_point", "svd_up", "svd_down")


def tiny_inputs() -> Inputs:
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


def said(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == "converter.models.lens.quantized"]


def test_quantized_matmul_that_a_loader_left_off(lens_output: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, inputs = LensTransformer2DModel.from_pretrained(lens_output), tiny_inputs()
    assert uses_matmul(model) == {True}
    caplog.set_level(logging.INFO, "converter.models.lens.quantized")
    assert not apply_serialized_matmul(model)
    assert not said(caplog)
    expected = run(model, inputs)
    set_matmul(model, False)
    assert uses_matmul(model) == {False}
    dequantized = run(model, inputs)
    assert not torch.equal(dequantized, expected)
    assert apply_serialized_matmul(model)
    assert uses_matmul(model) == {True}
    assert torch.equal(run(model, inputs), expected)
    (record,) = said(caplog)
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith("LensTransformer2DModel: use_quantized_matmul")
    assert record.getMessage().endswith("it is now (int8)")


def test_quantized_matmul_that_nobody_asked_for(lens_output: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = LensTransformer2DModel.from_pretrained(lens_output)
    set_matmul(model, False)
    model.quantization_config.use_quantized_matmul = False
    assert not apply_serialized_matmul(model)
    assert uses_matmul(model) == {False}
    assert not apply_serialized_matmul(golden())
    assert not said(caplog)


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


def test_what_is_not_in_effect_is_not_said_to_be(
    lens_output: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where SDNQ cannot multiply as the checkpoint asks."""
    model = LensTransformer2DModel.from_pretrained(lens_output, torch_dtype=torch.bfloat16)
    set_matmul(model, False)
    monkeypatch.setattr("sdnq.loader.apply_sdnq_options_to_model", lambda model, **_: model)
    assert not apply_serialized_matmul(model)
    assert "this machine cannot do it" in caplog.text
