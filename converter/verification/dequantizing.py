"""SDNQ's dequantizers, prepared from the configuration of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from converter.conversion.planning.planner import walk_modules
from converter.conversion.planning.rules import PLACEMENT
from converter.errors import UnsupportedCheckpoint, printable
from converter.libraries import QUANTIZING_ERRORS, load_library
from converter.models.empty import EmptyModel

#: Options that choose the dtype of a weight, which the configuration of a checkpoint names already.
_DYNAMIC = ("use_dynamic_quantization", "dynamic_loss_threshold")


def sdnq_config(config: Mapping[str, Any]) -> Any:
    """SDNQ's configuration object, without the entries that say where SDNQ worked.

    SDNQ's loaders ignore these entries too, and further ones of modules (``sdnq.utils.get_quant_args_from_config``).

    Raises:
        UnsupportedCheckpoint: SDNQ cannot use this configuration.
    """
    quantizer, utilities = load_library("sdnq.quantizer"), load_library("sdnq.utils")
    content = {name: value for name, value in config.items() if name not in PLACEMENT}
    with _blaming(config, "use"):
        by_module = {}
        for pattern, options in (content.get("modules_quant_config") or {}).items():
            # The loaders need no rounding; the comparison with the source does.
            rounding = {name: options[name] for name in ("use_stochastic_rounding",) if name in options}
            by_module[pattern] = utilities.get_quant_args_from_config(options) | rounding
        return quantizer.SDNQConfig.from_dict({**content, "modules_quant_config": by_module})


def prepare_quantized(empty: EmptyModel, config: Mapping[str, Any]) -> dict[str, Any]:
    """Prepare a model without weights for quantized weights, as SDNQ's loader does.

    Returns:
        The dequantizer of each quantized module, by path.

    Raises:
        UnsupportedCheckpoint: SDNQ cannot use this configuration.
    """
    prepared = sdnq_config(config)
    with _blaming(config, f"prepare {type(empty.model).__name__} with"):
        load_library("sdnq.quantizer").sdnq_post_load_quant(
            empty.model, quantization_config=prepared, pre_quantized=True
        )
    return {
        named.path: named.module.sdnq_dequantizer
        for named in walk_modules(empty.model)
        if hasattr(named.module, "sdnq_dequantizer")
    }


def configured_dequantizer(module: Any, parameter: str, config: Any) -> Any:
    """The dequantizer that a configuration gives a module, whatever a loader made of it.

    Args:
        module: a quantized module of a loaded model.
        parameter: the name of its weight by which SDNQ looks it up.
        config: from ``sdnq_config``.

    Raises: what SDNQ raises, one of ``QUANTIZING_ERRORS``.
    """
    loaded = module.sdnq_dequantizer
    # SDNQ looks at the name of the class only.
    original = module.original_class.__new__(module.original_class)
    options = load_library("sdnq.utils").get_quant_kwargs(
        original, config, torch_dtype=loaded.result_dtype, param_name=parameter
    )
    arguments = {name: value for name, value in options.items() if name not in (*PLACEMENT, *_DYNAMIC)}
    weight = torch.empty(loaded.original_shape, dtype=loaded.result_dtype, device="meta")
    dequantizer, _ = load_library("sdnq.quantizer").sdnq_quantize_layer_weight(weight, **arguments)
    return dequantizer


def dequantize(dequantizer: Any, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Turn codes back into float32 numbers of the original shape, with SDNQ."""
    restored: torch.Tensor = dequantizer(
        **parts, skip_quantized_matmul=dequantizer.use_quantized_matmul, skip_compile=True, dtype=torch.float32
    )
    return restored.reshape(dequantizer.original_shape)


@contextmanager
def _blaming(config: Mapping[str, Any], task: str) -> Iterator[None]:
    """Raise an error that names the configuration for what SDNQ raises in the block."""
    try:
        yield
    except QUANTIZING_ERRORS as error:
        version = config.get("sdnq_version")
        writer = f" SDNQ {printable(str(version), 20)} wrote it." if version else ""
        raise UnsupportedCheckpoint(
            f"SDNQ cannot {task} this quantization config: {type(error).__name__}: {error}",
            f"Compare the config with the publisher's.{writer}",
        ) from error
