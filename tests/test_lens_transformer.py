"""The Lens transformer against upstream's figures, a second implementation, PEFT, and what diffusers does to models."""

from __future__ import annotations

import importlib
import json
import logging
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import FirstBlockCacheConfig
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry, attention_backend
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch.nn import functional

import converter.models.lens.attention as attention_module
import converter.models.lens.modules as transformer_module
from converter.lens import LensGptOssEncoder, LensPipeline
from converter.libraries import load_library
from converter.models.lens.golden import golden_error, golden_model, golden_output, passes_golden_test
from converter.models.lens.layout import LensConfig, lens_tensors
from converter.models.lens.quantized import apply_serialized_matmul, quantized_layers
from converter.models.lens.registration import register
from converter.models.lens.rotary import rotate, rotation_angles, rotations
from converter.models.lens.transformer import LensTransformer2DModel
from converter.verification.nearness import dequantize
from tests import lens_reference
from tests.conftest import ROOT
from tests.lens_reference import GOLDEN, GOLDEN_CONFIG, golden_inputs, golden_state, transformer_forward

Inputs = dict[str, Any]
State = dict[str, torch.Tensor]
#: How far upstream's figures may be missed, and how far two orders of the same float32 sums may be apart.
GOLDEN_TOLERANCE = 2e-5
TOLERANCE = 1e-5
#: Rank and alpha of the adapters here; they differ, so that a lost alpha shows.
RANK, ALPHA = 4, 10.0
ADAPTED = ("attn.img_qkv", "attn.to_out.0")


def golden() -> Any:
    """The golden model, its weights from the reference."""
    model = LensTransformer2DModel(**GOLDEN_CONFIG).eval()
    model.load_state_dict(golden_state({name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}))
    return model


def as_arguments(inputs: Inputs) -> Inputs:
    """Arguments of the reference, as the model calls them."""
    renamed = {key: value for key, value in inputs.items() if key not in ("mask", "grid")}
    return {**renamed, "encoder_hidden_states_mask": inputs["mask"], "img_shapes": [(1, *inputs["grid"])]}


def run(model: Any, inputs: Inputs | None = None, **options: Any) -> torch.Tensor:
    """What a model makes of inputs of the reference, by default the golden ones."""
    arguments = as_arguments(inputs or golden_inputs((3, 5)))
    with torch.no_grad():
        (sample,) = model(**arguments, return_dict=False, **options)
    return sample


def reference(state: Mapping[str, torch.Tensor], inputs: Inputs | None = None) -> torch.Tensor:
    """What the reference makes of golden-sized weights."""
    with torch.no_grad():
        return transformer_forward(state, GOLDEN_CONFIG, **(inputs or golden_inputs((3, 5))))


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference; NaN is one, too."""
    assert one.shape == other.shape
    largest = float((one.detach().float() - other.detach().float()).abs().max())
    return largest if largest == largest else float("inf")


@contextmanager
def counted(module: Any) -> Iterator[list[object]]:
    """Count the calls of a module."""
    calls: list[object] = []
    handle = module.register_forward_hook(lambda *_: calls.append(None))
    try:
        yield calls
    finally:
        handle.remove()


def test_upstreams_figures() -> None:
    model = golden()
    for grid, figures in GOLDEN.items():
        output = run(model, golden_inputs(grid))
        found = {
            "first": output[0, 0, :4],
            "last": output[1, -1, -4:],
            "sums": output.sum(dim=(1, 2)),
            "std": output.std()[None],
            "absmax": output.abs().max()[None],
        }
        for name, expected in figures.items():
            assert distance(found[name], torch.tensor(expected)) <= GOLDEN_TOLERANCE, (grid, name)


def test_the_golden_test_knows_the_golden_model() -> None:
    """It has weights, inputs and figures of its own, which must be those of the reference."""
    model = golden_model(LensTransformer2DModel)
    expected = golden()
    for name, tensor in expected.state_dict().items():
        assert distance(model.state_dict()[name], tensor) <= 2e-7, name
    for grid in GOLDEN:
        assert distance(golden_output(model, grid), run(expected, golden_inputs(grid))) <= TOLERANCE
    assert golden_error(model) <= GOLDEN_TOLERANCE
    assert golden_error(model.to(torch.bfloat16)) <= 0.05
    assert passes_golden_test(LensTransformer2DModel)


class MaskedOnce(LensTransformer2DModel):
    """The mask reaches the first block only, as in the implementation proposed to diffusers."""

    def __init__(self, **config: Any) -> None:
        super().__init__(**config)
        for block in self.transformer_blocks[1:]:
            block.register_forward_pre_hook(
                lambda _module, positional, named: (positional, {**named, "attention_mask": None}), with_kwargs=True
            )


class LosesHalves(LensTransformer2DModel):
    """Its rotations pass through a complex buffer, whose imaginary part bfloat16 drops."""

    def __init__(self, **config: Any) -> None:
        super().__init__(**config)
        self.register_buffer("quarter_turn", torch.tensor(1j), persistent=False)
        for block in self.transformer_blocks:
            block.register_forward_pre_hook(self._turn, with_kwargs=True)

    def _turn(self, _module: object, positional: Any, named: Any) -> Any:
        cosine, sine = named["rotary"].unbind(-1)
        turned = cosine + sine * self.quarter_turn
        parts = torch.view_as_real(turned) if turned.is_complex() else torch.stack((turned, 0 * turned), dim=-1)
        return positional, {**named, "rotary": parts.float()}


class NormsOtherwise(LensTransformer2DModel):
    """Takes the shift of the last norm for its scale."""

    def __init__(self, **config: Any) -> None:
        super().__init__(**config)
        self.norm_out.linear.register_forward_hook(
            lambda _module, _inputs, output: torch.cat(output.chunk(2, dim=-1)[::-1], dim=-1)
        )


@pytest.mark.parametrize("wrong", [MaskedOnce, NormsOtherwise])
def test_the_golden_test_sees_faults(wrong: Any) -> None:
    assert not passes_golden_test(wrong)


def test_the_golden_test_sees_lost_halves() -> None:
    # Nothing is wrong before the cast, and torch's warning of it does not come through.
    assert golden_error(golden_model(LosesHalves)) <= GOLDEN_TOLERANCE
    assert not passes_golden_test(LosesHalves)


def halves_apart(states: torch.Tensor, rotary: torch.Tensor) -> torch.Tensor:
    """Rotation of channels that lie half a head apart, as in other models."""
    order = torch.arange(states.shape[-1]).unflatten(0, (2, -1)).T.flatten()
    return rotate(states[..., order], rotary)[..., order.argsort()]


def rows_from_zero(grid: tuple[int, int], text_length: int, axes: tuple[int, ...], device: Any) -> torch.Tensor:
    angles = rotation_angles(grid, text_length, axes, device)
    angles[: grid[0] * grid[1], axes[0] // 2 : (axes[0] + axes[1]) // 2] += grid[0] - grid[0] // 2
    return torch.stack((angles.cos(), angles.sin()), dim=-1)


def text_from_zero(grid: tuple[int, int], text_length: int, axes: tuple[int, ...], device: Any) -> torch.Tensor:
    image = rotations(grid, 0, axes, device)
    return torch.cat((image, rotations((1, 1), text_length, axes, device)[1:]))


@pytest.mark.parametrize(
    ("module", "name", "fault"),
    [
        (attention_module, "rotate", halves_apart),
        (attention_module, "rotate", lambda states, _: states),
        (transformer_module, "rotations", rows_from_zero),
        (transformer_module, "rotations", text_from_zero),
        (transformer_module, "silu", functional.gelu),
    ],
)
def test_the_golden_test_sees_wrong_arithmetic(
    module: Any, name: str, fault: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, name, fault)
    assert not passes_golden_test(LensTransformer2DModel)


@pytest.mark.parametrize(
    "error", [AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError]
)
def test_a_class_that_raises_is_another_model(error: type[Exception]) -> None:
    def foreign(**_: object) -> None:
        raise error("another model")

    assert not passes_golden_test(foreign)


#: Upstream's epsilon of each norm of the image and of the text.
IMAGE_EPSILONS = {
    r".*\.norm_q": 1e-6,
    r".*\.norm_k": 1e-6,
    r".*\.img_norm1": 1e-6,
    r".*\.img_norm2": 1e-6,
    r"norm_out\.norm": 1e-6,
}
TEXT_EPSILONS = {
    r"txt_norm\.\d": 1e-5,
    r".*\.norm_added_q": 1e-6,
    r".*\.norm_added_k": 1e-6,
    r".*\.txt_norm1": 1e-6,
    r".*\.txt_norm2": 1e-6,
}


def norms(model: Any, pattern: str) -> list[Any]:
    return [module for name, module in model.named_modules() if re.fullmatch(pattern, name)]


def test_epsilons() -> None:
    """The golden figures do not show them, since nothing there is small."""
    model = golden()
    expected = {**IMAGE_EPSILONS, **TEXT_EPSILONS}
    for pattern, epsilon in expected.items():
        assert {module.eps for module in norms(model, pattern)} == {epsilon}, pattern
    every = {module for module in model.modules() if hasattr(module, "eps")}
    assert every == {module for pattern in expected for module in norms(model, pattern)}


@pytest.mark.parametrize(
    ("epsilons", "factors", "of_features"),
    [
        (IMAGE_EPSILONS, {"img_in|to_out|img_mlp.w2|img_qkv": 1e-3}, 1.0),
        # Text must have a say for its epsilons to be seen in the image.
        (TEXT_EPSILONS, {"txt_in|to_add_out|txt_qkv": 1e-3, "to_out": 10.0}, 3e-3),
    ],
)
def test_epsilons_where_they_show(epsilons: dict[str, float], factors: dict[str, float], of_features: float) -> None:
    """With weights that make what comes into the norms as small as an epsilon's root."""
    model, inputs = golden(), golden_inputs((3, 5))
    for names, factor in factors.items():
        for name, parameter in model.named_parameters():
            if re.search(names, name):
                parameter.data *= factor
    inputs["encoder_hidden_states"] = [feature * of_features for feature in inputs["encoder_hidden_states"]]
    expected = reference(model.state_dict(), inputs)
    assert distance(run(model, inputs), expected) <= TOLERANCE
    for pattern, epsilon in epsilons.items():
        for module in norms(model, pattern):
            module.eps = 10 * epsilon
        assert distance(run(model, inputs), expected) > 10 * TOLERANCE, pattern
        for module in norms(model, pattern):
            module.eps = epsilon


@st.composite
def cases(draw: st.DrawFn) -> tuple[dict[str, Any], int, Inputs]:
    """A config, a seed for weights, and inputs."""
    axes = draw(st.lists(st.sampled_from([2, 4, 6]), min_size=3, max_size=3))
    config: dict[str, Any] = {
        "patch_size": draw(st.sampled_from([1, 2])),
        "in_channels": draw(st.integers(1, 9)),
        "out_channels": draw(st.integers(1, 3)),
        "num_layers": draw(st.integers(1, 3)),
        "attention_head_dim": sum(axes),
        "num_attention_heads": draw(st.integers(1, 3)),
        "inner_dim": draw(st.sampled_from([48, 999])),
        "enc_hidden_dim": draw(st.integers(1, 9)),
        "axes_dims_rope": axes,
        "selected_layer_index": list(range(draw(st.integers(1, 4)))),
    }
    seed = draw(st.integers(0, 1 << 30))
    generator = torch.Generator().manual_seed(seed)
    batch, text_tokens = draw(st.integers(1, 3)), draw(st.integers(0, 6))
    grid = (draw(st.integers(1, 6)), draw(st.integers(1, 6)))
    masks = st.lists(
        st.lists(st.booleans(), min_size=text_tokens, max_size=text_tokens), min_size=batch, max_size=batch
    )
    mask = draw(st.none() | masks)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    inputs = {
        "hidden_states": noise(batch, grid[0] * grid[1], config["in_channels"]),
        "encoder_hidden_states": [
            noise(batch, text_tokens, config["enc_hidden_dim"]) for _ in config["selected_layer_index"]
        ],
        "mask": None if mask is None else torch.tensor(mask, dtype=torch.bool).reshape(batch, text_tokens),
        "timestep": torch.rand(batch, generator=generator),
        "grid": grid,
    }
    return config, seed, inputs


@settings(max_examples=40)
@given(case=cases())
def test_it_is_the_reference(case: tuple[dict[str, Any], int, Inputs]) -> None:
    config, seed, inputs = case
    model = LensTransformer2DModel(**config).eval()
    generator = torch.Generator().manual_seed(seed)
    state = model.state_dict()
    for name, tensor in state.items():
        noise = torch.randn(tensor.shape, generator=generator)
        # Scaled so that streams keep their size from layer to layer.
        state[name] = 1 + 0.3 * noise if tensor.ndim == 1 and "norm" in name else noise * tensor.shape[-1] ** -0.5
    model.load_state_dict(state)
    with torch.no_grad():
        expected = transformer_forward(state, config, **inputs)
    scale = max(1.0, float(expected.abs().max()))
    assert distance(run(model, inputs), expected) <= 1e-4 * scale


def test_a_mask_takes_tokens_out() -> None:
    """Padded and masked is unpadded, whatever the padding holds and whatever else is in the batch."""
    model, inputs = golden(), golden_inputs((3, 5))
    short = {
        **inputs,
        "hidden_states": inputs["hidden_states"][1:],
        "encoder_hidden_states": [feature[1:, :4] for feature in inputs["encoder_hidden_states"]],
        "timestep": inputs["timestep"][1:],
        "mask": None,
    }
    expected = run(model, short)
    assert distance(run(model, inputs)[1:], expected) <= TOLERANCE
    for feature in inputs["encoder_hidden_states"]:
        feature[1, 4:] = 1000 * torch.randn(3, feature.shape[-1], generator=torch.Generator().manual_seed(0))
    assert distance(run(model, inputs)[1:], expected) <= TOLERANCE
    assert distance(run(model, {**inputs, "mask": None})[1:], expected) > 10 * TOLERANCE


def test_a_mask_of_nothing_is_no_text() -> None:
    model, inputs = golden(), golden_inputs((3, 5))
    features = inputs["encoder_hidden_states"]
    without = run(model, {**inputs, "encoder_hidden_states": [feature[:, :0] for feature in features], "mask": None})
    empty = {**inputs, "encoder_hidden_states": [feature[:, :0] for feature in features]}
    assert torch.equal(run(model, {**empty, "mask": torch.ones(2, 0, dtype=torch.bool)}), without)
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[1] = False
    masked = run(model, {**inputs, "mask": mask})
    assert distance(masked[1], without[1]) <= TOLERANCE
    assert distance(masked[0], without[0]) > 10 * TOLERANCE
    others = [torch.cat((feature[:1], feature[1:].flip(1) - 3)) for feature in features]
    assert torch.equal(run(model, {**inputs, "encoder_hidden_states": others, "mask": mask})[1], masked[1])


def test_no_mask_is_one_of_all_true() -> None:
    model, inputs = golden(), golden_inputs((3, 5))
    without = run(model, {**inputs, "mask": None})
    assert torch.equal(run(model, {**inputs, "mask": torch.ones(2, 7, dtype=torch.bool)}), without)
    assert torch.equal(run(model, {**inputs, "mask": inputs["mask"].long()}), run(model, inputs))


@pytest.mark.parametrize(
    ("grid", "rows", "columns", "text_start"),
    [
        ((3, 5), (-2, 0), (-3, 1), 2),
        ((90, 90), (-45, 44), (-45, 44), 45),
        ((92, 46), (-46, 45), (-23, 22), 46),
    ],
)
def test_positions(grid: tuple[int, int], rows: tuple[int, int], columns: tuple[int, int], text_start: int) -> None:
    axes = LensConfig().axes_dims_rope
    angles = rotation_angles(grid, 7, axes)
    assert angles.dtype == torch.float32
    assert angles.shape == (grid[0] * grid[1] + 7, 32)
    assert distance(angles, lens_reference.rotary_angles(axes, grid, 7, "cpu")) <= 1e-6 * 52
    # The first pair of an axis turns by its position: channels 0, 8 and 36, pairs 0, 4 and 18.
    positions = angles[:, [0, 4, 18]]
    image, text = positions[:-7].unflatten(0, grid), positions[-7:]
    expected_rows = torch.arange(rows[0], rows[1] + 1.0)[:, None].expand(grid)
    expected_columns = torch.arange(columns[0], columns[1] + 1.0).expand(grid)
    assert torch.equal(image, torch.stack((torch.zeros(grid), expected_rows, expected_columns), dim=-1))
    assert torch.equal(text, torch.arange(text_start, text_start + 7.0)[:, None].expand(7, 3))


def test_angles_of_the_golden_model() -> None:
    angles = rotation_angles((3, 5), 1, (4, 6, 6))
    expected = torch.tensor([0, 0, -2, -0.0928, -0.0043, -3, -0.1392, -0.0065])
    assert distance(angles[0], expected) <= 5e-5
    assert distance(angles[-1, [0, 2, 5]], torch.tensor([2.0, 2.0, 2.0])) == 0
    rotary = rotations((3, 5), 1, (4, 6, 6))
    assert distance(rotary, torch.stack((angles.cos(), angles.sin()), dim=-1)) == 0


@pytest.mark.parametrize("is_compiling", [False, True])
def test_rotation_is_in_float32(is_compiling: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the eager and in the compiled spelling."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: is_compiling)
    states = torch.randn(2, 22, 3, 16, generator=torch.Generator().manual_seed(0))
    angles = rotation_angles((3, 5), 7, (4, 6, 6))
    rotary = rotations((3, 5), 7, (4, 6, 6))
    expected = lens_reference.rotate(states, torch.polar(torch.ones_like(angles), angles))
    assert distance(rotate(states, rotary), expected) <= 1e-6
    halved = states.to(torch.bfloat16)
    turned = rotate(halved, rotary)
    assert turned.dtype == torch.bfloat16
    assert torch.equal(turned, rotate(halved.float(), rotary).to(torch.bfloat16))


def test_a_cast_leaves_positions_alone() -> None:
    model, seen = golden(), []
    for block in model.transformer_blocks:
        block.register_forward_pre_hook(lambda _module, _inputs, named: seen.append(named["rotary"]), with_kwargs=True)
    run(model)
    inputs = golden_inputs((3, 5))
    inputs["hidden_states"] = inputs["hidden_states"].to(torch.bfloat16)
    inputs["encoder_hidden_states"] = [feature.to(torch.bfloat16) for feature in inputs["encoder_hidden_states"]]
    output = run(model.to(torch.bfloat16), inputs)
    assert output.dtype == torch.bfloat16
    assert len(seen) == 6
    assert all(rotary.dtype == torch.float32 and torch.equal(rotary, seen[0]) for rotary in seen)
    # As near to float32 as the plain formulas are in bfloat16.
    exact = reference(golden().state_dict())
    plain = reference(model.state_dict(), inputs)
    assert (output.float() - exact).norm() <= 1.5 * (plain.float() - exact).norm()


def test_nothing_but_the_tensors_of_a_checkpoint_is_stored() -> None:
    model = golden()
    assert list(model.buffers()) == []
    assert not any(parameter.is_complex() for parameter in model.parameters())
    assert {name for name, _ in model.named_parameters()} == {
        name for name, _ in lens_tensors(LensConfig(num_layers=3, selected_layer_index=(0, 1, 2)))
    }
    # Nor is anything hidden from a cast or a move as a plain attribute.
    assert not any(isinstance(value, torch.Tensor) for module in model.modules() for value in vars(module).values())


def test_built_on_the_meta_device() -> None:
    expected, state = run(golden()), golden().state_dict()
    with torch.device("meta"):
        assigned, copied = (LensTransformer2DModel(**GOLDEN_CONFIG).eval() for _ in range(2))
    assigned.load_state_dict(state, assign=True)
    assert torch.equal(run(assigned), expected)
    copied.to_empty(device="cpu").load_state_dict(state)
    assert torch.equal(run(copied), expected)


def test_the_real_model_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = LensTransformer2DModel()
    assert len(model.state_dict()) == 1264
    assert sum(parameter.numel() for parameter in model.parameters()) == 4_104_225_152
    with torch.device("meta"):
        sample = model(
            hidden_states=torch.empty(2, 90 * 90, 128),
            encoder_hidden_states=[torch.empty(2, 9, 2880)] * 4,
            encoder_hidden_states_mask=torch.empty(2, 9, dtype=torch.bool),
            timestep=torch.empty(2),
            img_shapes=[(1, 90, 90)],
        ).sample
    assert sample.shape == (2, 90 * 90, 128)


def test_saved_and_loaded(tmp_path: Path) -> None:
    golden().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    assert config["_class_name"] == "LensTransformer2DModel"
    assert {key: config[key] for key in GOLDEN_CONFIG} == GOLDEN_CONFIG
    loaded, information = LensTransformer2DModel.from_pretrained(tmp_path, output_loading_info=True)
    assert information["missing_keys"] == information["unexpected_keys"] == []
    assert torch.equal(run(loaded), run(golden()))
    halved = LensTransformer2DModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in halved.parameters()} == {torch.bfloat16}


def test_what_nobody_reads_is_left_out() -> None:
    """The text stream behind the last block, and all of it where there is no text."""
    model, inputs = golden(), golden_inputs((3, 5))
    blocks = model.transformer_blocks
    with counted(blocks[1].txt_mlp) as needed, counted(blocks[2].txt_mlp) as unread:
        run(model, inputs)
        assert (len(needed), len(unread)) == (1, 0)
        empty = [feature[:, :0] for feature in inputs["encoder_hidden_states"]]
        attention = blocks[1].attn
        with counted(blocks[1].txt_mod) as mod, counted(attention.txt_qkv) as qkv, counted(attention.to_add_out) as out:
            run(model, {**inputs, "encoder_hidden_states": empty, "mask": None})
        assert (len(needed), len(mod), len(qkv), len(out)) == (1, 0, 0, 0)


def test_both_kinds_of_result() -> None:
    model, arguments = golden(), as_arguments(golden_inputs((3, 5)))
    with torch.no_grad():
        default, plain = model(**arguments), model(**arguments, return_dict=False)
    assert isinstance(default, Transformer2DModelOutput)
    assert isinstance(plain, tuple)
    assert len(plain) == 1
    assert torch.equal(default.sample, plain[0])


@pytest.mark.parametrize("flag", ["gate_mlp", "rms_norm", "multi_layer_encoder_feature"])
def test_variants_that_nobody_released_are_refused(flag: str) -> None:
    with pytest.raises(ValueError, match="must be true"):
        LensTransformer2DModel(**{**GOLDEN_CONFIG, flag: False})


FEATURE = torch.zeros(2, 7, 24)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_states": torch.zeros(2, 15, 17)}, "hidden_states has shape"),
        ({"hidden_states": torch.zeros(30, 16)}, "hidden_states has shape"),
        ({"hidden_states": torch.zeros(1, 15, 16)}, r"encoder_hidden_states\[0\] has shape"),
        ({"hidden_states": torch.zeros(2, 14, 16)}, "do not make 14 tokens"),
        ({"encoder_hidden_states": [FEATURE] * 2}, "a list of 3 tensors"),
        ({"encoder_hidden_states": [FEATURE] * 4}, "a list of 3 tensors"),
        ({"encoder_hidden_states": torch.zeros(3, 2, 7, 24)}, "a list of 3 tensors"),
        ({"encoder_hidden_states": [FEATURE, FEATURE, FEATURE[:, :6]]}, r"encoder_hidden_states\[2\] has shape"),
        ({"encoder_hidden_states": [FEATURE, FEATURE[..., :23], FEATURE]}, r"encoder_hidden_states\[1\] has shape"),
        ({"encoder_hidden_states": [FEATURE[:1]] * 3}, r"encoder_hidden_states\[0\] has shape"),
        ({"encoder_hidden_states": [FEATURE[0]] * 3}, r"encoder_hidden_states\[0\] has shape"),
        ({"encoder_hidden_states_mask": torch.ones(2, 6)}, "encoder_hidden_states_mask has shape"),
        ({"encoder_hidden_states_mask": torch.ones(7)}, "encoder_hidden_states_mask has shape"),
        ({"encoder_hidden_states_mask": torch.ones(2, 1, 1, 7)}, "encoder_hidden_states_mask has shape"),
        ({"timestep": None}, "timestep has shape None"),
        ({"timestep": torch.tensor(0.5)}, "timestep has shape"),
        ({"timestep": torch.tensor([0.5])}, "timestep has shape"),
        ({"timestep": torch.zeros(2, 1)}, "timestep has shape"),
        ({"img_shapes": None}, "img_shapes must be one"),
        ({"img_shapes": []}, "img_shapes must be one"),
        ({"img_shapes": [(3, 5)]}, "img_shapes must be one"),
        ({"img_shapes": [(1, 3, 5), (1, 5, 3)]}, "img_shapes differ"),
        ({"img_shapes": (1, 3, 5)}, "img_shapes must be one"),
        ({"img_shapes": [(1, -3, -5)]}, "do not make 15 tokens"),
        ({"img_shapes": [[(1, 3, 5)]]}, "img_shapes must be one"),
        ({"img_shapes": [(1, 4, 4)]}, "do not make 15 tokens"),
        ({"img_shapes": [(15, 1, 1)]}, "do not make 15 tokens"),
        ({"img_shapes": [(2, 3, 5)]}, "of one frame"),
    ],
)
def test_shapes_that_do_not_fit(changes: Inputs, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        golden()(**{**as_arguments(golden_inputs((3, 5))), **changes})


def test_one_shape_may_be_given_for_each_sample() -> None:
    with torch.no_grad():
        output = golden()(**{**as_arguments(golden_inputs((3, 5))), "img_shapes": [[1, 3, 5], (1, 3, 5)]}).sample
    assert torch.equal(output, run(golden()))


@pytest.mark.parametrize("axes", [(4, 6, 8), (5, 5, 6)])
def test_axes_that_do_not_fit(axes: tuple[int, ...]) -> None:
    model = LensTransformer2DModel(**{**GOLDEN_CONFIG, "axes_dims_rope": axes})
    with pytest.raises(ValueError, match="axes_dims_rope"):
        run(model)


def test_gradient_checkpointing() -> None:
    plain, checkpointed = golden().train(), golden().train()
    checkpointed.enable_gradient_checkpointing()
    outputs = []
    for model, times in ((plain, 1), (checkpointed, 2)):
        with counted(model.transformer_blocks[1].attn) as calls:
            outputs.append(model(**as_arguments(golden_inputs((3, 5)))).sample)
            outputs[-1].square().mean().backward()
        assert len(calls) == times
    assert torch.equal(*outputs)
    names = {name for name, parameter in plain.named_parameters() if parameter.grad is not None}
    for (name, expected), parameter in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        assert (parameter.grad is None) == (expected.grad is None), name
        assert expected.grad is None or torch.equal(parameter.grad, expected.grad), name
    # All but what only the text stream behind the last block would use.
    unused = {name for name, _ in plain.named_parameters()} - names
    assert unused == {
        f"transformer_blocks.2.{name}"
        for name in (
            "attn.to_add_out.weight",
            "attn.to_add_out.bias",
            "txt_norm2.weight",
            "txt_mlp.w1.weight",
            "txt_mlp.w2.weight",
            "txt_mlp.w3.weight",
        )
    }


# torch's own, from a module that its compiler imports.
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_compiled() -> None:
    expected = run(golden())
    try:
        assert distance(run(torch.compile(golden(), fullgraph=True)), expected) <= TOLERANCE
        # The code for blocks is that of before; what may differ is what a graph takes in.
        model = golden()
        model.compile_repeated_blocks(fullgraph=True, backend="aot_eager")
        assert all(block._compiled_call_impl is not None for block in model.transformer_blocks)
        assert distance(run(model), expected) <= TOLERANCE
    finally:
        torch.compiler.reset()


@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
def test_group_offloading(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights lie on disk until a module is called; what is left of them in between is poisoned here."""
    expected, model = run(golden()), golden()
    monkeypatch.setattr(torch, "empty_like", lambda tensor, **options: torch.full_like(tensor, float("nan"), **options))
    cpu = torch.device("cpu")
    model.enable_group_offload(
        onload_device=cpu,
        offload_device=cpu,
        offload_type=kind,
        num_blocks_per_group=1 if kind == "block_level" else None,
        offload_to_disk_path=str(tmp_path),
    )
    assert torch.equal(run(model), expected)
    assert torch.equal(run(model), expected)
    assert model.transformer_blocks[1].attn.img_qkv.weight.isnan().all()


def test_first_block_cache() -> None:
    plain, cached = golden(), golden()
    first = golden_inputs((3, 5))
    second = {**first, "timestep": first["timestep"] + 0.002}
    blocks: list[torch.Tensor] = []
    for block in (plain.transformer_blocks[0], plain.transformer_blocks[-1]):
        block.register_forward_hook(lambda _module, _inputs, output: blocks.append(output[1]))
    exact = [run(plain, inputs) for inputs in (first, second)]
    head, tail, later_head, _ = blocks
    with torch.no_grad():
        time = plain.time_text_embed(second["timestep"], torch.float32)
        expected = plain.proj_out(plain.norm_out(later_head + (tail - head), time))
    cached.enable_cache(FirstBlockCacheConfig(threshold=0.2))
    with counted(cached.transformer_blocks[1].attn) as calls:
        with cached.cache_context("one"):
            assert torch.equal(run(cached, first), exact[0])
            assert len(calls) == 1
            assert distance(run(cached, second), expected) <= TOLERANCE
            assert len(calls) == 1
        assert distance(expected, exact[1]) > 10 * TOLERANCE
        cached.disable_cache()
        assert torch.equal(run(cached, second), exact[1])
        assert len(calls) == 2


def test_attention_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen, calls = AttentionBackendName._NATIVE_MATH, []
    backends = _AttentionBackendRegistry._backends
    original = backends[chosen]

    def spy(**arguments: Any) -> Any:
        calls.append(arguments["attn_mask"])
        return original(**arguments)

    monkeypatch.setitem(backends, chosen, spy)
    # Setting a model's backend sets everyone's; this puts it back after the test.
    monkeypatch.setattr(_AttentionBackendRegistry, "_active_backend", _AttentionBackendRegistry._active_backend)
    model, expected = golden(), run(golden())
    assert not calls
    with attention_backend("_native_math"):
        assert distance(run(model), expected) <= TOLERANCE
    assert [mask.shape for mask in calls] == [(2, 1, 1, 22)] * 3
    run(model)
    assert len(calls) == 3
    model.set_attention_backend("_native_math")
    _AttentionBackendRegistry.set_active_backend(AttentionBackendName.NATIVE)
    assert distance(run(model), expected) <= TOLERANCE
    assert len(calls) == 6
    run(golden())
    assert len(calls) == 6
    model.reset_attention_backend()
    assert torch.equal(run(model), expected)
    assert len(calls) == 6


def test_attention_processors() -> None:
    model = golden()
    assert list(model.attn_processors) == [f"transformer_blocks.{index}.attn.processor" for index in range(3)]
    seen: list[tuple[int, ...]] = []

    class Spy(attention_module.LensAttnProcessor):
        def __call__(self, attn: Any, hidden_states: Any, *others: Any) -> Any:
            seen.append(tuple(hidden_states.shape))
            return super().__call__(attn, hidden_states, *others)

    model.set_attn_processor(Spy())
    assert torch.equal(run(model), run(golden()))
    assert seen == [(2, 15, 48)] * 3
    model.fuse_qkv_projections()  # They are fused from the start.
    assert torch.equal(run(model), run(golden()))


def test_layerwise_casting() -> None:
    """Linear layers are stored in eight bits, but for norms' and the last one, and compute as if rounded to them."""
    model, rounded = golden(), golden()
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    stored = {name for name, parameter in model.named_parameters() if parameter.dtype == torch.float8_e4m3fn}
    assert stored == {name for name in golden().state_dict() if "norm" not in name and not name.startswith("proj_out.")}
    for name, parameter in rounded.named_parameters():
        if name in stored:
            parameter.data = parameter.data.to(torch.float8_e4m3fn).float()
    assert torch.equal(run(model), run(rounded))
    # SDNQ goes by the pattern, too, where diffusers has it of its own.
    assert "norm" in LensTransformer2DModel._skip_layerwise_casting_patterns
    assert distance(run(rounded), run(golden())) > 1e-2


Delta = tuple[dict[str, torch.Tensor], float]


def adapted(state: Mapping[str, torch.Tensor], *adapters: Delta) -> State:
    """Weights with adapters multiplied out; an adapter is its tensors by bare names, and what it is scaled by."""
    merged = dict(state)
    for tensors, scale in adapters:
        for name, down in tensors.items():
            if name.endswith(".lora_A.weight"):
                module = name.removesuffix(".lora_A.weight")
                update = tensors[f"{module}.lora_B.weight"] @ down
                merged[f"{module}.weight"] = merged[f"{module}.weight"] + scale * update
    return merged


def make_adapter(model: Any, seed: int = 0, rank: int = RANK) -> State:
    """Tensors of an adapter under bare names."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, tensor in model.state_dict().items():
        module = name.removesuffix(".weight")
        if module.endswith(ADAPTED):
            rows, columns = tensor.shape
            state[f"{module}.lora_A.weight"] = 0.3 * torch.randn(rank, columns, generator=generator)
            state[f"{module}.lora_B.weight"] = 0.3 * torch.randn(rows, rank, generator=generator)
    return state


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


def test_an_adapter_of_pefts(peft_adapter: tuple[Path, torch.Tensor]) -> None:
    folder, expected = peft_adapter
    assert distance(expected, run(golden())) > 0.1
    for source, options in ((folder, {}), (str(folder), {}), (folder.parent, {"subfolder": folder.name})):
        if options:
            options["weight_name"] = "adapter_model.safetensors"
        model = golden()
        model.load_lora_adapter(source, **options)
        assert distance(run(model), expected) <= TOLERANCE
    tensors = {
        name.removeprefix("base_model.model."): tensor
        for name, tensor in load_file(folder / "adapter_model.safetensors").items()
    }
    assert len(tensors) == 12
    assert distance(reference(adapted(golden().state_dict(), (tensors, ALPHA / RANK))), expected) <= TOLERANCE


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "transformer.",
        "base_model.model.",
        "base_model.model.transformer.",
        "diffusion_model.",
        "model.diffusion_model.",
    ],
)
def test_spellings_of_adapters(prefix: str) -> None:
    model = golden()
    tensors = make_adapter(model)
    expected = reference(adapted(model.state_dict(), (tensors, 1.0)))
    assert distance(expected, run(model)) > 0.1
    model.load_lora_adapter({prefix + name: tensor for name, tensor in tensors.items()})
    assert distance(run(model), expected) <= TOLERANCE


@pytest.mark.parametrize("prefix", ["", "transformer.", "base_model.model."])
def test_metadata_of_adapters(prefix: str) -> None:
    model = golden()
    tensors = make_adapter(model)
    expected = reference(adapted(model.state_dict(), (tensors, ALPHA / RANK)))
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


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("transformer_blocks.3.attn.img_qkv", r"2 of 14 tensors .* transformer_blocks\.3\."),
        ("transformer_blocks.0.attn.to_q", "2 of 14 tensors .*to_q"),
        ("base_model.model.text_encoder.layer", "2 of 14 tensors .* text_encoder"),
    ],
)
def test_adapters_for_other_models_are_refused(name: str, message: str) -> None:
    model = golden()
    foreign = {f"{name}.lora_A.weight": torch.ones(RANK, 48), f"{name}.lora_B.weight": torch.ones(48, RANK)}
    with pytest.raises(ValueError, match=message):
        model.load_lora_adapter({**make_adapter(model), **foreign})
    assert torch.equal(run(model), run(golden()))


def test_an_empty_adapter_is_refused() -> None:
    with pytest.raises(ValueError, match="0 of 0 tensors"):
        golden().load_lora_adapter({})


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


def as_a_file(folder: Path, _: Path) -> tuple[Any, dict[str, Any]]:
    return folder / "adapter_model.safetensors", {}


def as_a_repository(folder: Path, cache: Path) -> tuple[Any, dict[str, Any]]:
    """In the Hub's cache, so that no network is needed."""
    repository, commit = cache / "models--someone--adapter", "0" * 40
    shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit, "utf-8")
    options = {"weight_name": "adapter_model.safetensors", "cache_dir": str(cache), "local_files_only": True}
    return "someone/adapter", options


def with_alphas(folder: Path, _: Path) -> tuple[Any, dict[str, Any]]:
    """As ComfyUI's trainers write them: each module's alpha is a tensor."""
    tensors = {
        name.replace("base_model.model.", "diffusion_model."): tensor
        for name, tensor in load_file(folder / "adapter_model.safetensors").items()
    }
    modules = {name.partition(".lora_")[0] for name in tensors}
    return tensors | {f"{module}.alpha": torch.tensor(ALPHA) for module in modules}, {}


def with_down_and_up(folder: Path, cache: Path) -> tuple[Any, dict[str, Any]]:
    tensors, options = with_alphas(folder, cache)
    return {
        re.sub("lora_A", "lora_down", re.sub("lora_B", "lora_up", name)): tensors[name] for name in tensors
    }, options


def with_dots(folder: Path, cache: Path) -> tuple[Any, dict[str, Any]]:
    tensors, options = with_down_and_up(folder, cache)
    return {re.sub(r"lora_(?=down|up)", "lora.", name): tensors[name] for name in tensors}, options


@pytest.mark.parametrize("source", [as_a_file, as_a_repository, with_alphas, with_down_and_up, with_dots])
def test_alpha_is_not_lost(source: Any, peft_adapter: tuple[Path, torch.Tensor], tmp_path: Path) -> None:
    folder, expected = peft_adapter
    place, options = source(folder, tmp_path)
    model = golden()
    model.load_lora_adapter(place, **options)
    assert distance(run(model), expected) <= TOLERANCE


def test_a_repository_without_a_config(tmp_path: Path) -> None:
    model = golden()
    tensors = make_adapter(model)
    expected = reference(adapted(model.state_dict(), (tensors, 1.0)))
    (tmp_path / "source").mkdir()
    save_file(tensors, tmp_path / "source" / "adapter_model.safetensors")
    place, options = as_a_repository(tmp_path / "source", tmp_path / "cache")
    model.load_lora_adapter(place, **options)
    assert distance(run(model), expected) <= TOLERANCE


def test_an_alpha_without_weights_is_refused() -> None:
    tensors = make_adapter(golden())
    with pytest.raises(ValueError, match=r"alpha for transformer_blocks\.0\.attn\.txt_qkv and no weights"):
        golden().load_lora_adapter({**tensors, "transformer_blocks.0.attn.txt_qkv.alpha": torch.tensor(ALPHA)})


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


#: A diffusers that has the class already is met twice, once with a right one, and once with a wrong one and a pipeline
#: for it.
PLANTED = """
import sys
from converter.libraries import load_library

diffusers = load_library("diffusers")

def forget():
    packages = ("converter.lens.", "converter.models.lens.")
    for name in [name for name in sys.modules if (name + ".").startswith(packages)]:
        del sys.modules[name]

from converter.models.lens.transformer import LensTransformer2DModel as Right
assert not hasattr(diffusers, "LensTransformer2DModel")

class Wrong(Right):
    def forward(self, *arguments, **named):
        return super().forward(*arguments, **{**named, "encoder_hidden_states_mask": None})

forget()
diffusers.LensTransformer2DModel = Right
import converter.lens
assert diffusers.LensTransformer2DModel is Right is not converter.lens.LensTransformer2DModel
assert diffusers.LensPipeline is converter.lens.LensPipeline

forget()
diffusers.LensTransformer2DModel, diffusers.LensPipeline = Wrong, object
import converter.lens
assert diffusers.LensTransformer2DModel is converter.lens.LensTransformer2DModel is not Right
assert diffusers.LensPipeline is converter.lens.LensPipeline
"""
PLAIN = """
import sys
import converter.lens
import diffusers, transformers
from transformers import LensGptOssEncoder

assert diffusers.LensTransformer2DModel is converter.lens.LensTransformer2DModel
assert diffusers.LensPipeline is converter.lens.LensPipeline
assert transformers.LensGptOssEncoder is LensGptOssEncoder is converter.lens.LensGptOssEncoder
model = diffusers.AutoModel.from_pretrained(sys.argv[1])
assert type(model) is converter.lens.LensTransformer2DModel
"""


@pytest.mark.parametrize("program", [PLAIN, PLANTED], ids=["plain", "planted"])
def test_registration(program: str, tmp_path: Path) -> None:
    golden().save_pretrained(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_registration_beside_another_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipeline stays with its own transformer if that is right, and goes with it if not."""

    class Right(LensTransformer2DModel):
        pass

    for theirs, stays in ((Right, True), (MaskedOnce, False), (object, False)):
        pipeline = type("Pipeline", (), {})
        monkeypatch.setattr(diffusers, "LensTransformer2DModel", theirs)
        monkeypatch.setattr(diffusers, "LensPipeline", pipeline)
        register()
        assert diffusers.LensTransformer2DModel is (theirs if stays else LensTransformer2DModel)
        assert diffusers.LensPipeline is (pipeline if stays else LensPipeline)


def test_registration_beside_another_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = sys.modules["transformers"]
    for theirs in (object, None):
        if theirs is None:
            monkeypatch.delattr(transformers, "LensGptOssEncoder")
        else:
            monkeypatch.setattr(transformers, "LensGptOssEncoder", theirs)
        register()
        assert transformers.LensGptOssEncoder is (theirs or LensGptOssEncoder)


@pytest.mark.parametrize("factor", ["lora_A", "lora_B"])
def test_half_an_adapter(factor: str) -> None:
    """PEFT would draw the other factor at random."""
    model = golden()
    tensors = {name: tensor for name, tensor in make_adapter(model).items() if factor not in name}
    with pytest.raises(ValueError, match=rf"no {factor} for transformer_blocks\.0\.attn"):
        model.load_lora_adapter(tensors)


@pytest.mark.parametrize("error", [AssertionError, ImportError, OSError, NameError])
def test_a_class_that_cannot_be_built_fails_the_golden_test(error: type[Exception]) -> None:
    """diffusers' stand-ins for classes whose requirements are missing raise ImportError."""

    def foreign(**_: Any) -> None:
        raise error("no")

    assert not passes_golden_test(foreign)


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
