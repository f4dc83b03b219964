"""SDNQ's configuration in a checkpoint: in ``config.json``, in ``quantization_config.json``, or in both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from converter.checkpoint.files import read_json
from converter.checkpoint.source import Checkpoint
from converter.conversion.planning.rules import PLACEMENT
from converter.conversion.release.manifest import CONFIG_NAME, QUANTIZATION_CONFIG_NAME
from converter.errors import MalformedCheckpoint
from converter.fields import Fields

#: Lists that SDNQ writes in any order.
_UNORDERED = ("modules_to_not_convert", "modules_to_not_use_matmul")
#: Options that SDNQ cannot use without a value.
_NEVER_NULL = ("weights_dtype", "group_size")
#: Entries of ``config.json`` that change with who writes it, not with what the model is. Classes are compared apart.
_INCIDENTAL = ("architectures", "quantization_config", "torch_dtype", "dtype", "transformers_version")


@dataclass(frozen=True)
class QuantizationConfig:
    """What a checkpoint says about its quantization."""

    content: dict[str, Any]
    """The options of SDNQ; empty if there are none."""
    problem: str = ""
    """What is wrong with it."""
    notes: tuple[str, ...] = ()
    """What is unusual about the files that contain it."""


def read_quantization_config(checkpoint: Checkpoint) -> QuantizationConfig:
    """Read SDNQ's configuration from a component's folder.

    Raises:
        MalformedCheckpoint: it is not an object, or a value has a type that SDNQ could not use.
    """
    embedded = checkpoint.config.get("quantization_config")
    file = checkpoint.folder / QUANTIZATION_CONFIG_NAME
    separate = read_json(file) if file.is_file() else None
    if embedded is not None and not isinstance(embedded, dict):
        raise MalformedCheckpoint(checkpoint.folder / CONFIG_NAME, "its quantization_config is not an object")
    if separate is None and embedded is None:
        return QuantizationConfig({}, f"neither {CONFIG_NAME} nor {QUANTIZATION_CONFIG_NAME} says how it is quantized")
    found: dict[str, Any] = separate if separate is not None else embedded or {}
    _check_types(found, f"{checkpoint.folder}: quantization config")
    if found.get("quant_method") != "sdnq":
        return QuantizationConfig(found, f"quant_method is {shown(found.get('quant_method'))}, not sdnq")
    if separate is None or embedded is None:
        only, other = CONFIG_NAME, QUANTIZATION_CONFIG_NAME
        if embedded is None:
            only, other = other, only
        note = f"only {only} contains the quantization config; some loaders read {other}"
        return QuantizationConfig(found, notes=(note,))
    different = differing_options(separate, embedded)
    if different:
        return QuantizationConfig(found, f"{CONFIG_NAME} and {QUANTIZATION_CONFIG_NAME} disagree on {different}")
    return QuantizationConfig(found)


def shown(value: Any) -> str:
    """A value from a file in a few words."""
    return f"{value!s:.80}" if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"


def differing_options(one: Mapping[str, Any], other: Mapping[str, Any], *, only_shared: bool = False) -> str:
    """Names of the options of SDNQ that differ between two configurations; empty if there are none.

    Args:
        one: a configuration.
        other: the one that it is compared with.
        only_shared: whether to leave out options that only one of them has.
    """
    one, other = _normalised(one), _normalised(other)
    names = one.keys() & other.keys() if only_shared else one.keys() | other.keys()
    return ", ".join(sorted(name for name in names if one.get(name) != other.get(name)))


def differing_entries(one: Mapping[str, Any], other: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of entries that two ``config.json`` share, that describe the model, and that differ."""
    different = []
    for name in sorted(one.keys() & other.keys()):
        if name.startswith("_") or name in _INCIDENTAL:
            continue
        if isinstance(one[name], Mapping) and isinstance(other[name], Mapping):
            different += differing_entries(one[name], other[name], f"{prefix}{name}.")
        elif one[name] != other[name]:
            different.append(prefix + name)
    return different


def _check_types(config: Mapping[str, Any], where: str) -> None:
    """Refuse values of types that SDNQ could not use; null stands for a missing value where SDNQ's default is null."""
    known = {key: value for key, value in config.items() if value is not None or key in _NEVER_NULL}
    fields = Fields(known, where, MalformedCheckpoint)
    for key in ("weights_dtype", "quantized_matmul_dtype", "scale_dtype", "zero_point_dtype"):
        fields.take(key, str, "")
    fields.take("group_size", int, 0)
    for key in _UNORDERED:
        fields.take_strings(key)
    by_dtype = Fields(fields.take("modules_dtype_dict", dict, {}), f"{where}: modules_dtype_dict", MalformedCheckpoint)
    for dtype in by_dtype.content:
        by_dtype.take_strings(dtype)
    options = fields.take("modules_quant_config", dict, {})
    for module in options:
        own = Fields(options, f"{where}: modules_quant_config", MalformedCheckpoint).take(module, dict)
        described = Fields(own, f"{where}: modules_quant_config: {module}", MalformedCheckpoint)
        described.take("weights_dtype", str, "")
        described.take("group_size", int, 0)


def _normalised(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without the options that describe the machine, in which lists of any order are sorted."""
    result = _without_placement(config)
    for name in _UNORDERED:
        if isinstance(result.get(name), list):
            result[name] = sorted(map(str, result[name]))
    by_dtype = result.get("modules_dtype_dict")
    if isinstance(by_dtype, dict):
        result["modules_dtype_dict"] = {dtype: sorted(map(str, names)) for dtype, names in by_dtype.items()}
    by_module = result.get("modules_quant_config")
    if isinstance(by_module, dict):
        result["modules_quant_config"] = {
            module: _without_placement(options) if isinstance(options, dict) else options
            for module, options in by_module.items()
        }
    return result


def _without_placement(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in PLACEMENT}
