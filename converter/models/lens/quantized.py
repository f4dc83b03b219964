"""Apply the quantized matmul that the configuration of an SDNQ checkpoint asks for.

``quantization_config.json`` says ``use_quantized_matmul``, but the loaders may compute every layer with dequantized
weights; the published cards of such checkpoints ask users to call ``apply_sdnq_options_to_model``. Here it is applied,
with a warning.
"""

from __future__ import annotations

import logging
from typing import Any

import torch

logger = logging.getLogger(__name__)


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


def dequantized_forward(layer: Any, states: torch.Tensor) -> torch.Tensor:
    """Multiply dequantized weights in a linear layer of SDNQ that is prepared to multiply quantized ones.

    This is what SDNQ itself does for fewer than 32 rows (sdnq 0.2.8, ``quantized_linear_forward_int8_matmul``).
    """
    from sdnq.utils import get_sdnq_params

    weight = layer.sdnq_dequantizer(**get_sdnq_params(layer), skip_quantized_matmul=True)
    return torch.nn.functional.linear(states, weight, layer.bias)


def apply_serialized_matmul(model: torch.nn.Module) -> bool:
    """Turn on quantized matmul if the checkpoint's configuration asks for it and the loader did not do it.

    Returns:
        Whether it was off and is now on.
    """
    configuration: Any = getattr(model, "quantization_config", None)
    if not getattr(configuration, "use_quantized_matmul", False) or not quantized_layers(model):
        return False
    if _multiplies_quantized(model):
        return False
    # Such a model was made by SDNQ, which is already imported; for other models, importing it would take seconds.
    from sdnq.loader import apply_sdnq_options_to_model

    apply_sdnq_options_to_model(model, use_quantized_matmul=True)
    done = _multiplies_quantized(model)
    logger.warning(
        "%s: use_quantized_matmul of the checkpoint's quantization config was not in effect after loading; %s (%s)",
        type(model).__name__,
        "it is now" if done else "this machine cannot do it",
        configuration.quantized_matmul_dtype,
    )
    return done


def _multiplies_quantized(model: torch.nn.Module) -> bool:
    return any(map(multiplies_quantized, quantized_layers(model)))
