"""Quantize the inputs of SDNQ's layers together with the operations before them, where that gives the same codes.

Each stream of a block norms, modulates and quantizes in one pass, multiplies by ``w1`` and ``w3`` as one matrix, and
applies SiLU, multiplies and quantizes in one pass. Where a layer is not as expected when it is called, because of an
adapter, a hook or another dtype, the block computes as it does without the chain.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.normalization import RMSNorm
from torch.nn.functional import silu

from converter.libraries import sdnq_compiles
from converter.models.int8_kernels import describe_kernel_error, kernel_errors, prepare_int8_kernel
from converter.models.lens.int8_rows import (
    DTYPE,
    Int8Rows,
    compiled_if,
    pad_rows,
    quantize_gated,
    quantize_modulated,
)
from converter.models.sdnq_layers import FEWEST_ROWS, quantized_layers

_STREAMS = ("img", "txt")
#: Of the check: tokens of its input, least part of equal codes, and greatest relative difference of outputs.
_TOKENS = 256
_EQUAL_CODES = 0.999
_OUTPUT_DIFFERENCE = 0.005
#: What must have these values in the dequantizer of a layer: it quantizes rows of activations to int8, and its weights
#: anew, without a rotation or a codebook, from scales that are not quantized.
_DEQUANTIZER = {
    "use_quantized_matmul": True,
    "re_quantize_for_matmul": True,
    "quantized_matmul_dtype": "int8",
    "use_hadamard": False,
    "use_codebook": False,
    "scale_dtype": None,
    "zero_point_dtype": None,
}


@dataclass(frozen=True)
class Int8Chain:
    """Makes the inputs of a block's layers.

    Args:
        compiles: whether its functions run compiled.
    """

    compiles: bool

    def applies(self, states: torch.Tensor, norm: Any, user: Any, layers: tuple[Any, ...]) -> bool:
        """Return whether ``modulate`` can make the input of a module.

        Args:
            states: the input of the norm, ``[batch, tokens, channels]``.
            norm: before the modulation.
            user: the module that gets the result.
            layers: those of its linear layers that the result goes through.
        """
        return (
            not torch.is_grad_enabled()
            and states.dtype == DTYPE
            and states.shape[0] * states.shape[1] >= FEWEST_ROWS
            and _find_obstacle(norm, user, layers) is None
        )

    def modulate(
        self, states: torch.Tensor, norm: Any, shift: torch.Tensor, scale: torch.Tensor, *, pads: bool
    ) -> Int8Rows:
        """Norm, modulate and quantize.

        Args:
            states: ``[batch, tokens, channels]``.
            norm: the norm.
            shift: ``[batch, 1, channels]``.
            scale: likewise.
            pads: whether to pad the rows, because their number varies.
        """
        quantize = compiled_if(self.compiles, quantize_modulated)
        codes, scales = quantize(states, norm.weight, norm.eps, shift, scale)
        if pads:
            codes, scales = pad_rows(codes, scales)
        batch, tokens, channels = states.shape
        return Int8Rows(codes, scales, (batch, tokens, channels), self.compiles)


def enable_int8_chain(transformer: Any, device: torch.device, *, compiles: bool | None = None) -> str | None:
    """Let the blocks of a transformer use the chain, if it agrees with SDNQ's layers on the first block's weights.

    Args:
        transformer: a ``LensTransformer2DModel``; it may be on another device now, but its hooks are in place.
        device: where it runs.
        compiles: whether the chain's functions run compiled; by default where SDNQ compiles its own.

    Returns:
        None, or why the chain is not used.

    Raises:
        torch.OutOfMemoryError: the device does not have the memory for a copy of a block.

    For the other errors, see ``try_int8_kernels``.
    """
    blocks = list(transformer.transformer_blocks)
    for block in blocks:
        block.int8_chain = None
    if not quantized_layers(transformer):
        return "the transformer is not quantized"
    # The caller may be in another thread than the one that loaded the model, or the model may be of another loader.
    prepare_int8_kernel(transformer, device)
    if compiles is None:
        compiles = bool(sdnq_compiles())
    chain = Int8Chain(compiles)
    uses = [use for stream in _STREAMS for use in _uses(blocks[0], stream)]
    reason = next(filter(None, (_find_obstacle(*use) for use in uses)), None)
    reason = reason or _disagreement(chain, blocks[0], device)
    if reason is None:
        for block in blocks:
            block.int8_chain = chain
    return reason


def uses_int8_chain(transformer: Any) -> bool:
    """Return whether the chain is enabled."""
    return any(block.int8_chain is not None for block in transformer.transformer_blocks)


def _find_obstacle(norm: Any, user: Any, layers: tuple[Any, ...]) -> str | None:
    """Return why the chain cannot do what a norm and the module after it do; None if it can.

    The arguments are those of ``Int8Chain.applies``.
    """
    if type(norm) is not RMSNorm or norm.weight is None or norm.weight.dtype != DTYPE or norm.bias is not None:
        return "a norm does not compute in bfloat16"
    if not all(map(_multiplies_int8, layers)):
        return (
            "a layer has an adapter, or does not make its weights int8 from groups with scales in bfloat16, without "
            "SVD, Hadamard rotation or codebook"
        )
    if not all(map(_is_plain, (norm, user, *layers))):
        return "a module has hooks, as with offloading and caches, or another attention processor"
    return None


def _is_plain(module: Any) -> bool:
    """Return whether calling a module does what its class says, and no more."""
    # Libraries replace this attribute for their hooks, and set it to the class's own method when they remove them.
    forward = module.__dict__.get("forward")
    processor = getattr(module, "processor", None)
    return (
        (forward is None or getattr(forward, "__func__", None) is type(module).forward)
        and not module._forward_hooks
        and not module._forward_pre_hooks
        and (processor is None or type(processor) is module._default_processor_cls)
    )


def _multiplies_int8(layer: Any) -> bool:
    """Return whether a layer is of SDNQ and multiplies rows in int8 by weights that are quantized anew."""
    how = getattr(layer, "sdnq_dequantizer", None)
    if how is None or not isinstance(layer, torch.nn.Linear):
        return False
    from sdnq.layers.linear.linear_int8 import quantized_linear_forward_int8_matmul

    return (
        layer.forward_func is quantized_linear_forward_int8_matmul
        and all(getattr(how, name) == value for name, value in _DEQUANTIZER.items())
        # None where the weights have no groups, as in 8-bit floats.
        and how.result_shape is not None
        and layer.scale.dtype == DTYPE
        and layer.svd_up is None
    )


def _uses(block: Any, stream: str) -> Iterator[tuple[Any, Any, tuple[Any, ...]]]:
    """Yield the norms of a stream, and with each the module that gets its modulated output, and the layers inside."""
    mlp = getattr(block, f"{stream}_mlp")
    yield getattr(block, f"{stream}_norm1"), block.attn, (getattr(block.attn, f"{stream}_qkv"),)
    yield getattr(block, f"{stream}_norm2"), mlp, tuple(mlp.children())


def _disagreement(chain: Int8Chain, block: Any, device: torch.device) -> str | None:
    """Compare the chain with SDNQ's layers, as they compute without being compiled, on the weights of a block."""
    try:
        with torch.no_grad():
            block = copy.deepcopy(block).to(device)
            # Triton starts its kernels on the current GPU.
            with torch.cuda.device_of(block.img_norm1.weight):
                return next((problem for stream in _STREAMS for problem in _compare(chain, block, stream)), None)
    except torch.OutOfMemoryError:
        raise
    except kernel_errors() as error:
        # Errors of torch's compiler begin with its name.
        return describe_kernel_error(getattr(error, "inner_exception", error))


def _compare(chain: Int8Chain, block: Any, stream: str) -> Iterator[str]:
    """Yield what the chain computes otherwise than the layers of a stream, on random input."""
    (norm1, _, (qkv,)), (norm2, mlp, _) = _uses(block, stream)
    generator = torch.Generator().manual_seed(0)
    width = norm1.weight.numel()
    states, shift, scale = (
        torch.randn(1, tokens, width, generator=generator).to(norm1.weight) for tokens in (_TOKENS, 1, 1)
    )
    for norm, module in ((norm1, qkv), (norm2, mlp)):
        modulated = torch.addcmul(shift, norm(states), 1 + scale)
        rows = chain.modulate(states, norm, shift, scale, pads=True)
        yield from _compare_codes((rows.codes[:_TOKENS], rows.scale[:_TOKENS]), modulated)
        # Where SDNQ compiles, it quantizes weights with other roundings than in eager mode, here and in its layers.
        with torch.compiler.set_stance("force_eager"):
            expected = module(modulated)
            found = module(rows) if module is mlp else rows.linear(module)
        difference = float((found - expected).float().norm() / expected.float().norm())
        if not difference <= _OUTPUT_DIFFERENCE:
            yield f"the outputs of SDNQ's layers differ by {difference:.2%}"
    with torch.compiler.set_stance("force_eager"):
        gate, value = mlp.w1(modulated), mlp.w3(modulated)
    joined = torch.cat((gate, value), dim=-1).flatten(0, 1)
    yield from _compare_codes(compiled_if(chain.compiles, quantize_gated)(joined), silu(gate) * value)


def _compare_codes(found: tuple[torch.Tensor, torch.Tensor], states: torch.Tensor) -> Iterator[str]:
    """Yield what is wrong with codes, compared with those that SDNQ's layers make of a tensor."""
    from sdnq.layers.linear.linear_int8 import quantize_int_mm_input

    codes, _ = quantize_int_mm_input(states, dtype=DTYPE)
    differences = (found[0].int() - codes.int()).abs()
    equal, largest = float((differences == 0).double().mean()), int(differences.max())
    if equal < _EQUAL_CODES or largest > 1:
        yield f"{1 - equal:.3%} of the codes differ from those of SDNQ's layers, by up to {largest}"
