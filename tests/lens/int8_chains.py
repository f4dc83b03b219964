"""Models for tests of the int8 chain, and how near it is to SDNQ's layers."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from converter.libraries import load_library
from converter.models.lens.int8_chain import enable_int8_chain
from converter.models.lens.int8_rows import Int8Rows, compiled_if, quantize_gated, quantize_modulated
from converter.models.lens.transformer import LensTransformer2DModel
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


def check_codes(quantized: Any, *, compiles: bool) -> None:
    """Compare the codes of a block with those of SDNQ's layers."""
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


def check_nearness(original: Any, quantized: Any, made: list[Int8Rows], *, compiles: bool) -> None:
    """Compare the chain with SDNQ's layers, and both with float32."""
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
