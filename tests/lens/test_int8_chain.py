"""The int8 chain computes what SDNQ's layers compute, or they compute it themselves."""

from __future__ import annotations

import copy
import io
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_module

from converter.libraries import load_library
from converter.models.lens import int8_chain, int8_rows
from converter.models.lens.attention import LensAttnProcessor
from converter.models.lens.int8_chain import Int8Chain, enable_int8_chain, uses_int8_chain
from converter.models.lens.int8_rows import Int8Rows, compiled_if, quantize_gated, quantize_modulated
from converter.models.lens.rotary import rotations
from converter.models.lens.transformer import LensTransformer2DModel
from tests.lens.models import make_adapter
from tests.reference import LENS_OPTIONS

CPU = torch.device("cpu")
#: Parts of the codes that must be equal, and how much larger the error may be; from the issue.
EQUAL_CODES, LARGER_ERROR = 0.999, 1.02
#: Enough of the image and of the texts for more than one block of any kernel; the second sample has no text.
GRID, TEXT = (8, 12), (80, 0)
SMALL = {"num_layers": 2, "num_attention_heads": 3, "enc_hidden_dim": 64, "selected_layer_index": (0,)}
STREAMS = ("img", "txt")


def make(**config: Any) -> Any:
    """A model with norms and modulations that do something."""
    torch.manual_seed(0)
    model = LensTransformer2DModel(**config).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def quantize(model: Any, **options: Any) -> Any:
    quantizer = load_library("sdnq.quantizer")
    config = quantizer.SDNQConfig(**{**LENS_OPTIONS, **options})
    return quantizer.sdnq_post_load_quant(copy.deepcopy(model).bfloat16(), quantization_config=config)


def run(model: Any, grid: tuple[int, int] = GRID) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    config, tokens = model.config, grid[0] * grid[1]
    # Channels of real models differ in size.
    scales = torch.exp(torch.randn(config.in_channels, generator=generator))
    latents = scales * torch.randn(len(TEXT), tokens, config.in_channels, generator=generator)
    features = [
        torch.randn(len(TEXT), max(TEXT), config.enc_hidden_dim, generator=generator)
        for _ in config.selected_layer_index
    ]
    with torch.no_grad():
        sample = model(
            latents.to(model.dtype),
            [feature.to(model.dtype) for feature in features],
            timestep=torch.full((len(TEXT),), 0.7),
            img_shapes=[(1, *grid)],
            text_lengths=TEXT,
        ).sample
    return sample.float()


@pytest.fixture(scope="module")
def original() -> Any:
    """Two blocks of real width in float32."""
    return make(num_layers=2)


@pytest.fixture(scope="module")
def quantized(original: Any) -> Any:
    return quantize(original)


@pytest.fixture
def small() -> Any:
    return quantize(make(**SMALL))


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Int8Rows]:
    """What the chain makes of activations."""
    rows: list[Int8Rows] = []
    modulate = Int8Chain.modulate

    def spy(*given: Any, **named: Any) -> Int8Rows:
        rows.append(modulate(*given, **named))
        return rows[-1]

    monkeypatch.setattr(Int8Chain, "modulate", spy)
    return rows


@contextmanager
def recorded(block: Any) -> Iterator[dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    """Input and output of the modules of a block, by name."""
    found: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    handles = [
        module.register_forward_hook(lambda _, given, output, name=name: found.update({name: (given[0], output)}))
        for name, module in block.named_modules()
        if name and not name.endswith("attn")
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def sdnq_codes(states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    codes, scale = load_library("sdnq.layers.linear.linear_int8").quantize_int_mm_input(states, dtype=torch.bfloat16)
    return codes, scale


def assert_same_codes(found: tuple[torch.Tensor, torch.Tensor], states: torch.Tensor) -> None:
    codes, scale = sdnq_codes(states)
    differences = (found[0].int() - codes.int()).abs()
    assert int(differences.max()) <= 1
    assert float((differences == 0).double().mean()) >= EQUAL_CODES
    assert float((found[1] == scale).double().mean()) >= EQUAL_CODES


#: Inductor imports a part of torch that is deprecated.
compiling = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
METHODS = [False, pytest.param(True, marks=compiling)]


def add_and_quantize(residual: torch.Tensor, states: torch.Tensor, *others: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """An operation as before the norms of a block, and what follows it; a compiler makes one kernel of both."""
    return quantize_modulated(torch.addcmul(states, residual, residual), *others)


@pytest.mark.parametrize("compiles", METHODS)
def test_codes_are_those_of_sdnq_on_blocks_of_real_width(compiles: bool, quantized: Any) -> None:
    modulated, gated = compiled_if(compiles, quantize_modulated), compiled_if(compiles, quantize_gated)
    block = quantized.transformer_blocks[0]
    with recorded(block) as found, torch.no_grad():
        run(quantized)
        # The text is of another size, for which torch compiles again.
        for stream in STREAMS[: 1 if compiles else 2]:
            parts = found[f"{stream}_mod"][1][:, None].chunk(6, dim=-1)
            for number, layer in ((1, f"attn.{stream}_qkv"), (2, f"{stream}_mlp.w1")):
                norm = block.get_submodule(f"{stream}_norm{number}")
                shift, scale = parts[3 * number - 3 : 3 * number - 1]
                states = found[f"{stream}_norm{number}"][0]
                assert_same_codes(modulated(states, norm.weight, norm.eps, shift, scale), found[layer][0])
            joined = torch.cat([found[f"{stream}_mlp.{name}"][1] for name in ("w1", "w3")], dim=-1).flatten(0, 1)
            assert_same_codes(gated(joined), found[f"{stream}_mlp.w2"][0])


@compiling
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


@pytest.mark.parametrize("compiles", METHODS)
def test_the_chain_is_as_near_to_float32_as_sdnq(
    compiles: bool, original: Any, quantized: Any, made: list[Int8Rows]
) -> None:
    chained = copy.deepcopy(quantized)
    assert enable_int8_chain(chained, CPU, compiles=compiles) is None
    made.clear()
    exact, by_sdnq, by_chain = run(original), run(quantized), run(chained)
    # The text of the last block is not used after its attention.
    assert len(made) == 7
    if not compiles:
        assert torch.equal(by_chain, by_sdnq)
    # What blocks add is small beside what they pass on, so compare with blocks that add nothing.
    assert (by_chain - exact).norm() <= LARGER_ERROR * (by_sdnq - exact).norm()


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


@compiling
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
