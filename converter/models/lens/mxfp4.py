"""Find out whether an MXFP4 text encoder stays packed when it is loaded, or is unpacked to bfloat16.

transformers decides that by the accelerator, Triton and the ``kernels`` package, and unpacks without a warning. The
encoder of Lens then takes 41.8 GB in place of 13.8 GB, which users should know before it happens.

Packed experts are multiplied by a kernel that is a repo of the Hub: code, which transformers would ask the Hub for each
time. Here it is only taken from the cache of this machine, and without it the encoder is unpacked.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import huggingface_hub.constants
import torch
from accelerate import init_empty_weights
from transformers import GptOssConfig, GptOssForCausalLM
from transformers.integrations import hub_kernels
from transformers.integrations.mxfp4 import Mxfp4GptOssExperts
from transformers.quantizers.quantizer_mxfp4 import Mxfp4HfQuantizer
from transformers.utils.quantization_config import Mxfp4Config

from converter.console import readable_size
from converter.models.lens.adapters import HUB_OPTIONS

#: The kernel that transformers takes, and its version: ``replace_with_mxfp4_linear`` in its integrations/mxfp4.py.
KERNEL = "kernels-community/gpt-oss-triton-kernels"
KERNEL_VERSION = 1
NEEDS_GPU = "that takes a GPU of compute capability 7.5 or more, Triton and the package kernels"
#: Puts it into the cache so that it is found without the Hub. What the package kernels downloads by itself is not,
#: because it keeps no name of the version (seen with kernels 0.17.2).
_DOWNLOAD = f"hf download {KERNEL} --repo-type kernel --revision v{KERNEL_VERSION}"


def unpacking_reason() -> str:
    """Say why an MXFP4 checkpoint is unpacked on this machine, without asking the Hub; empty if it stays packed."""
    quantizer = Mxfp4HfQuantizer(Mxfp4Config(), pre_quantized=True)
    quantizer.validate_environment()
    # transformers has kernels for packed weights on a CPU, but uses them only on request.
    if quantizer.quantization_config.dequantize or not torch.accelerator.is_available():
        return NEEDS_GPU
    return "" if _has_kernel() else f"its kernel is not in the local cache; to get it, run `{_DOWNLOAD}`"


@contextmanager
def kernel_from_cache() -> Iterator[None]:
    """Let transformers take the kernel from the cache of this machine while it loads a model inside the block."""
    get_kernel = hub_kernels.get_kernel

    def get_cached(name: str, *arguments: Any, **options: Any) -> Any:
        if name != KERNEL:
            return get_kernel(name, *arguments, **options)
        with _offline():
            return get_kernel(name, *arguments, **options)

    hub_kernels.get_kernel = get_cached
    try:
        yield
    finally:
        hub_kernels.get_kernel = get_kernel


def packed_tensors(model: torch.nn.Module) -> Iterator[torch.Tensor]:
    """Yield the tensors of packed experts, which are neither parameters nor buffers."""
    for module in model.modules():
        if isinstance(module, Mxfp4GptOssExperts):
            for name in ("gate_up_proj", "down_proj"):
                yield getattr(module, name).storage.data
                yield getattr(module, f"{name}_precision_config").weight_scale.storage.data


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
    if not isinstance(quantization, Mapping) or quantization.get("quant_method") != "mxfp4":
        return ""
    reason = unpacking_reason()
    if not reason:
        return ""
    with init_empty_weights():
        parameters = sum(parameter.numel() for parameter in GptOssForCausalLM(config).parameters())
    return unpacking_text(2 * parameters, reason)


def unpacking_text(size: int, reason: str) -> str:
    """Say that the encoder is unpacked, and why.

    Args:
        size: bytes of the unpacked encoder.
        reason: as ``unpacking_reason`` gives it.
    """
    return (
        f"the MXFP4 text encoder cannot stay packed here ({reason}): it is unpacked, and takes "
        f"{readable_size(size)} of memory"
    )


def _has_kernel() -> bool:
    """Whether the package kernels finds the kernel on this machine; LOCAL_KERNELS counts, too."""
    # The package is optional; transformers has found it before this is called.
    import kernels

    try:
        with _offline():
            return bool(kernels.has_kernel(KERNEL, version=KERNEL_VERSION))
    except (OSError, ValueError, RuntimeError):
        # Another version is cached, or a part is missing or damaged.
        return False


@contextmanager
def _offline() -> Iterator[None]:
    """Let huggingface_hub refuse all requests inside the block, and kernels not warn of it."""
    log, before = logging.getLogger("kernels"), huggingface_hub.constants.HF_HUB_OFFLINE
    level = log.level
    log.setLevel(logging.ERROR)
    huggingface_hub.constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        huggingface_hub.constants.HF_HUB_OFFLINE = before
        log.setLevel(level)
