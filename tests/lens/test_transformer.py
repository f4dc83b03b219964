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
from converter.errors import UnsupportedCheckpoint
from converter.models.lens.layout import LensConfig, lens_tensors
from converter.models.lens.rotary import rotate, rotation_angles, rotations
from converter.models.lens.transformer import LensTransformer2DModel
from tests.lens import reference as lens_reference
from tests.lens.models import TOLERANCE, Inputs, as_arguments, calls_of, distance, golden, reference, run
from tests.lens.reference import GOLDEN_CONFIG, golden_inputs, transformer_forward


@pytest.mark.parametrize(
    ("factors", "of_features"),
    [
        ({"img_in|to_out|img_mlp.w2|img_qkv": 1e-3}, 1.0),
        # Text must have a say for its epsilons to be seen in the image.
        ({"txt_in|to_add_out|txt_qkv": 1e-3, "to_out": 10.0}, 3e-3),
    ],
)
def test_epsilons_where_they_show(factors: dict[str, float], of_features: float) -> None:
    """With weights that make what comes into the norms of a stream as small as an epsilon's root.

    Any epsilon that is ten times as large then moves the result by more than ten tolerances.
    """
    model, inputs = golden(), golden_inputs((3, 5))
    for names, factor in factors.items():
        for name, parameter in model.named_parameters():
            if re.search(names, name):
                parameter.data *= factor
    inputs["encoder_hidden_states"] = [feature * of_features for feature in inputs["encoder_hidden_states"]]
    assert distance(run(model, inputs), reference(model.state_dict(), inputs)) <= TOLERANCE


@st.composite
def cases(draw: st.DrawFn) -> tuple[dict[str, Any], int, Inputs]:
    """A config, a seed for weights, and inputs."""
    axes = draw(st.lists(st.sampled_from([2, 4, 6]), min_size=3, max_size=3))
    config: dict[str, Any] = {"axes_dims_rope": axes, "attention_head_dim": sum(axes), "inner_dim": 999}
    config |= {"patch_size": draw(st.integers(1, 2)), "selected_layer_index": list(range(draw(st.integers(1, 4))))}
    config |= {name: draw(st.integers(1, 9)) for name in ("in_channels", "enc_hidden_dim")}
    config |= {name: draw(st.integers(1, 3)) for name in ("out_channels", "num_layers", "num_attention_heads")}
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


RAGGED = golden_inputs((3, 5))["mask"]


@pytest.mark.parametrize(
    "mask",
    [None, torch.ones(2, 7, dtype=torch.bool), RAGGED, RAGGED.long(), torch.tensor([[True] * 7, [False] * 7])],
    ids=["none", "full", "ragged", "numbers", "no text in a row"],
)
def test_a_mask_takes_tokens_out(mask: torch.Tensor | None) -> None:
    """Whatever the padding holds, the result is the reference's."""
    model, inputs = golden(), {**golden_inputs((3, 5)), "mask": mask}
    expected = reference(model.state_dict(), inputs)
    assert distance(run(model, inputs), expected) <= TOLERANCE
    if mask is not None:
        features = [feature.masked_fill(~mask.bool()[..., None], 1000) for feature in inputs["encoder_hidden_states"]]
        assert distance(run(model, {**inputs, "encoder_hidden_states": features}), expected) <= TOLERANCE


@pytest.mark.parametrize(
    ("grid", "first", "last", "text_start"),
    [((3, 5), (-2, -3), (0, 1), 2), ((90, 90), (-45, -45), (44, 44), 45), ((92, 46), (-46, -23), (45, 22), 46)],
)
def test_positions(grid: tuple[int, int], first: tuple[int, int], last: tuple[int, int], text_start: int) -> None:
    axes = LensConfig().axes_dims_rope
    angles = rotation_angles(grid, 7, axes)
    assert angles.dtype == torch.float32
    assert distance(angles, lens_reference.rotary_angles(axes, grid, 7, "cpu")) <= 1e-6 * 52
    # The first pair of an axis turns by its position: channels 0, 8 and 36, pairs 0, 4 and 18.
    positions = angles[:, [0, 4, 18]]
    assert positions[[0, -8]].tolist() == [[0, *first], [0, *last]]
    assert positions[-7:].tolist() == [[text_start + token] * 3 for token in range(7)]
    golden_angles = rotation_angles((3, 5), 1, (4, 6, 6))[0].tolist()
    assert golden_angles == pytest.approx([0, 0, -2, -0.0928, -0.0043, -3, -0.1392, -0.0065], abs=5e-5)


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
    assert (output.dtype, len(seen)) == (torch.bfloat16, 6)
    assert all(rotary.dtype == torch.float32 and torch.equal(rotary, seen[0]) for rotary in seen)
    # As near to float32 as the plain formulas are in bfloat16.
    exact = reference(golden().state_dict())
    plain = reference(model.state_dict(), inputs)
    assert (output.float() - exact).norm() <= 1.5 * (plain.float() - exact).norm()


def test_nothing_but_the_parameters_of_a_checkpoint_is_stored() -> None:
    """No buffers, nor anything that is hidden from a cast or a move as a plain attribute."""
    model = golden()
    expected = dict(lens_tensors(LensConfig.from_dict(GOLDEN_CONFIG))).keys()
    assert model.state_dict().keys() == dict(model.named_parameters()).keys() == expected
    assert list(model.buffers()) == []
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
    assert config == {**config, "_class_name": "LensTransformer2DModel", **GOLDEN_CONFIG}
    loaded, information = LensTransformer2DModel.from_pretrained(tmp_path, output_loading_info=True)
    assert information["missing_keys"] == information["unexpected_keys"] == []
    assert torch.equal(run(loaded), run(golden()))
    halved = LensTransformer2DModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in halved.parameters()} == {torch.bfloat16}


def test_what_nobody_reads_is_left_out() -> None:
    """The text stream after the last block is left out; without text, the whole stream is."""
    model, inputs = golden(), golden_inputs((3, 5))
    blocks = model.transformer_blocks
    empty = [feature[:, :0] for feature in inputs["encoder_hidden_states"]]
    expected = reference(model.state_dict(), {**inputs, "encoder_hidden_states": empty, "mask": None})
    with calls_of(blocks[1].txt_mlp) as needed, calls_of(blocks[2].txt_mlp) as unread:
        run(model, inputs)
        assert (len(needed), len(unread)) == (1, 0)
        mod, attn = blocks[1].txt_mod, blocks[1].attn
        with calls_of(mod) as mods, calls_of(attn.txt_qkv) as projections, calls_of(attn.to_add_out) as outputs:
            for mask in (None, torch.ones(2, 0, dtype=torch.bool)):
                found = run(model, {**inputs, "encoder_hidden_states": empty, "mask": mask})
                assert distance(found, expected) <= TOLERANCE
        assert (len(needed), len(mods), len(projections), len(outputs)) == (1, 0, 0, 0)


def test_both_kinds_of_result() -> None:
    """And a shape for each sample in place of one, and a tuple of features in place of a list."""
    model, arguments = golden(), as_arguments(golden_inputs((3, 5)))
    others = {**arguments, SHAPE: [[1, 3, 5]] * 2, FEATURES: tuple(arguments[FEATURES])}
    with torch.no_grad():
        default, plain = model(**arguments), model(**others, return_dict=False)
    assert (type(default), type(plain), len(plain)) == (Transformer2DModelOutput, tuple, 1)
    assert torch.equal(default.sample, plain[0])


@pytest.mark.parametrize("flag", ["gate_mlp", "rms_norm", "multi_layer_encoder_feature"])
def test_variants_that_nobody_released_are_refused(flag: str) -> None:
    with pytest.raises(ValueError, match="must be true"):
        LensTransformer2DModel(**{**GOLDEN_CONFIG, flag: False})
    with pytest.raises(UnsupportedCheckpoint, match="must be true"):
        list(lens_tensors(LensConfig.from_dict({**GOLDEN_CONFIG, flag: False})))


FEATURE = torch.zeros(2, 7, 24)
FEATURES, MASK, SHAPE = "encoder_hidden_states", "encoder_hidden_states_mask", "img_shapes"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("hidden_states", torch.zeros(2, 15, 17), "has shape [2, 15, 17], not [batch, tokens, 16]"),
        ("hidden_states", torch.zeros(30, 16), "has shape [30, 16], not [batch, tokens, 16]"),
        ("hidden_states", torch.zeros(1, 15, 16), f"{FEATURES}[0] has shape [2, 7, 24], not [1, 7, 24]"),
        ("hidden_states", torch.zeros(2, 14, 16), "[(1, 3, 5)] do not make 14 tokens of one frame"),
        *(
            (FEATURES, value, "a list of 3 tensors")
            for value in ([FEATURE] * 2, [FEATURE] * 4, torch.zeros(3, 2, 7, 24))
        ),
        (FEATURES, [FEATURE, FEATURE, FEATURE[:, :6]], "[2] has shape [2, 6, 24], not [2, 7, 24]"),
        (FEATURES, [FEATURE, FEATURE[..., :23], FEATURE], "[1] has shape [2, 7, 23], not [2, 7, 24]"),
        (FEATURES, [FEATURE[0]] * 3, "[0] has shape [7, 24], not [2, 'tokens', 24]"),
        *((MASK, torch.ones(shape), f"{[*shape]}, not [2, 7]") for shape in ((2, 6), (7,), (2, 1, 1, 7))),
        ("timestep", None, "timestep has shape None, not [2]: one sigma"),
        *(("timestep", torch.zeros(shape), f"{[*shape]}, not [2]: one sigma") for shape in ((), (1,), (2, 1))),
        *((SHAPE, value, "must be one") for value in (None, [], [(3, 5)], (1, 3, 5), [[(1, 3, 5)]])),
        (SHAPE, [(1, 3, 5), (1, 5, 3)], "img_shapes differ"),
        *((SHAPE, [value], f"[{value}] do not make 15 tokens") for value in ((1, -3, -5), (1, 4, 4), (2, 3, 5))),
    ],
)
def test_shapes_that_do_not_fit(name: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        golden()(**{**as_arguments(golden_inputs((3, 5))), name: value})


@pytest.mark.parametrize("axes", [(4, 6, 8), (5, 5, 6)])
def test_axes_that_do_not_fit(axes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=re.escape(f"axes_dims_rope {axes} must be even and add up to")):
        run(LensTransformer2DModel(**{**GOLDEN_CONFIG, "axes_dims_rope": axes}))


def test_gradient_checkpointing() -> None:
    plain, checkpointed = golden().train(), golden().train()
    checkpointed.enable_gradient_checkpointing()
    outputs, gradients = [], []
    for model, times in ((plain, 1), (checkpointed, 2)):
        with calls_of(model.transformer_blocks[1].attn) as calls:
            outputs.append(model(**as_arguments(golden_inputs((3, 5)))).sample)
            outputs[-1].square().mean().backward()
        assert len(calls) == times
        named = model.named_parameters()
        gradients.append({name: parameter.grad for name, parameter in named if parameter.grad is not None})
    torch.testing.assert_close((outputs[0], gradients[0]), (outputs[1], gradients[1]), rtol=0, atol=0)
    # All but what only the text stream behind the last block would use.
    unread = ["attn.to_add_out.weight", "attn.to_add_out.bias", "txt_norm2.weight"]
    unread += [f"txt_mlp.w{number}.weight" for number in (1, 2, 3)]
    assert plain.state_dict().keys() - gradients[0].keys() == {f"transformer_blocks.2.{name}" for name in unread}


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
    with calls_of(cached.transformer_blocks[1].attn) as calls:
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

    def check(other: Any, times: int) -> None:
        assert distance(run(other), expected) <= TOLERANCE
        assert [mask.shape for mask in calls] == [(2, 1, 1, 22)] * times

    check(model, 0)
    with attention_backend("_native_math"):
        check(model, 3)
    check(model, 3)
    model.set_attention_backend("_native_math")
    _AttentionBackendRegistry.set_active_backend(AttentionBackendName.NATIVE)
    check(model, 6)
    check(golden(), 6)
    model.reset_attention_backend()
    check(model, 6)


def test_attention_processors() -> None:
    model = golden()
    assert list(model.attn_processors) == [f"transformer_blocks.{index}.attn.processor" for index in range(3)]
    seen: list[tuple[int, ...]] = []

    class Spy:
        # It knows of no runs, as those that others wrote.
        def __call__(self, attn: Any, image: Any, text: Any, rotary: Any, mask: Any = None) -> Any:
            seen.append(tuple(image.shape))
            return attention_module.LensAttnProcessor()(attn, image, text, rotary, mask)

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
    assert distance(run(rounded), run(golden())) > 1e-2


def test_what_other_libraries_read_of_the_class() -> None:
    """SDNQ goes by the pattern for layers, accelerate and torch.compile by the names of blocks."""
    found = LensTransformer2DModel
    assert found._skip_layerwise_casting_patterns == ["pos_embed", "norm"]
    assert found._no_split_modules == found._repeated_blocks == ["LensTransformerBlock"]
