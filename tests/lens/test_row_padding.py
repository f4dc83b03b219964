"""Rows that are added to the text stream, so that few kernels are compiled for quantized layers."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from converter.lens import LensTransformer2DModel
from converter.libraries import load_library
from converter.models.lens import quantized
from converter.models.lens.rotary import rotations
from tests.lens.models import make_adapter, run
from tests.lens.pipelines import PROMPT, draw, load, noise
from tests.lens.test_adapters import set_matmul, unquantized


@pytest.fixture
def model(lens_output: Path) -> Any:
    return LensTransformer2DModel.from_pretrained(lens_output)


@pytest.fixture
def padding(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Turn the padding of rows on or off; on a CPU it is off."""
    return lambda on: monkeypatch.setattr(quantized, "is_tuned_to_rows", lambda _: on)


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> set[tuple[int, ...]]:
    """Rows, depth and columns of the products of integers that SDNQ computes."""
    found: set[tuple[int, ...]] = set()
    multiply = load_library("sdnq.kernel_wrappers").int_scaled_mm_func

    def noted(a: torch.Tensor, b: torch.Tensor, *scales: torch.Tensor, **options: Any) -> torch.Tensor:
        found.add((*a.shape, b.shape[1]))
        result: torch.Tensor = multiply(a, b, *scales, **options)
        return result

    monkeypatch.setattr("sdnq.layers.linear.linear_int8.int_scaled_mm_func", noted)
    return found


def text_inputs(tokens: int, batch: int = 1) -> Any:
    generator = torch.Generator().manual_seed(tokens)
    features = [torch.randn(batch, tokens, 64, generator=generator) for _ in range(4)]
    return {
        "hidden_states": torch.randn(batch, 24, 128, generator=generator),
        "encoder_hidden_states": features,
        "mask": None,
        "timestep": torch.full((batch,), 0.5),
        "grid": (4, 6),
    }


def test_prompts_of_all_lengths_need_few_kernels(
    model: Any, padding: Callable[[bool], None], products: set[tuple[int, ...]]
) -> None:
    """One for each weight and each multiple of 64 rows, where kernels are compiled."""
    assert [quantized.is_tuned_to_rows(torch.device(name)) for name in ("cpu", "cuda", "xpu")] == [False, True, True]
    padding(True)
    block = model.transformer_blocks[0]
    states, temb = torch.randn(1, 8, 192), torch.randn(1, 192)
    for tokens in range(33, 301, 6):
        with torch.no_grad():
            rotary = rotations((2, 4), tokens, model.config.axes_dims_rope, torch.device("cpu"))
            block(states, torch.randn(1, tokens, 192), temb, rotary)
    assert {rows for rows, *_ in products} == {64, 128, 192, 256, 320}
    assert {shape[1:] for shape in products} == {(192, 576), (192, 192), (192, 512), (512, 192)}


@pytest.mark.parametrize(
    ("tokens", "batch", "rows"), [(31, 1, set()), (32, 1, {64}), (64, 1, {64}), (40, 2, {128, 48})]
)
def test_padding_changes_nothing(
    tokens: int, batch: int, rows: set[int], model: Any, padding: Callable[[bool], None], products: Any
) -> None:
    """Fewer than 32 rows are dequantized; those of the image, 24 a sample, stay as they are."""
    expected = run(model, text_inputs(tokens, batch))
    products.clear()
    padding(True)
    assert torch.equal(run(model, text_inputs(tokens, batch)), expected)
    assert {found for found, *_ in products} == rows


def test_padding_of_a_whole_run(padding: Callable[[bool], None], products: Any, tiny_release: Path) -> None:
    """In offloaded parts, too."""
    pipe = load(tiny_release)
    options = {"prompt": f"{PROMPT}, " * 4, "negative_prompt": "dog", "latents": noise()}
    expected = draw(pipe, **options)
    padding(True)
    for offload in (None, "enable_sequential_cpu_offload"):
        products.clear()
        if offload:
            pipe = load(tiny_release)
            getattr(pipe, offload)(device="cpu")
        torch.testing.assert_close(draw(pipe, **options), expected, rtol=1e-5, atol=0)
        assert {rows % 64 for rows, *_ in products} == {0, 48}


def test_padding_under_what_users_do(
    model: Any, padding: Callable[[bool], None], products: Any, tmp_path: Path
) -> None:
    """An adapter, quantized products that they turn off and on again, saving, copies, and compiled blocks."""
    compiled = pickle.loads(pickle.dumps(model))  # noqa: S301
    compiled.compile_repeated_blocks(fullgraph=True, backend="eager")
    model.save_pretrained(tmp_path)
    saved = LensTransformer2DModel.from_pretrained(tmp_path)
    saved.load_lora_adapter(make_adapter(unquantized(model)))
    expected = [run(each, text_inputs(100)) for each in (model, model, saved)]
    padding(True)
    products.clear()
    set_matmul(model, False)
    set_matmul(model, True)
    try:
        for each, plain in zip((model, compiled, saved), expected, strict=True):
            assert torch.equal(run(each, text_inputs(100)), plain)
    finally:
        torch.compiler.reset()
    assert {rows for rows, *_ in products} == {128}
