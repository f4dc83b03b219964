"""Whether an error is what quantization explains: SDNQ's own always is, that of a damaged weight is not."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from converter.libraries import load_library
from converter.verification.dequantizing import dequantize
from converter.verification.measures import ratio_db
from converter.verification.nearness import Nearness, compare_errors
from tests.reference import BROKEN, SDNQ_DTYPES

#: The others, once for all their names.
FORMATS = {id(facts): name for name, facts in SDNQ_DTYPES.items() if name not in BROKEN}.values()
Parts = dict[str, torch.Tensor]


def quantize(weight: torch.Tensor, **options: Any) -> tuple[Any, Parts]:
    torch.manual_seed(0)
    dequantizer, parts = load_library("sdnq.quantizer").sdnq_quantize_layer_weight(
        weight.bfloat16(), layer_class_name="Linear", torch_dtype=torch.bfloat16, **options
    )
    return dequantizer, {name: tensor for name, tensor in parts.items() if tensor is not None}


def compare(dequantizer: Any, parts: Parts, original: torch.Tensor) -> Nearness:
    return compare_errors(dequantizer, parts, dequantize(dequantizer, parts), original)


NORMAL = 0.02 * torch.randn(64, 64, generator=torch.Generator().manual_seed(1))
WEIGHTS = (
    {"normal": NORMAL, "sparse": torch.where(NORMAL.abs() > 0.04, NORMAL, torch.zeros(())), "heavy tails": NORMAL**3}
    | {"constant": torch.full((64, 64), 0.3), "zero": torch.zeros(64, 64), "with an offset": 1 + NORMAL / 10}
    | {"tiny": NORMAL * 1e-30, "huge": NORMAL * 1e37}
)
OPTIONS: dict[str, dict[str, Any]] = {"plain": {}, "hadamard": {"use_hadamard": True}}
OPTIONS |= {"matmul in bf16": {"use_quantized_matmul": True, "dequantize_fp32": False}}
OPTIONS |= {"svd": {"use_svd": True, "svd_rank": 8, "svd_steps": 2}, "stochastic": {"use_stochastic_rounding": True}}
OPTIONS |= {"tensor": {"group_size": -2, "dequantize_fp32": False}}


@pytest.mark.parametrize("name", FORMATS)
def test_no_format_of_sdnqs_is_called_far(name: str) -> None:
    """Every format on difficult weights; the common ones with every option on weights of every kind."""
    is_common = name in ("uint4", "int8", "uint8", "bool")
    for option in OPTIONS if is_common else ("plain",):
        for kind in WEIGHTS if is_common else ("sparse", "constant"):
            if option == "svd" and kind == "huge":
                continue  # Sums of squares overflow in SDNQ.
            quantized = quantize(WEIGHTS[kind], weights_dtype=name, **OPTIONS[option])
            assert compare(*quantized, WEIGHTS[kind]).excess <= 1, (option, kind)


def swap(parts: Parts, one: str, other: str) -> None:
    parts[one], parts[other] = parts[other], parts[one]


def flip_scale_byte(parts: Parts) -> None:
    parts["scale"].reshape(-1)[5:6].view(torch.uint8)[1] ^= 1


#: Damages by what they do to the parts.
GARBAGE: dict[str, Callable[[Parts], object]] = {
    "scales twice as large": lambda parts: parts["scale"].mul_(2),
    "scales of zero": lambda parts: parts["scale"].zero_(),
    "negated scales": lambda parts: parts["scale"].neg_(),
    "codes of zero": lambda parts: parts["weight"].zero_(),
    "a flipped byte of a scale": flip_scale_byte,
    "another weight's codes": lambda parts: parts.update(weight=parts["weight"].flip(0)),
    "scale and zero point exchanged": lambda parts: swap(parts, "scale", "zero_point"),
    "exchanged nibbles": lambda parts: parts.update(weight=(parts["weight"] >> 4) | (parts["weight"] << 4)),
}


#: Damages by format: not every one has zero points or nibbles, and where scales are no steps of single groups, a group
#: among many does not show.
DAMAGES = [
    *(("uint4", damage) for damage in GARBAGE),
    *(("uint2", damage) for damage in GARBAGE if "nibbles" not in damage),
    *(("int8", damage) for damage in GARBAGE if "nibbles" not in damage and "zero point" not in damage),
    *(("hadamard", damage) for damage in GARBAGE if "byte" not in damage),
    *(("float8_e4m3fn", damage) for damage in ("scales twice as large", "negated scales", "another weight's codes")),
]


@pytest.mark.parametrize(("name", "damage"), DAMAGES)
def test_garbage_is_far(name: str, damage: str) -> None:
    options = {"weights_dtype": "uint4", "use_hadamard": True} if name == "hadamard" else {"weights_dtype": name}
    dequantizer, parts = quantize(NORMAL, dequantize_fp32=False, **options)
    GARBAGE[damage](parts)
    assert compare(dequantizer, parts, NORMAL).excess > 1


def test_a_source_in_float64_is_left_as_it_is() -> None:
    original = NORMAL.double()
    assert compare(*quantize(NORMAL, weights_dtype="uint4"), original).excess <= 1
    assert torch.equal(original, NORMAL.double())


def test_steps_leave_out_scales_of_zero_and_count_absolute_ones() -> None:
    constant = NORMAL.clone()
    constant[:32] = 0.3
    steps = compare(*quantize(constant, weights_dtype="uint4"), constant).max_error_steps
    assert steps is not None
    assert 0.4 < steps < 0.6
    assert compare(*quantize(WEIGHTS["constant"], weights_dtype="uint4"), WEIGHTS["constant"]).max_error_steps is None
    dequantizer, parts = quantize(NORMAL, weights_dtype="int8")
    parts["scale"].neg_()
    steps = compare(dequantizer, parts, NORMAL).max_error_steps
    assert steps is not None
    assert steps > 200


def test_ratios_at_the_ends_of_the_range() -> None:
    assert ratio_db(1, 0) == ratio_db(0, 0) == math.inf
    assert ratio_db(0, 1) == ratio_db(1, math.inf) == -math.inf
    assert ratio_db(1e-300, 1e300) == pytest.approx(-6000)
    assert math.isnan(ratio_db(1, math.nan))


F4, U4 = {"weights_dtype": "float4_e2m1fn"}, {"weights_dtype": "uint4"}
#: Options of formats whose error has no bound; each changes it.
UNBOUNDED: list[dict[str, Any]] = [
    *({}, {"use_stochastic_rounding": True}, {"dequantize_fp32": False}, {"scale_dtype": "float8_e4m3fn"}),
    *({"use_quantized_matmul": True, "quantized_matmul_dtype": name} for name in (None, "int8")),
    *(F4 | {"group_size": 16}, F4 | {"use_hadamard": True, "hadamard_group_size": 16}),
    *(F4 | {"use_svd": True, "svd_rank": 4, "svd_steps": 1}, U4 | {"use_codebook": True, "codebook_steps": 4}),
    {"weights_dtype": "uint10", "scale_dtype": "uint8", "zero_point_dtype": "float8_e4m3fn"},
]


def test_an_error_is_a_multiple_of_what_explains_it() -> None:
    def rms(tensor: torch.Tensor, *axis: int) -> torch.Tensor:
        return tensor.double().square().mean(axis, keepdim=True).sqrt()

    for options, steps in (({}, 0.55), ({"use_stochastic_rounding": True}, 1.1)):
        dequantizer, parts = quantize(NORMAL, weights_dtype="int8", **options)
        far = compare_errors(dequantizer, parts, NORMAL + 3 * parts["scale"], NORMAL)
        expected = float((3 * parts["scale"] / (steps * parts["scale"] + rms(NORMAL, -1) / 64)).max())
        assert (far.excess, far.max_error_steps) == pytest.approx((expected, 3), 1e-4)
    for options in UNBOUNDED:
        dequantizer, parts = quantize(NORMAL, **{"weights_dtype": "float8_e4m3fn", **options})
        explained = 2 * rms(dequantize(dequantizer, parts) - NORMAL, 0, 1) + rms(NORMAL, 0, 1) / 64
        torch.manual_seed(0)
        excess = compare_errors(dequantizer, parts, NORMAL + 0.01, NORMAL).excess
        assert excess == pytest.approx(0.01 / float(explained), 1e-4), options
