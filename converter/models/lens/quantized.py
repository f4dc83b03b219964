"""Apply the quantized matmul that the configuration of an SDNQ checkpoint asks for.

``quantization_config.json`` says ``use_quantized_matmul``, but the loaders may compute every layer with dequantized
weights; the published cards of such checkpoints ask users to call ``apply_sdnq_options_to_model``. Here it is applied,
with a warning.
"""

from __future__ import annotations

import logging
from typing import Any

import torch

from converter.models.lens.int8_rows import ROW_MULTIPLE, Int8Rows, apply_module
from converter.models.sdnq_layers import FEWEST_ROWS, has_integer_products, multiplies_quantized, quantized_layers

logger = logging.getLogger(__name__)


def apply_to_full_rows(module: torch.nn.Module, states: torch.Tensor | Int8Rows) -> torch.Tensor:
    """Apply a module that treats each row alone, such as a linear layer, to a stream of varying length.

    On a GPU, SDNQ's kernels are compiled and tuned for each number of rows. Where they multiply integers, rows are
    added up to a multiple of 64, and their results dropped. They are ones, because zeros have no scale: SDNQ would
    divide by it. On a CPU, where nothing is compiled, more rows would only take longer.

    Args:
        module: with layers that SDNQ may have quantized; adapters may be loaded into them.
        states: ``[batch, tokens, channels]``; ``Int8Rows`` are padded already.
    """
    if isinstance(states, Int8Rows):
        return apply_module(module, states)
    rows = states.shape[:-1].numel()
    padding = -rows % ROW_MULTIPLE if is_tuned_to_rows(states.device) and rows >= FEWEST_ROWS else 0
    if not padding or not has_integer_products(module):
        return module(states)
    padded = torch.nn.functional.pad(states.flatten(0, -2), (0, 0, 0, padding), value=1.0)
    result: torch.Tensor = module(padded[None])[0, :rows]
    return result.unflatten(0, states.shape[:-1])


def is_tuned_to_rows(device: torch.device) -> bool:
    """Return whether kernels on a device are compiled for a number of rows."""
    return str(device.type) != "cpu"


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
