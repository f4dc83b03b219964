"""Checks whether the tensors of a quantized module fit each other and the configuration."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from converter.checkpoint.dtypes import WEIGHT_DTYPES
from converter.conversion.planning.rules import WeightFormat, linear_parts, named_dtype, option_of
from converter.verification.audit import Audit
from converter.verification.modules import QuantizedModule
from converter.verification.report import Check, list_problems

#: Parts that cannot be used without a scale.
_DEPENDENT = ("zero_point", "svd_up", "svd_down", "scale_2")


def check_parts(audit: Audit) -> Check:
    """Compare the parts of each quantized module with each other and with the configuration."""
    problems = [problem for module in audit.modules.values() for problem in _part_problems(audit, module)]
    problems += [f"{name} has no scale" for name in sorted(audit.kept) if name.rpartition(".")[2] in _DEPENDENT]
    return list_problems("packed weights", problems, "weights, scales and zero points fit each other")


def _part_problems(audit: Audit, module: QuantizedModule) -> Iterator[str]:
    name = module.name
    weight = module.parts.get("weight")
    if weight is None:
        yield f"{name}: has a scale, but no weight"
        return
    # The expected tensors are unknown; another check or a note says why.
    if not audit.config or audit.is_renamed:
        return
    if module.format is None:
        yield f"{name}: {module.dtype} is not a dtype of SDNQ"
        return
    if weight.dtype != module.format.storage:
        yield f"{name}: weight is {weight.dtype}, {module.dtype} is stored as {module.format.storage}"
        return
    shape = audit.weight_shape(module.name)
    if shape is not None and module.elements != prod(shape):
        yield f"{name}: weight has {module.elements} numbers, its shape {list(shape)} needs {prod(shape)}"
        return
    expected = _expected_parts(audit, module, shape)
    if expected is None:
        yield from _plausibility_problems(audit, module, module.format)
        return
    for part, (dtype, part_shape) in expected.items():
        found = module.parts.get(part)
        if found is None:
            yield f"{name}: has no {part}"
        elif (found.dtype, found.shape) != (dtype, part_shape):
            yield f"{name}: {part} is {found.dtype} {list(found.shape)}, should be {dtype} {list(part_shape)}"
    for part in module.parts.keys() - expected.keys():
        yield f"{name}: has {part}, which {module.dtype} with the config's options does not have"


def _expected_parts(
    audit: Audit, module: QuantizedModule, shape: tuple[int, ...] | None
) -> dict[str, tuple[str, tuple[int, ...]]] | None:
    """Dtypes and shapes of the parts, if they follow from the shape of the original weight; None if they do not."""
    # Embeddings are matrices too, but have other groups.
    if shape is None or len(shape) != 2 or audit.config.get("quant_embedding"):
        return None
    parts = linear_parts(module.name, (shape[0], shape[1]), audit.config, float_dtype=audit.float_dtype)
    if parts is None:
        return None
    return {spec.name.rpartition(".")[2]: (spec.dtype, spec.shape) for spec in parts}


def _plausibility_problems(audit: Audit, module: QuantizedModule, fmt: WeightFormat) -> Iterator[str]:
    """Whether the parts fit each other, where their exact shapes are unknown."""
    name, weight = module.name, f"{module.name}.weight"
    elements, scale, zero_point = module.elements, module.parts["scale"], module.parts.get("zero_point")
    is_codebook = bool(option_of(weight, "use_codebook", audit.config))
    scale_dtype = named_dtype(option_of(weight, "scale_dtype", audit.config))
    # By default, SDNQ quantizes zero points like scales.
    zero_point_dtype = named_dtype(option_of(weight, "zero_point_dtype", audit.config)) or scale_dtype
    scales = prod(scale.shape)
    if elements is None or not scales or (elements % scales and not is_codebook and not scale_dtype):
        yield f"{name}: weight has {elements} numbers, which cannot be divided evenly among {scales} scales"
    if fmt.is_unsigned and not is_codebook:
        if zero_point is None:
            yield f"{name}: {module.dtype} needs a zero point, but has none"
        elif zero_point.shape != scale.shape and zero_point_dtype == scale_dtype:
            yield f"{name}: scale has shape {list(scale.shape)}, zero point {list(zero_point.shape)}"
    elif zero_point is not None:
        yield f"{name}: {module.dtype} needs no zero point, but has one"
    if ("svd_up" in module.parts) != ("svd_down" in module.parts):
        yield f"{name}: has only one of svd_up and svd_down"
    for part, found, configured in (("scale", scale, scale_dtype), ("zero_point", zero_point, zero_point_dtype)):
        if found is not None and found.dtype not in WEIGHT_DTYPES and not configured:
            yield f"{name}: {part} is {found.dtype}, but the config does not say that it is quantized"
