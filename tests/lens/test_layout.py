"""Lens without torch and Lens from modules are the same model; its figures are the published ones."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

import pytest
import torch

from converter.errors import UnsupportedCheckpoint
from converter.models.families import family
from converter.models.lens.layout import CLASS_NAME, LensConfig, infer_config, lens_family, lens_tensors
from converter.models.lens.transformer import LensTransformer2DModel

SMALL = LensConfig(
    num_layers=2, num_attention_heads=3, inner_dim=192, enc_hidden_dim=64, in_channels=20, out_channels=5
)
CONFIGS = [
    LensConfig(),
    SMALL,
    LensConfig(num_layers=1, num_attention_heads=2, enc_hidden_dim=24, selected_layer_index=(0, 1, 2)),
    LensConfig(num_layers=3, attention_head_dim=16, num_attention_heads=3, in_channels=16, out_channels=4),
]
TENSORS = dict(lens_tensors(SMALL))


@pytest.mark.parametrize("config", CONFIGS)
def test_tensors_are_those_of_the_modules(config: LensConfig) -> None:
    with torch.device("meta"):
        # The first one is also that of no arguments.
        model = LensTransformer2DModel(**({} if config == LensConfig() else config.to_dict()))
    assert list(lens_tensors(config)) == [(name, tuple(tensor.shape)) for name, tensor in model.state_dict().items()]
    registered = {key: list(value) if isinstance(value, tuple) else value for key, value in model.config.items()}
    assert config.to_dict().items() <= registered.items()
    assert LensConfig.from_dict(registered) == config


@pytest.mark.parametrize(
    ("shapes", "config"),
    [
        (dict(lens_tensors(LensConfig())), LensConfig()),
        (TENSORS, SMALL),
        ({}, None),
        ({"x.weight": (3, 4)}, None),
        (TENSORS | {"extra.weight": (3, 4)}, None),
        ({name: shape for name, shape in TENSORS.items() if "proj_out" not in name}, None),
        (TENSORS | {"img_in.weight": (3,)}, None),
        (TENSORS | {"img_in.weight": (193, 20)}, None),
        # Of other head sizes and other numbers of features, nothing is known.
        (dict(lens_tensors(replace(SMALL, attention_head_dim=32, num_attention_heads=6))), None),
        (dict(lens_tensors(replace(SMALL, selected_layer_index=(0, 1, 2)))), None),
    ],
)
def test_a_config_can_be_read_off_the_shapes(shapes: dict[str, tuple[int, ...]], config: LensConfig | None) -> None:
    assert infer_config(shapes) == config


@pytest.mark.parametrize(
    ("key", "least", "most", "absurd"),
    [
        ("num_layers", 1, 1024, [0, 1025, 10**9, "48", True, 1.0, None]),
        ("attention_head_dim", 1, 1 << 20, [0, -1, (1 << 20) + 1]),
        ("axes_dims_rope", [4], [2] * 64, [[], [1.5], [True], [2] * 65, (4, 6, 6), 4]),
        ("gate_mlp", False, True, [1, 0, "true"]),
    ],
)
def test_absurd_configs_are_refused(key: str, least: Any, most: Any, absurd: list[Any]) -> None:
    for value in (least, most):
        assert LensConfig.from_dict({key: value, "other": 1}).to_dict() == {**LensConfig().to_dict(), key: value}
    for value in absurd:
        with pytest.raises(UnsupportedCheckpoint) as caught:
            LensConfig.from_dict({key: value}, "folder/config.json")
        expected = f"folder/config.json: {key} is {value}, which a LensTransformer2DModel cannot have"
        assert str(caught.value) == expected


def test_families_add_up_to_the_model() -> None:
    """Parameters by family, counted from the facts; modulation has the published share."""
    sizes: dict[str | None, int] = {}
    for name, shape in lens_tensors(LensConfig()):
        sizes[lens_family(name)] = sizes.get(lens_family(name), 0) + prod(shape)
    blocks = {"img_mod": 14_164_992, "txt_mod": 14_164_992, "attn": 14_164_992 + 4_721_664}
    blocks |= {"img_mlp": 18_874_368, "txt_mlp": 18_874_368, "norm": 6_144 + 256}
    expected = {name: 48 * size for name, size in blocks.items()}
    assert sizes == {**expected, "norm": expected["norm"] + 11_520, "embed": 25_579_904 - 11_520}
    assert sizes["img_mod"] + sizes["txt_mod"] == 1_359_839_232
    assert lens_family("transformer_blocks.0.other.weight") is lens_family("other.weight") is None


#: Names of modules and tensors by the family that they belong to, however their authors spell it.
FAMILIES = {
    "modulation": "layers.0.adaLN_modulation.0 adaln.x x_ada_ln double_stream_modulation_img b.0.mod.1 b.mod1 b.mod",
    "norm": "single_transformer_blocks.0.norm.linear layers.0.LN ln_f.x h.0.ln_1",
    "attn": "transformer_blocks.0.attn.to_q x.SelfAttention.k",
    "mlp": (
        "model.layers.0.mlp.gate_proj transformer_blocks.0.ff.net.0.proj x.ff_context.net x.ffn.0 h_feed_forward.w1 "
        "feedforward.x x.expert.w1 x.experts.0 block.0.layer.1.DenseReluDense.wi h.mlp"
    ),
    "conv": "down_blocks.0.resnets.0.conv1 up.resnets.0.time down.0.downsamplers.0.x conv_in",
    "embed": "model.embed_tokens transformer.wte transformer.wpe shared lm_head proj_in proj_out",
    "other": "something x.offset x.model.y explnation",
}


def test_families_of_other_models() -> None:
    for expected, names in FAMILIES.items():
        for name in names.split():
            assert family(f"{name}.weight", "AnyModel") == family(name.upper(), "AnyModel") == expected, name
    assert family("something.weight", CLASS_NAME) == family("blocks.0.attn.weight", CLASS_NAME) == "other"
