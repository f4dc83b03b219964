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
    return any(layer.sdnq_dequantizer.use_quantized_matmul for layer in quantized_layers(model))
