"""Lens without torch and Lens from modules are the same model; its figures are the published ones."""

from __future__ import annotations

from math import prod

import pytest
import torch

from converter.errors import UnsupportedCheckpoint
from converter.models.families import family
from converter.models.lens.layout import CLASS_NAME, LensConfig, infer_config, lens_family, lens_tensors
from converter.models.lens.transformer import LensTransformer2DModel

CONFIGS = [
    LensConfig(),
    LensConfig(num_layers=1, num_attention_heads=2, enc_hidden_dim=24, selected_layer_index=(0, 1, 2)),
    LensConfig(num_layers=3, attention_head_dim=16, num_attention_heads=3, in_channels=16, out_channels=4),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_tensors_are_those_of_the_modules(config: LensConfig) -> None:
    with torch.device("meta"):
        model = LensTransformer2DModel(**config.to_dict())
    assert list(lens_tensors(config)) == [(name, tuple(tensor.shape)) for name, tensor in model.state_dict().items()]


def test_the_default_config_is_the_published_one() -> None:
    with torch.device("meta"):
        config = LensTransformer2DModel().config
    registered = {key: list(value) if isinstance(value, tuple) else value for key, value in config.items()}
    assert {key: registered[key] for key in LensConfig().to_dict()} == LensConfig().to_dict()


@pytest.mark.parametrize("config", [LensConfig(), LensConfig(num_layers=2, num_attention_heads=3, enc_hidden_dim=64)])
def test_a_config_can_be_read_off_the_shapes(config: LensConfig) -> None:
    inferred = infer_config(dict(lens_tensors(config)))
    assert inferred is not None
    assert list(lens_tensors(inferred)) == list(lens_tensors(config))


def test_nothing_is_read_off_other_models() -> None:
    tensors = dict(lens_tensors(LensConfig(num_layers=2)))
    assert infer_config({}) is None
    assert infer_config({"x.weight": (3, 4)}) is None
    assert infer_config({**tensors, "extra.weight": (3, 4)}) is None
    assert infer_config({name: shape for name, shape in tensors.items() if "proj_out" not in name}) is None
    assert infer_config({**tensors, "img_in.weight": (3,)}) is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_layers", 10**9),
        ("num_layers", "48"),
        ("num_layers", True),
        ("num_layers", -1),
        ("attention_head_dim", 0),
        ("axes_dims_rope", []),
        ("axes_dims_rope", [1.5]),
        ("selected_layer_index", [5] * 65),
        ("gate_mlp", 1),
    ],
)
def test_absurd_configs_are_refused(key: str, value: object) -> None:
    with pytest.raises(UnsupportedCheckpoint, match=key):
        LensConfig.from_dict({key: value})


def test_variants_that_nobody_released_are_refused() -> None:
    with pytest.raises(UnsupportedCheckpoint, match="gate_mlp"):
        list(lens_tensors(LensConfig(gate_mlp=False)))


def test_families_add_up_to_the_published_shares() -> None:
    sizes: dict[str, int] = {}
    for name, shape in lens_tensors(LensConfig()):
        key = lens_family(name)
        assert key is not None, name
        sizes[key] = sizes.get(key, 0) + prod(shape)
    assert lens_family("transformer_blocks.0.other.weight") is None
    assert sizes["img_mod"] + sizes["txt_mod"] == 1_359_839_232
    assert set(sizes) == {"img_mod", "txt_mod", "attn", "img_mlp", "txt_mlp", "embed", "norm"}


@pytest.mark.parametrize(
    ("name", "model", "expected"),
    [
        ("transformer_blocks.0.attn.to_q.weight", "AnyModel", "attn"),
        ("single_transformer_blocks.0.norm.linear.weight", "AnyModel", "norm"),
        ("layers.0.adaLN_modulation.0.weight", "AnyModel", "modulation"),
        ("double_stream_modulation_img.linear.weight", "AnyModel", "modulation"),
        ("model.layers.0.mlp.gate_proj.weight", "AnyModel", "mlp"),
        ("transformer_blocks.0.ff.net.0.proj.weight", "AnyModel", "mlp"),
        ("model.embed_tokens.weight", "AnyModel", "embed"),
        ("down_blocks.0.resnets.0.conv1.weight", "AnyModel", "conv"),
        ("something.weight", "AnyModel", "other"),
        ("something.weight", CLASS_NAME, "other"),
    ],
)
def test_families_of_other_models(name: str, model: str, expected: str) -> None:
    assert family(name, model) == expected
