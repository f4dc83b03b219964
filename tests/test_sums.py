"""The sums of the scan, against SDNQ's dequantizer and NumPy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from converter.checkpoint.header import TensorEntry
from converter.checkpoint.layout import Slot, TensorSpec
from converter.checkpoint.source import SourceTensor
from converter.conversion.execution.jobs import Output, QuantizeJob
from converter.conversion.kernels.sdnq import QuantizedParts, quantize_with_sdnq
from converter.conversion.planning.methods import Kind, Method, choose_method
from converter.conversion.planning.plan import PlannedModule
from converter.measurement.sensitivity import integers
from converter.measurement.sensitivity.integers import integer_form
from converter.measurement.sensitivity.sums import Comparison, Squares
from converter.models.classes import SAFETENSORS_NAMES
from converter.verification.dequantizing import dequantize

#: Integers of SDNQ that lensconv restores itself.
INTEGERS = [f"{sign}int{bits}" for sign in ("", "u") for bits in range(2, 9)]


def quantize(weight: NDArray[np.float32], **options: Any) -> tuple[QuantizedParts, QuantizeJob]:
    """Quantize a matrix with SDNQ; also the job that would do that."""
    arguments = {"layer_class_name": "Linear", "torch_dtype": "bfloat16", "use_dynamic_quantization": False, **options}
    data = weight.reshape(-1).view(np.uint8)
    result = quantize_with_sdnq(data, "F32", weight.shape, arguments, from_float32=True, device=torch.device("cpu"))
    entry = TensorEntry("x.weight", "F32", weight.shape, 0, data.size)
    outputs = {
        part: Output(TensorSpec(part, SAFETENSORS_NAMES[tensor.dtype], tuple(tensor.shape)), Slot("", 0, tensor.nbytes))
        for part, tensor in result.parts.items()
    }
    module = PlannedModule("x", "x.weight", weight.shape, arguments)
    job = QuantizeJob(SourceTensor(entry, Path("x"), 0), outputs, module, Method(Kind.ROWS))
    return result, replace(job, method=choose_method(module, {part: one.spec for part, one in outputs.items()}))


def sums(comparison: Comparison) -> tuple[float, float, float]:
    """All sums of a comparison."""
    return comparison.noise, comparison.dot, comparison.length


@settings(max_examples=150)
@given(
    name=st.sampled_from(INTEGERS),
    dequantize_fp32=st.booleans(),
    group=st.sampled_from([-1, 0, 8, 24, 64, 200]),
    rows=st.integers(2, 5),
    width=st.sampled_from([8, 64, 200, 512, 520, 1544]),
    power=st.integers(-30, 30),
    seed=st.integers(0, 2**32 - 1),
)
def test_integers_are_restored_as_sdnq_restores_them(
    name: str, dequantize_fp32: bool, group: int, rows: int, width: int, power: int, seed: int
) -> None:
    numbers = np.random.default_rng(seed).standard_normal((rows * 8, width), dtype=np.float32)
    numbers[::3] *= np.float32(10.0**power)
    numbers[1::7] = numbers[1::7, :1]
    result, job = quantize(numbers, weights_dtype=name, group_size=group, dequantize_fp32=dequantize_fp32)
    form = integer_form(job)
    assert form is not None
    restored = dequantize(result.dequantizer, result.parts).numpy().reshape(-1)
    parts = {part: result.bytes_of(part) for part in result.parts}
    exact, found, expected = Comparison(width), Comparison(width), Comparison(width)
    exact.add_integers(restored, parts, form)
    assert exact.noise == 0
    found.add_integers(numbers.reshape(-1), parts, form)
    expected.add(numbers.reshape(-1), restored)
    assert sums(found) == sums(expected)


@settings(max_examples=50)
@given(
    width=st.integers(1, 700),
    rows=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    rest=st.integers(0, 699),
    dtype=st.sampled_from([np.float32, np.float64]),
    seed=st.integers(0, 2**32 - 1),
)
def test_sums_are_those_of_numpy_whatever_the_pieces(
    width: int, rows: list[int], rest: int, dtype: type[np.floating[Any]], seed: int
) -> None:
    generator = np.random.default_rng(seed)
    size = sum(rows) * width + rest % width
    original = generator.standard_normal(size).astype(dtype)
    restored = (original + 0.1 * generator.standard_normal(size)).astype(np.float32)
    whole, pieces = (Comparison(width), Squares(width)), (Comparison(width), Squares(width))
    whole[0].add(original, restored)
    whole[1].add(original)
    stops = [*np.cumsum(rows) * width, size]
    for start, stop in zip([0, *stops[:-1]], stops, strict=True):
        pieces[0].add(original[start:stop], restored[start:stop])
        pieces[1].add(original[start:stop])
    assert (*sums(whole[0]), whole[1].total) == (*sums(pieces[0]), pieces[1].total)
    wanted, got = original.astype(np.float64), restored.astype(np.float64)
    expected = [((got - wanted) ** 2).sum(), (wanted * got).sum(), (got**2).sum(), (wanted**2).sum()]
    scale = (wanted**2).sum() + (got**2).sum()
    assert (*sums(whole[0]), whole[1].total) == pytest.approx(expected, rel=1e-12, abs=1e-14 * float(scale))


@pytest.mark.parametrize("numbers", [1, 9])
def test_the_noise_of_each_input_is_that_of_its_columns(numbers: int) -> None:
    """Of a convolution, an input has a column for each number of its kernel."""
    generator = np.random.default_rng(0)
    original = generator.standard_normal((12, 5, numbers)).astype(np.float32)
    restored = original + generator.standard_normal(original.shape).astype(np.float32)
    comparison = Comparison(5 * numbers)
    comparison.add(original.reshape(-1), restored.reshape(-1))
    expected = ((restored.astype(np.float64) - original) ** 2).sum((0, 2))
    found = comparison.noise_by_column(numbers)
    assert (found.dtype.name, found.shape) == ("float32", (5,))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"weights_dtype": "int8", "layer_class_name": "Embedding"},
        {"weights_dtype": "int8", "group_size": -2},
        {"weights_dtype": "int4", "use_hadamard": True},
        {"weights_dtype": "uint4", "use_codebook": True, "codebook_steps": 1},
        {"weights_dtype": "uint4", "scale_dtype": "uint8"},
        {"weights_dtype": "uint4", "torch_dtype": "float16", "dequantize_fp32": False},
        {"weights_dtype": "float8_e4m3fn"},
        {"weights_dtype": "int1"},
        {"weights_dtype": "int9"},
        {"weights_dtype": "int16"},
    ],
    ids=repr,
)
def test_sdnq_restores_everything_else(options: dict[str, Any]) -> None:
    numbers = np.random.default_rng(0).standard_normal((64, 256), dtype=np.float32)
    assert integer_form(quantize(numbers, **options)[1]) is None


def test_sdnq_restores_what_lensconv_would_restore_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with another version of SDNQ, whose packing or arithmetic is not known."""
    _, job = quantize(np.ones((64, 256), np.float32), weights_dtype="uint5")
    assert integer_form(job) is not None
    table = integers._table
    integers._form.cache_clear()
    monkeypatch.setattr(integers, "_table", lambda found: table(found) ^ np.uint64(1))
    assert integer_form(job) is None
    integers._form.cache_clear()
