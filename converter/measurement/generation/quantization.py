"""How a loaded model is quantized, as JSON values for the settings of an image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from converter.libraries import sdnq_compiles
from converter.models.int8_kernels import find_int8_kernel
from converter.models.sdnq_layers import multiplies_quantized, quantized_layers


def describe_layers(model: Any, quantization: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Say how a loaded model is quantized, whether its products are computed in integers, and by what.

    Args:
        model: the model.
        quantization: SDNQ's configuration of it.
        device: where it runs.

    Returns:
        JSON values.
    """
    layers = quantized_layers(model)
    in_use = {layer.sdnq_dequantizer.quantized_matmul_dtype for layer in layers if multiplies_quantized(layer)}
    return {
        "weights_dtype": quantization.get("weights_dtype"),
        "layers": len(layers),
        "quantized_matmul": ", ".join(sorted(in_use)) or None,
        "int8_kernel": find_int8_kernel(device).name if "int8" in in_use else None,
        "sdnq_compiles": sdnq_compiles(),
    }
