"""The transformer, compared with a second implementation, and the features of diffusers' models."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FirstBlockCacheConfig
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry, attention_backend
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from hypothesis import given, settings
from hypothesis import strategies as st

import converter.models.lens.attention as attention_module
from converter.models.lens.layout import LensConfig, lens_tensors
from converter.models.lens.rotary import rotate, rotation_angles, rotations
from converter.models.lens.transformer import LensTransformer2DModel
from tests.lens import reference as lens_reference
from tests.lens.models import TOLERANCE, Inputs, as_arguments, counted, distance, golden, reference, run
from tests.lens.reference import GOLDEN_CONFIG, golden_inputs, transformer_forward

#: Upstream's epsilon of each norm of the image and of the text.
IMAGE_NORMS = (r".*\.norm_q", r".*\.norm_k", r".*\.img_norm1", r".*\.img_norm2", r"norm_out\.norm")
TEXT_NORMS = (r".*\.norm_added_q", r".*\.norm_added_k", r".*\.txt_norm1", r".*\.txt_norm2")
IMAGE_EPSILONS = dict.fromkeys(IMAGE_NORMS, 1e-6)
TEXT_EPSILONS = {r"txt_norm\.\d": 1e-5, **dict.fromkeys(TEXT_NORMS, 1e-6)}


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
    rows = st.lists(st.booleans(), min_size=text_tokens, max_size=text_tokens)
    mask = draw(st.none() | st.lists(rows, min_size=batch, max_size=batch))

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
    [((3, 5), (-2, 0), (-3, 1), 2), ((90, 90), (-45, 44), (-45, 44), 45), ((92, 46), (-46, 45), (-23, 22), 46)],
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
    """The text stream after the last block is left out; without text, the whole stream is."""
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
MASKS = [torch.ones(2, 6), torch.ones(7), torch.ones(2, 1, 1, 7)]


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("hidden_states", [torch.zeros(2, 15, 17), torch.zeros(30, 16)], "hidden_states has shape"),
        ("hidden_states", [torch.zeros(1, 15, 16)], r"encoder_hidden_states\[0\] has shape"),
        ("hidden_states", [torch.zeros(2, 14, 16)], "do not make 14 tokens"),
        ("encoder_hidden_states", [[FEATURE] * 2, [FEATURE] * 4, torch.zeros(3, 2, 7, 24)], "a list of 3 tensors"),
        ("encoder_hidden_states", [[FEATURE, FEATURE, FEATURE[:, :6]]], r"encoder_hidden_states\[2\] has shape"),
        ("encoder_hidden_states", [[FEATURE, FEATURE[..., :23], FEATURE]], r"encoder_hidden_states\[1\] has shape"),
        ("encoder_hidden_states", [[FEATURE[:1]] * 3, [FEATURE[0]] * 3], r"encoder_hidden_states\[0\] has shape"),
        ("encoder_hidden_states_mask", MASKS, "encoder_hidden_states_mask has shape"),
        ("timestep", [None], "timestep has shape None"),
        ("timestep", [torch.tensor(0.5), torch.tensor([0.5]), torch.zeros(2, 1)], "timestep has shape"),
        ("img_shapes", [None, [], [(3, 5)], (1, 3, 5), [[(1, 3, 5)]]], "img_shapes must be one"),
        ("img_shapes", [[(1, 3, 5), (1, 5, 3)]], "img_shapes differ"),
        ("img_shapes", [[(1, -3, -5)], [(1, 4, 4)], [(15, 1, 1)]], "do not make 15 tokens"),
        ("img_shapes", [[(2, 3, 5)]], "of one frame"),
    ],
)
def test_shapes_that_do_not_fit(name: str, values: list[Any], message: str) -> None:
    for value in values:
        with pytest.raises(ValueError, match=message):
            golden()(**{**as_arguments(golden_inputs((3, 5))), name: value})


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
    unread = ["attn.to_add_out.weight", "attn.to_add_out.bias", "txt_norm2.weight"]
    unread += [f"txt_mlp.w{number}.weight" for number in (1, 2, 3)]
    unused = {name for name, _ in plain.named_parameters()} - names
    assert unused == {f"transformer_blocks.2.{name}" for name in unread}


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
