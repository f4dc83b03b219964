"""The layers that SDNQ has put into a model, and whether they multiply quantized weights."""

from __future__ import annotations

from typing import Any

import torch

#: SDNQ's layers multiply dequantized weights if there are fewer rows (sdnq 0.2.8,
#: ``quantized_linear_forward_int8_matmul``).
FEWEST_ROWS = 32


def quantized_layers(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Return the layers of a model that SDNQ has quantized."""
    return [module for module in model.modules() if hasattr(module, "sdnq_dequantizer")]


def multiplies_quantized(layer: Any) -> bool:
    """Return whether a layer of SDNQ multiplies quantized weights, and does not dequantize them first."""
    return bool(layer.sdnq_dequantizer.use_quantized_matmul) and layer.forward_func is not dequantized_forward


def multiplies_integers(module: Any) -> bool:
    """Return whether a module is a layer of SDNQ that multiplies integers."""
    dequantizer = getattr(module, "sdnq_dequantizer", None)
    return dequantizer is not None and bool(dequantizer.is_integer_matmul) and multiplies_quantized(module)


def has_integer_products(model: torch.nn.Module) -> bool:
    """Return whether layers of a model multiply integers."""
    return any(map(multiplies_integers, model.modules()))


def dequantized_forward(layer: Any, states: torch.Tensor) -> torch.Tensor:
    """Multiply dequantized weights in a linear layer of SDNQ that is prepared to multiply quantized ones.

    This is what SDNQ itself does for less than ``FEWEST_ROWS``.
    """
    from sdnq.utils import get_sdnq_params

    weight = layer.sdnq_dequantizer(**get_sdnq_params(layer), skip_quantized_matmul=True)
    return torch.nn.functional.linear(states, weight, layer.bias)
