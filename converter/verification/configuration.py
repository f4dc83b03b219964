"""SDNQ's configuration as a checkpoint holds it, in one place or in two."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from converter.checkpoint.source import Checkpoint, read_json
from converter.conversion.release.manifest import CONFIG_NAME, QUANTIZATION_CONFIG_NAME
from converter.errors import MalformedCheckpoint

#: Lists that SDNQ writes in any order.
_UNORDERED = ("modules_to_not_convert", "modules_to_not_use_matmul")
#: Entries of ``config.json`` that change with who writes it, not with what the model is.
_INCIDENTAL = ("quantization_config", "torch_dtype", "dtype", "transformers_version")


@dataclass(frozen=True)
class QuantizationConfig:
    """What a checkpoint says about how it is quantized."""

    content: dict[str, Any]
    """SDNQ's options; empty when it says nothing."""
    problem: str = ""
    """What is wrong with it."""
    notes: tuple[str, ...] = ()
    """What is unusual about where it lies."""


def read_quantization_config(checkpoint: Checkpoint) -> QuantizationConfig:
    """Read SDNQ's configuration from a component's folder.

    Raises:
        MalformedCheckpoint: it is no object, or holds values that SDNQ could not use.
    """
    embedded = checkpoint.config.get("quantization_config")
    file = checkpoint.folder / QUANTIZATION_CONFIG_NAME
    separate = read_json(file) if file.is_file() else None
    if embedded is not None and not isinstance(embedded, dict):
        raise MalformedCheckpoint(checkpoint.folder / CONFIG_NAME, "its quantization_config is no object")
    if separate is None and embedded is None:
        return QuantizationConfig({}, f"neither {CONFIG_NAME} nor {QUANTIZATION_CONFIG_NAME} says how it is quantized")
    found: dict[str, Any] = separate if separate is not None else embedded or {}
    wrong = _mistyped(found)
    if wrong:
        raise MalformedCheckpoint(checkpoint.folder, f"its quantization config has an unusable {wrong}")
    if found.get("quant_method") != "sdnq":
        return QuantizationConfig(found, f"quant_method is {shown(found.get('quant_method'))}, not sdnq")
    if separate is None or embedded is None:
        only = CONFIG_NAME if separate is None else QUANTIZATION_CONFIG_NAME
        note = f"only {only} holds the quantization config; some loaders read the other one"
        return QuantizationConfig(found, notes=(note,))
    different = differing_options(separate, embedded)
    if different:
        return QuantizationConfig(found, f"{CONFIG_NAME} and {QUANTIZATION_CONFIG_NAME} disagree on {different}")
    return QuantizationConfig(found)


def shown(value: Any) -> str:
    """A value from a file in a few words, safe to show."""
    return f"{value!s:.80}" if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"


def differing_options(one: Mapping[str, Any], other: Mapping[str, Any], *, only_shared: bool = False) -> str:
    """Names of SDNQ's options on which two configurations differ, to be shown; empty when they say the same.

    Args:
        one: a configuration.
        other: the one that it is compared with.
        only_shared: whether to leave out what only one of them mentions.
    """
    one, other = _normalised(one), _normalised(other)
    names = one.keys() & other.keys() if only_shared else one.keys() | other.keys()
    return ", ".join(sorted(name for name in names if one.get(name) != other.get(name)))


def differing_entries(one: Mapping[str, Any], other: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Entries of two ``config.json`` that are in both, say what the model is, and differ; by their dotted names."""
    different = []
    for name in sorted(one.keys() & other.keys()):
        if name.startswith("_") or name in _INCIDENTAL:
            continue
        if isinstance(one[name], Mapping) and isinstance(other[name], Mapping):
            different += differing_entries(one[name], other[name], f"{prefix}{name}.")
        elif one[name] != other[name]:
            different.append(prefix + name)
    return different


def _mistyped(config: Mapping[str, Any]) -> str:
    """The first entry of a configuration that has a type which SDNQ could not use; empty when there is none."""

    def is_names(value: Any) -> bool:
        return isinstance(value, list) and all(isinstance(item, str) for item in value)

    def is_mapping(value: Any, holds: Callable[[Any], bool]) -> bool:
        return isinstance(value, dict) and all(holds(item) for item in value.values())

    valid: dict[str, Callable[[Any], bool]] = {
        "weights_dtype": lambda value: isinstance(value, str),
        "quantized_matmul_dtype": lambda value: isinstance(value, str),
        "group_size": lambda value: type(value) is int,
        "modules_to_not_convert": is_names,
        "modules_to_not_use_matmul": is_names,
        "modules_dtype_dict": lambda value: is_mapping(value, is_names),
        "modules_quant_config": lambda value: is_mapping(value, lambda item: isinstance(item, dict)),
    }
    return next((key for key, holds in valid.items() if config.get(key) is not None and not holds(config[key])), "")


def _normalised(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration in which what SDNQ writes in any order is sorted."""
    result = dict(config)
    for name in _UNORDERED:
        if isinstance(result.get(name), list):
            result[name] = sorted(map(str, result[name]))
    by_dtype = result.get("modules_dtype_dict")
    if isinstance(by_dtype, dict):
        result["modules_dtype_dict"] = {dtype: sorted(map(str, names)) for dtype, names in by_dtype.items()}
    return result
