"""lensconv's kernels, for the CPU and for devices, against SDNQ, byte for byte, on groups of every kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from converter.checkpoint.layout import TensorSpec
from converter.conversion.execution.randomness import seeded_randomness
from converter.conversion.kernels import fused, on_device
from converter.conversion.kernels.devices import Device
from converter.conversion.kernels.host import HOST
from converter.conversion.kernels.sdnq import as_bytes, quantize_with_sdnq, seeded_generator
from converter.conversion.kernels.selfcheck import sample_weights
from converter.conversion.options import ConvertOptions
from converter.conversion.planner_process import plan_here
from converter.conversion.planning.methods import choose_method
from converter.conversion.planning.plan import PlannedModule
from converter.conversion.recipe.recipe import Recipe
from converter.conversion.request import open_request
from converter.models.classes import TORCH_DTYPES
from tests.cases import check_cases
from tests.cuda_arithmetic import CudaArithmetic
from tests.reference import FURTHER_RECIPES

#: Bits of the largest finite float32 that stays finite in bfloat16.
LARGEST = 0x7F7F7FFF


def options(*, dequantize_fp32: bool) -> dict[str, Any]:
    """Arguments of SDNQ for the kernel's case."""
    return {
        "weights_dtype": "uint4",
        "layer_class_name": "Linear",
        "dequantize_fp32": dequantize_fp32,
        "torch_dtype": "bfloat16",
        "use_dynamic_quantization": False,
    }


def assert_same(bits: NDArray[np.uint32], *, round_weights: bool, round_scales: bool) -> None:
    """Assert that the kernels and SDNQ agree on groups of 64 numbers, given by their bits."""
    # Two groups a row, since SDNQ takes a row of one group by another path.
    rows = np.resize(bits.reshape(-1, fused.GROUP), (bits.size // fused.GROUP // 2 * 2, fused.GROUP))
    rows = np.ascontiguousarray(rows).reshape(-1, 2 * fused.GROUP)
    expected = quantize_with_sdnq(
        rows.reshape(-1).view(np.uint8),
        "F32",
        rows.shape,
        options(dequantize_fp32=not round_scales),
        from_float32=not round_weights,
        device=torch.device("cpu"),
    )
    parts, largest = fused.quantize_uint4(rows.reshape(-1), round_weights=round_weights, round_scales=round_scales)
    assert largest == int((rows & 0x7FFFFFFF).max())
    assert parts.keys() == {"weight", "scale", "zero_point"}
    for part, found in parts.items():
        np.testing.assert_array_equal(expected.bytes_of(part), found.view(np.uint8), err_msg=part)
    source = torch.from_numpy(rows.reshape(-1).view(np.float32))
    with CudaArithmetic():
        tensors, is_finite = on_device.quantize_uint4(source, round_weights=round_weights, round_scales=round_scales)
    assert is_finite
    assert tensors.keys() == parts.keys()
    for part, tensor in tensors.items():
        np.testing.assert_array_equal(expected.bytes_of(part), as_bytes(tensor), err_msg=f"{part} on a device")


def finite_bits(values: NDArray[Any]) -> NDArray[np.uint32]:
    """Bits of numbers as float32, those that would not be finite in bfloat16 replaced by the largest that is."""
    with np.errstate(over="ignore"):
        bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    sign = bits & np.uint32(0x80000000)
    return np.where((bits & 0x7FFFFFFF) > LARGEST, sign | np.uint32(LARGEST), bits).astype(np.uint32)


variants = pytest.mark.parametrize(
    ("round_weights", "round_scales"), [(True, True), (True, False), (False, True), (False, False)]
)


@variants
@settings(max_examples=40)
@given(
    numbers=arrays.arrays(
        np.float32,
        (2, fused.GROUP),
        elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
        fill=st.sampled_from([0.0, -0.0, 1.0]),
    )
)
def test_groups_that_hypothesis_finds(numbers: NDArray[np.float32], round_weights: bool, round_scales: bool) -> None:
    assert_same(finite_bits(numbers), round_weights=round_weights, round_scales=round_scales)


#: A power of ten, from denormal to overflowing, an offset, how many different numbers, and a seed.
KINDS = st.tuples(
    st.integers(-44, 38), st.sampled_from([0.0, 1.0, 1e6]), st.sampled_from([1, 2, 8, 10**6]), st.integers(0, 2**32 - 1)
)


@variants
@settings(max_examples=60)
@given(groups=st.lists(KINDS, min_size=2, max_size=8))
def test_groups_of_every_kind(groups: list[Any], round_weights: bool, round_scales: bool) -> None:
    """A group has at most so many different numbers, so that it has ties, or is constant."""
    drawn = [
        (np.random.default_rng(seed).integers(-count, count, fused.GROUP, endpoint=count > 1) / count + offset)
        * 10.0**power
        for power, offset, count, seed in groups
    ]
    assert_same(finite_bits(np.concatenate(drawn)), round_weights=round_weights, round_scales=round_scales)


@variants
def test_many_groups_of_any_finite_bits(round_weights: bool, round_scales: bool) -> None:
    generator = np.random.default_rng(0)
    bits = generator.integers(0, 2**32, 4096 * fused.GROUP, dtype=np.uint64).astype(np.uint32)
    assert_same(finite_bits(bits.view(np.float32)), round_weights=round_weights, round_scales=round_scales)


@variants
@pytest.mark.parametrize("groups", [2, 62, 64, 66, 130])
def test_blocks_that_are_not_full(groups: int, round_weights: bool, round_scales: bool) -> None:
    bits = sample_weights().reshape(-1)[: groups * fused.GROUP]
    assert_same(bits, round_weights=round_weights, round_scales=round_scales)


@variants
@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64"])
def test_kernels_agree_on_every_dtype_and_leave_the_source(dtype: str, round_weights: bool, round_scales: bool) -> None:
    numbers = np.random.default_rng(1).standard_t(1.2, 512 * fused.GROUP).clip(-6e4, 6e4)
    numbers[::192], numbers[1::192] = 4384, -11
    source = torch.from_numpy(numbers).to(TORCH_DTYPES[dtype])
    data = as_bytes(source.clone())
    choices: dict[str, Any] = {"round_weights": round_weights, "round_scales": round_scales}
    expected, _ = fused.quantize_uint4(fused.widen(data, dtype), **choices)
    with CudaArithmetic():
        found = on_device.quantize_bytes(
            data,
            dtype,
            **choices,
            device=Device(HOST.torch_device, "cpu"),
            where="x",
            buffer=lambda _, size: np.empty(size, np.uint8),
        )
    assert found is not None
    for part, values in expected.items():
        np.testing.assert_array_equal(values.view(np.uint8), found[part], err_msg=part)
    np.testing.assert_array_equal(data, as_bytes(source))


@given(bits=arrays.arrays(np.uint32, st.integers(1, 300)))
def test_rounding_to_bfloat16_is_torchs(bits: NDArray[np.uint32]) -> None:
    rounded = np.empty(bits.size, np.uint16)
    largest = fused.round_to_bfloat16(bits, rounded)
    assert largest == int((bits & 0x7FFFFFFF).max())
    expected = torch.from_numpy(bits.view(np.float32).copy()).bfloat16()
    numbers = (bits & 0x7FFFFFFF) <= fused.INFINITE
    np.testing.assert_array_equal(rounded[numbers], expected.view(torch.int16).numpy().view(np.uint16)[numbers])


@pytest.mark.parametrize("round_weights", [True, False])
@pytest.mark.parametrize("part", ["weight", "scale", "zero_point"])
def test_a_kernel_that_differs_in_one_part_is_noticed(
    part: str, round_weights: bool, lens_source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = open_request(lens_source, None, ConvertOptions())
    assert plan_here(request.main).kernel_agrees
    quantize = fused.quantize_uint4

    def differing(*arguments: Any, **choices: Any) -> Any:
        parts, largest = quantize(*arguments, **choices)
        parts[part].reshape(-1).view(np.uint8)[0] ^= choices["round_weights"] == round_weights
        return parts, largest

    monkeypatch.setattr(fused, "quantize_uint4", differing)
    assert not plan_here(request.main).kernel_agrees


def test_how_modules_are_quantized() -> None:
    """Of a module of 64 x 128 that is otherwise as ``options`` has it.

    SDNQ does not round scales where their dtype is none, whatever dequantize_fp32 says.
    """

    def outcome(case: dict[str, Any]) -> str:
        shape = tuple(case.get("shape", (64, 128)))
        module = PlannedModule("m", "m.weight", shape, {**options(dequantize_fp32=False), "group_size": 0, **case})
        parts = {"scale": TensorSpec("m.scale", "BF16", tuple(case.get("scale", (shape[0], 2, 1))))}
        return choose_method(module, parts, use_fused=case.get("use_fused", True)).kind.name

    check_cases("module_kinds.jsonl", outcome)
    for shape, multiple in (((64, 96), 4), ((64, 6, 3), 64), ((64, 128), 1)):
        module = PlannedModule("m", "m.weight", shape, options(dequantize_fp32=True) | {"weights_dtype": "int8"})
        assert choose_method(module, {"scale": TensorSpec("m.scale", "F32", (64, 1))}).rows_multiple == multiple


@pytest.mark.parametrize("bits", [0x7F800000, 0xFF800000, 0x7FC00000, 0xFFC00001, 0x7F7F8000, 0xFF7FFFFF])
def test_what_is_not_finite_is_reported(bits: int) -> None:
    weights = np.zeros(fused.GROUP * 3, np.uint32)
    weights[100] = bits
    _, largest = fused.quantize_uint4(weights, round_weights=True, round_scales=True)
    assert largest >= fused.OVERFLOWS_BFLOAT16
    _, is_finite = on_device.quantize_uint4(
        torch.from_numpy(weights.view(np.float32)), round_weights=True, round_scales=True
    )
    assert not is_finite
    assert fused.round_to_bfloat16(weights, np.empty(weights.size, np.uint16)) >= fused.OVERFLOWS_BFLOAT16


def test_random_numbers_continue_and_the_generator_is_restored(
    lens_source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_rng_state()
    with seeded_generator(3, HOST.torch_device, None) as encode_state:
        first, state, rest = torch.rand(4), encode_state(), torch.rand(4)
    with seeded_generator(3, HOST.torch_device, None):
        assert torch.equal(torch.rand(4), first)
    with seeded_generator(3, HOST.torch_device, state):
        assert torch.equal(torch.rand(4), rest)
    generators = torch.Generator(), torch.Generator()
    monkeypatch.setattr(torch.cuda, "default_generators", generators)
    recipe = Recipe("x", FURTHER_RECIPES["stochastic"])
    request = open_request(lens_source, recipe, ConvertOptions())
    with seeded_randomness(request.main, {}, Device(torch.device("cuda:1"), "Card")):
        assert [generator.initial_seed() == recipe.seed for generator in generators] == [False, True]
    assert torch.equal(torch.get_rng_state(), before)


def test_widening_refuses_other_dtypes() -> None:
    with pytest.raises(ValueError, match="I8"):
        fused.widen(np.zeros(8, np.uint8), "I8")
