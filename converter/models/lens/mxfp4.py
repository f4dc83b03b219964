"""Find out whether an MXFP4 text encoder stays packed when it is loaded, or is unpacked to bfloat16.

transformers decides that by the accelerator, Triton and the ``kernels`` package, and unpacks without a warning. The
encoder of Lens then takes 41.8 GB in place of 13.8 GB, which users should know before it happens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import init_empty_weights
from transformers import GptOssConfig, GptOssForCausalLM
from transformers.quantizers.quantizer_mxfp4 import Mxfp4HfQuantizer
from transformers.utils.quantization_config import Mxfp4Config

from converter.console import readable_size
from converter.models.lens.adapters import HUB_OPTIONS


def will_unpack() -> bool:
    """Ask transformers whether it would unpack an MXFP4 checkpoint on this machine."""
    quantizer = Mxfp4HfQuantizer(Mxfp4Config(), pre_quantized=True)
    quantizer.validate_environment()
    # It has kernels for packed weights on a CPU, but uses them only on request.
    return bool(quantizer.quantization_config.dequantize) or not torch.accelerator.is_available()


def unpacking_notice(name: Any, options: Mapping[str, Any]) -> str:
    """Return the warning before the encoder is loaded.

    Args:
        name: folder or Hub repo.
        options: of ``from_pretrained``.

    Returns:
        The warning; empty if nothing is unpacked, or the caller has chosen it.
    """
    if options.get("quantization_config") is not None:
        return ""
    config = options.get("config") or name
    if not isinstance(config, GptOssConfig):
        located = {key: options[key] for key in (*HUB_OPTIONS, "proxies") if key in options}
        config = GptOssConfig.from_pretrained(config, **located)
    quantization = config.to_dict().get("quantization_config")
    if not isinstance(quantization, Mapping) or quantization.get("quant_method") != "mxfp4" or not will_unpack():
        return ""
    with init_empty_weights():
        parameters = sum(parameter.numel() for parameter in GptOssForCausalLM(config).parameters())
    return unpacking_text(2 * parameters)


def unpacking_text(size: int) -> str:
    """Say that the encoder is unpacked, and why.

    Args:
        size: bytes of the unpacked encoder.
    """
    return (
        "the MXFP4 text encoder cannot stay packed here (that takes a GPU of compute capability 7.5 or more, Triton "
        f"and the package kernels): it is unpacked, and takes {readable_size(size)} of memory"
    )
