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
from tests.cases import check_cases

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


def test_families_of_other_models() -> None:
    """Of names of modules and tensors, however their authors spell them."""

    def outcome(name: str) -> str:
        found = family(f"{name}.weight", "AnyModel")
        assert family(name.upper(), "AnyModel") == found
        return found

    check_cases("families.jsonl", outcome)
    assert family("something.weight", CLASS_NAME) == family("blocks.0.attn.weight", CLASS_NAME) == "other"
