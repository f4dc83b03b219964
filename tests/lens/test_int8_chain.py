"""The int8 chain computes what SDNQ's layers compute, or they compute it themselves."""

from __future__ import annotations

import copy
import io
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_module

from converter.libraries import load_library
from converter.models.lens import int8_chain, int8_rows
from converter.models.lens.attention import LensAttnProcessor
from converter.models.lens.int8_chain import enable_int8_chain, uses_int8_chain
from converter.models.lens.int8_rows import Int8Rows, quantize_gated
from converter.models.lens.rotary import rotations
from tests.lens.int8_chains import CPU, GRID, SMALL, TEXT, check_codes, check_nearness, make, quantize, run
from tests.lens.models import make_adapter


def test_codes_are_those_of_sdnq_on_blocks_of_real_width(wide_quantized: Any) -> None:
    check_codes(wide_quantized, compiles=False)


def test_the_chain_computes_what_sdnq_computes(wide: Any, wide_quantized: Any, made: list[Int8Rows]) -> None:
    check_nearness(wide, wide_quantized, made, compiles=False)


@pytest.mark.long
def test_blocks_are_compiled_with_the_chain_inside(small: Any) -> None:
    products: list[int] = []

    def count(graph: torch.fx.GraphModule, _inputs: Any) -> Any:
        products.append(sum(node.target is torch._int_mm for node in graph.graph.nodes))
        return graph

    for is_enabled in (False, True):
        assert not is_enabled or enable_int8_chain(small, CPU) is None
        expected = run(small)
        compiled = copy.deepcopy(small)
        for block in compiled.transformer_blocks:
            block.compile(backend=count, fullgraph=True)
        assert torch.equal(run(compiled), expected)
        torch.compiler.reset()
    # Both streams have a product less.
    assert products == [10, 8]


@pytest.mark.parametrize("options", [{}, {"weights_dtype": "int4"}, {"weights_dtype": "uint3", "group_size": 32}])
def test_a_joined_product_is_both_products(options: dict[str, Any]) -> None:
    mlp = quantize(make(**SMALL), **options).transformer_blocks[0].img_mlp
    codes, scale = int8_rows._requantize((mlp.w1, mlp.w3))
    parts = [int8_rows._requantize((layer,)) for layer in (mlp.w1, mlp.w3)]
    parameters = load_library("sdnq.utils").get_sdnq_params
    own = [layer.sdnq_dequantizer.re_quantize_matmul(**parameters(layer)) for layer in (mlp.w1, mlp.w3)]
    for expected in (parts, own):
        assert torch.equal(codes, torch.cat([part[0] for part in expected], dim=1))
        assert torch.equal(scale, torch.cat([part[1] for part in expected], dim=1))


def test_rows_of_text_are_padded_and_nothing_else_changes(small: Any, made: list[Int8Rows]) -> None:
    before = {name: tensor.clone() for name, tensor in small.state_dict().items()}
    assert enable_int8_chain(small, CPU) is None
    made.clear()
    run(small)
    tokens = len(TEXT) * GRID[0] * GRID[1]
    assert [len(rows.codes) for rows in made] == [tokens, 128, tokens, 128, tokens, 128, tokens]
    assert [len(rows) for rows in made] == [2, 1, 2, 1, 2, 1, 2]
    # Zeros would have no scale after SwiGLU.
    padding = [part[TEXT[0] :] for rows in made if len(rows) == 1 for part in (rows.codes, rows.scale)]
    assert all(part.eq(1).all() for part in padding)
    after = small.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    stream = io.BytesIO()
    torch.save(small, stream)
    stream.seek(0)
    assert uses_int8_chain(torch.load(stream, weights_only=False))


@pytest.mark.parametrize(
    "options",
    [
        {"dequantize_fp32": True},
        {"use_quantized_matmul": False},
        {"weights_dtype": "int8"},
        {"weights_dtype": "float8_e4m3fn"},
        {"quantized_matmul_dtype": "uint8"},
        {"use_hadamard": True},
        {"use_svd": True, "svd_rank": 8},
        {"use_codebook": True},
        {"scale_dtype": "int8"},
        {"zero_point_dtype": "int8"},
        {"modules_to_not_convert": ["*.txt_mlp.w2.*"]},
    ],
)
def test_other_layers_are_refused(options: dict[str, Any]) -> None:
    model = quantize(make(**SMALL), **options)
    assert "scales in bfloat16" in str(enable_int8_chain(model, CPU))
    assert not uses_int8_chain(model)


def test_models_that_cannot_use_it_say_why(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert enable_int8_chain(make(**SMALL), CPU) == "the transformer is not quantized"
    assert enable_int8_chain(small, CPU) is None
    # Codes that only the multiplied halves get.
    monkeypatch.setattr(int8_chain, "quantize_gated", lambda joined: quantize_gated(-joined))
    assert "of the codes differ from those of SDNQ's layers" in str(enable_int8_chain(small, CPU))
    monkeypatch.undo()
    monkeypatch.setattr(int8_rows, "_round", lambda values: values)
    assert "of the codes differ from those of SDNQ's layers, by up to " in str(enable_int8_chain(small, CPU))
    assert not uses_int8_chain(small)
    monkeypatch.undo()
    monkeypatch.setattr(Int8Rows, "swiglu", lambda self, *layers: self.linear(layers[2]))
    assert str(enable_int8_chain(small, CPU)).startswith("RuntimeError: ")
    monkeypatch.setattr(Int8Rows, "linear", lambda _, layer: torch.ones(1, 256, layer.out_features))
    assert str(enable_int8_chain(small, CPU)).startswith("the outputs of SDNQ's layers differ by ")
    small.transformer_blocks[0].txt_norm2.float()
    assert enable_int8_chain(small, CPU) == "a norm does not compute in bfloat16"


def test_a_triton_kernel_that_cannot_be_compiled_is_a_reason(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = ModuleType("triton.errors")
    # Like Triton's own: no subclass of another one.
    errors.TritonError = type("TritonError", (Exception,), {})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "triton.errors", errors)

    def fail(*_: Any) -> torch.Tensor:
        raise errors.TritonError("out of resource: shared memory")

    monkeypatch.setattr(Int8Rows, "linear", fail)
    assert enable_int8_chain(small, CPU) == "TritonError: out of resource: shared memory"


def hook(block: Any) -> Callable[[], object]:
    handle = block.img_mlp.w3.register_forward_pre_hook(lambda *_: None)
    return lambda: handle.remove()


def hook_output(block: Any) -> Callable[[], object]:
    handle = block.img_mlp.w3.register_forward_hook(lambda *_: None)
    return lambda: handle.remove()


class OtherProcessor(LensAttnProcessor):
    """As users write them, from ours."""


def process(block: Any) -> Callable[[], object]:
    block.attn.set_processor(OtherProcessor())
    return lambda: block.attn.set_processor(LensAttnProcessor())


def offload(block: Any) -> Callable[[], object]:
    add_hook_to_module(block.attn.txt_qkv, AlignDevicesHook(offload=False))
    return lambda: remove_hook_from_module(block.attn.txt_qkv)


def dequantize(block: Any) -> Callable[[], object]:
    layer = block.img_mlp.w2
    how = copy.copy(layer.sdnq_dequantizer)
    layer.sdnq_dequantizer.use_quantized_matmul = False
    return lambda: setattr(layer, "sdnq_dequantizer", how)


@pytest.mark.parametrize(
    ("change", "count"), [(hook, 6), (hook_output, 6), (offload, 6), (dequantize, 6), (process, 5)]
)
def test_layers_that_changed_since_compute_by_themselves(
    change: Callable[[Any], Callable[[], object]], count: int, small: Any, made: list[Int8Rows]
) -> None:
    assert enable_int8_chain(small, CPU) is None
    expected = run(small)
    made.clear()
    undo = change(small.transformer_blocks[0])
    assert torch.equal(run(small), expected)
    assert len(made) == count
    undo()
    made.clear()
    run(small)
    assert len(made) == 7


def test_adapters_few_rows_and_gradients_leave_it_to_sdnq(small: Any, made: list[Int8Rows]) -> None:
    plain = copy.deepcopy(small)
    assert enable_int8_chain(small, CPU) is None
    made.clear()
    assert torch.equal(run(small, (3, 5)), run(plain, (3, 5)))
    # 30 rows of the image are too few.
    assert len(made) == 3
    made.clear()
    block = small.transformer_blocks[0]
    states, text = torch.randn(1, 40, 192).bfloat16(), torch.randn(1, 0, 192).bfloat16()
    block(states, text, torch.randn(1, 192).bfloat16(), rotations((5, 8), 0, small.config.axes_dims_rope, CPU))
    assert not made
    for model in (small, plain):
        model.load_lora_adapter(make_adapter(make(**SMALL)))
    assert torch.equal(run(small), run(plain))
    # Adapters are in the image's projections.
    assert len(made) == 5
