"""Quantized transformers: adapters on packed weights, and quantized matmul."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.modeling_utils import ModelMixin

from converter.libraries import load_library
from converter.models.lens.layout import LensConfig
from converter.models.lens.quantized import apply_serialized_matmul, quantized_layers
from converter.models.lens.transformer import LensTransformer2DModel
from converter.verification.nearness import dequantize
from tests.lens.models import ALPHA, RANK, Inputs, distance, golden, make_adapter, run

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
        # As pipelines load adapters; otherwise PEFT makes room in float32 next to packed weights.
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
    from sdnq import loader

    model = LensTransformer2DModel.from_pretrained(lens_output, torch_dtype=torch.bfloat16)
    loader.apply_sdnq_options_to_model(model, use_quantized_matmul=False)
    model.quantization_config.use_quantized_matmul = True
    monkeypatch.setattr(loader, "apply_sdnq_options_to_model", lambda model, **_: model)
    assert not apply_serialized_matmul(model)
    assert "this machine cannot do it" in caplog.text
