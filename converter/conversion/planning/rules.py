"""The tensors of SDNQ's files, as far as they follow from names, shapes and the configuration; without torch.

These are SDNQ 0.2.8's own rules, restated to check a checkpoint by its header. Planning asks SDNQ itself; a test
compares the two.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from converter.checkpoint.dtypes import BITS, TORCH_NAMES
from converter.checkpoint.layout import TensorSpec
from converter.conversion.planning.patterns import matching_pattern

#: Names of the tensors that a quantized module has in place of its weight (``sdnq.common.sdnq_keys``).
PARTS = (
    "weight",
    "scale",
    "scale_2",
    "scale_zero_point",
    "zero_point",
    "zero_point_scale",
    "zero_point_2",
    "svd_up",
    "svd_down",
)
#: Dtypes of SDNQ that are stored as they are, one number an element, by the safetensors name of their storage.
_PLAIN: dict[str, str] = {
    torch_name: name for name, torch_name in TORCH_NAMES.items() if BITS[name] <= 32 and name != "BOOL"
}
#: Options of SDNQ that say where it worked, not what it made.
PLACEMENT = ("quantization_device", "return_device", "non_blocking")
#: What to say of scales or zero points that are quantized so that loaders misread them.
MISREAD_SCALES = (
    "the loaders of sdnq 0.2.8 ignore scale_dtype and zero_point_dtype if they are set for all modules: "
    "load_sdnq_model refuses the result, and from_pretrained misreads it"
)
#: SDNQ considers quantized matmul only for weights of at least so many rows and channels, in multiples of this.
_MATMUL_MINIMUM = 32
_MATMUL_MULTIPLE = 16


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """How the numbers of a weight are stored."""

    name: str
    """SDNQ's name for it, for example ``uint4``."""
    bits: int
    is_unsigned: bool
    """Whether it comes with a zero point."""
    is_integer: bool
    storage: str
    """The safetensors dtype of the tensor."""
    is_packed: bool
    """Whether several numbers share an element."""

    def elements(self, shape: tuple[int, ...]) -> int | None:
        """How many numbers a stored tensor contains; None when they do not fill it exactly."""
        if not self.is_packed:
            return prod(shape)
        # Numbers of one bit are the exception: SDNQ stores eight of them in an element of 64 bits.
        per_element = 8 if self.bits == 1 else BITS[self.storage]
        whole, rest = divmod(prod(shape) * per_element, self.bits)
        return None if rest else whole


def weight_format(name: str) -> WeightFormat | None:
    """The format of that name; None when SDNQ does not know it."""
    alias = re.fullmatch(r"(u?)fp([1-9]|1[0-6]|32)", name)
    if alias is not None:
        # SDNQ's short names of its usual floats; only these properties matter here.
        unsigned, bits = bool(alias[1]) or name == "fp1", int(alias[2])
        if unsigned and bits == 32:
            return None
        plain = None if unsigned else {32: "F32", 16: "F16", 8: "F8_E4M3"}.get(bits)
        return WeightFormat(name, bits, unsigned, False, plain or _packed_storage(bits), plain is None)
    name = {"bf16": "bfloat16", "bool": "uint1", "int1": "uint1"}.get(name, name)
    # Dtypes have at most two digits; Python cannot parse an integer with thousands of digits.
    match = re.fullmatch(r"(u?int|float|bfloat)(\d{1,2})(_e\d+m\d+(?:fn|fnu|fnuz)?(?:_sdnq)?)?", name)
    if match is None:
        return None
    bits = int(match[2])
    is_integer = match[1].endswith("int")
    unsigned = match[1] == "uint" or (name.endswith("fnu") and name not in _PLAIN)
    if name in _PLAIN:
        return WeightFormat(name, bits, unsigned, is_integer, _PLAIN[name], False)
    if not 1 <= bits <= 16:
        return None
    return WeightFormat(name, bits, unsigned, is_integer, _packed_storage(bits), True)


def _packed_storage(bits: int) -> str:
    return "I64" if bits == 1 else "U8" if bits <= 8 else "U16" if bits == 16 else "I16"


def weights_dtype_of(name: str, config: Mapping[str, Any]) -> str:
    """The dtype that a configuration gives a weight (``sdnq.utils.get_minimum_dtype``).

    Args:
        name: of the weight, with ``.weight``.
        config: content of ``quantization_config.json``.
    """
    dtype = str(config.get("weights_dtype", "int8"))
    dtype = str(option_of(name, "weights_dtype", config, dtype))
    current = weight_format(dtype)
    for key, patterns in (config.get("modules_dtype_dict") or {}).items():
        if matching_pattern(name, patterns) is None:
            continue
        key = str(key).lower()
        minimum = re.fullmatch(r"(?:minimum[-_]?)?(u?int)?(\d{1,4})[-_]?(?:bits?)?", key)
        if minimum is None or not (key.startswith("minimum") or key.endswith(("bit", "bits"))):
            return key
        bits = int(minimum[2])
        # A minimum that is met leaves the decision to the keys after it.
        if current is not None and current.bits < bits:
            return f"uint{bits}" if minimum[1] == "uint" or bits <= 4 else f"int{bits}"
    return dtype


def option_of(name: str, option: str, config: Mapping[str, Any], default: Any = None) -> Any:
    """The value of an option for one weight: that of its module, or that of the whole configuration.

    Args:
        name: of the weight, with ``.weight``.
        option: one that SDNQ can set for a module.
        config: content of ``quantization_config.json``.
        default: the value where neither has the option.
    """
    by_module = config.get("modules_quant_config") or {}
    pattern = matching_pattern(name, by_module)
    if pattern is not None and isinstance(by_module[pattern], Mapping) and option in by_module[pattern]:
        return by_module[pattern][option]
    return config.get(option, default)


def has_misread_scales(name: str, config: Mapping[str, Any], *, has_zero_point: bool) -> bool:
    """Whether loaders misread the scales or zero points of a module, or its weight because of them.

    A result is read with the dtypes of scales and zero points in ``modules_quant_config``, not with those that the
    configuration has for all modules: ``sdnq.quantizer.sdnq_post_load_quant`` of SDNQ 0.2.8 drops them.

    Args:
        name: of the weight, with ``.weight``.
        config: content of ``quantization_config.json``.
        has_zero_point: whether the module has one.
    """
    by_module = {"modules_quant_config": config.get("modules_quant_config")}
    written, read = _scale_dtypes(name, config), _scale_dtypes(name, by_module)
    fmt = weight_format(weights_dtype_of(name, config))
    # An option for zero points changes how int8 weights are laid out, too, even though these have none.
    has_layout = option_of(name, "use_quantized_matmul", config) and fmt is not None and not fmt.is_packed
    return written[0] != read[0] or (bool(has_zero_point or has_layout) and written[1] != read[1])


def _scale_dtypes(name: str, config: Mapping[str, Any]) -> tuple[str, str]:
    """The dtypes that a configuration has for scales and zero points of a weight; empty where they stay floats."""
    scale, zero_point = (option_of(name, option, config) for option in ("scale_dtype", "zero_point_dtype"))
    # By default, SDNQ quantizes zero points like scales.
    return named_dtype(scale), named_dtype(scale if zero_point is None else zero_point)


def named_dtype(value: Any) -> str:
    """The dtype that an option for scales or zero points names; empty for ``none``, and for what is not text."""
    return value if isinstance(value, str) and value != "none" else ""


def linear_parts(
    name: str, shape: tuple[int, int], config: Mapping[str, Any], *, float_dtype: str = "BF16"
) -> tuple[TensorSpec, ...] | None:
    """The tensors that a linear's weight becomes.

    Args:
        name: of the module.
        shape: of the weight: rows, channels.
        config: content of ``quantization_config.json``.
        float_dtype: of the model when it was quantized, by safetensors' name; scales have it unless the configuration
            asks for float32.

    Returns:
        None when these rules do not cover an option: they cover static integers only.
    """
    fmt = weight_format(weights_dtype_of(f"{name}.weight", config))
    uncovered = ("use_svd", "use_hadamard", "use_codebook", "scale_dtype", "zero_point_dtype", "modules_quant_config")
    if fmt is None or not fmt.is_integer or fmt.bits > 8 or any(config.get(option) for option in uncovered):
        return None
    if (config.get("quantized_matmul_dtype") or "int8") not in ("int8", "uint8"):
        return None
    rows, channels = shape
    use_matmul = (
        bool(config.get("use_quantized_matmul"))
        and min(shape) >= _MATMUL_MINIMUM
        and not rows % _MATMUL_MULTIPLE
        and not channels % _MATMUL_MULTIPLE
        and matching_pattern(f"{name}.weight", config.get("modules_to_not_use_matmul") or ()) is None
    )
    group_size = config.get("group_size") or 0
    if group_size == 0:
        group_size = -1 if use_matmul and fmt.bits >= 6 else 2 ** (2 + fmt.bits)
    if group_size == -2:
        return None
    groups = group_count(channels, group_size)
    scale_dtype = "F32" if config.get("dequantize_fp32", True) else float_dtype
    scale_shape: tuple[int, ...] = (rows, groups, 1) if groups > 1 else (rows, 1)
    weight_shape: tuple[int, ...] = (rows, groups, channels // groups) if groups > 1 else shape
    if use_matmul and not fmt.is_packed and groups == 1:
        scale_shape, weight_shape = (1, rows), (channels, rows)
    if fmt.is_packed:
        # Packed numbers are flat where a byte has 2, 4 or 8 of them; others are in rows of the bytes that a run takes.
        run = {4: 1, 2: 1, 1: 1, 3: 3, 5: 5, 6: 3, 7: 7}[fmt.bits]
        size = rows * channels * fmt.bits // 8
        weight_shape = (size,) if run == 1 else (size // run, run)
    parts = [
        TensorSpec(f"{name}.weight", fmt.storage, weight_shape),
        TensorSpec(f"{name}.scale", scale_dtype, scale_shape),
    ]
    if fmt.is_unsigned:
        parts.append(TensorSpec(f"{name}.zero_point", scale_dtype, scale_shape))
    return tuple(parts)


def group_count(channels: int, group_size: int) -> int:
    """How many groups SDNQ cuts the channels into: the largest divisor that is at most the requested number."""
    if group_size <= 0 or group_size >= channels:
        return 1
    count = channels // group_size
    while count > 1 and count * group_size != channels:
        count -= 1
        group_size = channels // count
    return count
