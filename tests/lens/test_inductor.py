"""What Inductor, torch's own compiler, makes of the transformer and of the int8 chain.

The tests are in one file, and so in one process, because it takes long to start.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from converter.libraries import load_library
from converter.models.lens import int8_chain
from converter.models.lens.int8_chain import Int8Chain, enable_int8_chain
from converter.models.lens.int8_rows import Int8Rows, quantize_modulated
from tests.conftest import Lensconv
from tests.forms import accepted
from tests.generations import draw, pixels
from tests.lens.int8_chains import CPU, EQUAL_CODES, check_codes, check_nearness
from tests.lens.models import TOLERANCE, distance, golden, run
from tests.test_compiling import latents, load

# torch's own, from a module that its compiler imports.
pytestmark = [
    pytest.mark.long,
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
]


def test_the_whole_model() -> None:
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


def test_compiled_blocks_draw_the_same_image(tiny_repo: Path, tmp_path: Path, lensconv: Lensconv) -> None:
    """By torch's own compiler; all that can differ is the order of sums."""
    torch.compiler.reset()
    try:
        for kind in ("none", "blocks"):
            file = tmp_path / f"{kind}.png"
            outcome = draw(lensconv, tiny_repo, file, "--dtype", "float32", "--compile", kind)
            assert (outcome.code, accepted(outcome.result, "generate")) == (0, []), outcome.stderr
            assert ("compiling the transformer's block" in outcome.stderr) == (kind == "blocks")
            assert outcome.result["settings"]["compile"] == kind
            with Image.open(file) as image:
                assert json.loads(image.text["lensconv"])["compile"] == kind  # type: ignore[attr-defined]
        assert np.abs(pixels(tmp_path / "blocks.png") - pixels(tmp_path / "none.png")).max() <= 1
        expected, found = (
            latents(load(tiny_repo, compiles=compiles), prompt="a red cube", height=64, width=96, guidance_scale=5.0)
            for compiles in (False, True)
        )
        assert 0 < (found - expected).norm() <= 1e-5 * expected.norm()
    finally:
        torch.compiler.reset()


def test_codes_are_those_of_sdnq_on_blocks_of_real_width(wide_quantized: Any) -> None:
    check_codes(wide_quantized, compiles=True)


def test_the_chain_is_as_near_to_float32_as_sdnq(wide: Any, wide_quantized: Any, made: list[Int8Rows]) -> None:
    check_nearness(wide, wide_quantized, made, compiles=True)


def add_and_quantize(residual: torch.Tensor, states: torch.Tensor, *others: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """An operation as before the norms of a block, and what follows it; a compiler makes one kernel of both."""
    return quantize_modulated(torch.addcmul(states, residual, residual), *others)


def test_what_a_compiler_fuses_with_the_operation_before_gives_the_same_codes() -> None:
    generator = torch.Generator().manual_seed(2)
    residual, states = torch.randn(2, 2, 96, 1536, generator=generator).bfloat16()
    weight = torch.randn(1536, generator=generator).bfloat16()
    shift, scale = torch.randn(2, 2, 1, 1536, generator=generator).bfloat16()
    expected = add_and_quantize(residual, states, weight, 1e-6, shift, scale)
    found = torch.compile(add_and_quantize)(residual, states, weight, 1e-6, shift, scale)
    differences = (found[0].int() - expected[0].int()).abs()
    assert int(differences.max()) <= 1
    assert float((differences == 0).double().mean()) >= EQUAL_CODES


def test_the_check_is_of_what_sdnq_does_without_its_compiler(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    dequantizer = load_library("sdnq.dequantizer")
    # On a GPU, SDNQ does this when it is imported; its weights then get other codes.
    compiled = torch.compile(dequantizer.re_quantize_matmul, fullgraph=True, dynamic=False)
    monkeypatch.setattr(dequantizer, "re_quantize_matmul_compiled", compiled)
    assert enable_int8_chain(small, CPU) is None
    # The chain is compiled where SDNQ compiles.
    monkeypatch.setattr(int8_chain, "_disagreement", lambda *_: None)
    for answer in (None, False, True):
        monkeypatch.setattr(int8_chain, "sdnq_compiles", lambda answer=answer: answer)
        assert enable_int8_chain(small, CPU) is None
        assert small.transformer_blocks[0].int8_chain == Int8Chain(bool(answer))
