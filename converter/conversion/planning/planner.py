"""Planning by SDNQ itself: the model's class on the meta device, without a byte of weights.

SDNQ decides which modules it quantizes, and the shapes of their parts, while it goes through the modules. So it is run
on the model's class with tensors that have shapes and dtypes and no storage. The result names every tensor of the file
that SDNQ would write.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import nn

from converter.checkpoint.layout import TensorSpec
from converter.checkpoint.source import Checkpoint
from converter.conversion.planning.plan import Plan, PlannedModule, PlannedTensor
from converter.conversion.planning.rules import PLACEMENT, named_dtype
from converter.conversion.recipe.recipe import Recipe, Rule, resolve_rules, rule_matches, unmatched_rules
from converter.errors import RecipeError, UnsupportedCheckpoint
from converter.libraries import QUANTIZING_ERRORS, load_library, package_versions
from converter.models.classes import SAFETENSORS_NAMES
from converter.models.empty import EmptyModel, build_empty_model, saved_names, written_config
from converter.models.sdnq_loader import refused_names
from converter.models.unsuitable import refuse_adapter, refuse_quantized

#: What SDNQ made of weights without numbers, by their shape and its options.
_answers: dict[str, Any] = {}
#: Lists of the configuration that SDNQ passes through a set; sorted here, so that two runs write the same file.
_UNORDERED = ("modules_to_not_convert", "modules_to_not_use_matmul")


@dataclass(frozen=True)
class NamedModule:
    """A module with a weight, and the name by which SDNQ looks it up in its lists."""

    path: str
    parameter: str
    """The path with ``.weight``; SDNQ also puts that into the path of children, if there are any."""
    module: nn.Module


def plan_with_sdnq(checkpoint: Checkpoint, recipe: Recipe, decided: Mapping[str, Any] | None = None) -> Plan:
    """Plan a conversion by running SDNQ without weights.

    Args:
        checkpoint: the source, of which headers and config are used.
        recipe: what to quantize and how.
        decided: for a recipe whose dtypes depend on the weights, SDNQ's configuration with what they decided.

    Raises:
        UnsupportedCheckpoint: the class is unknown, the tensors do not fit it, or SDNQ refuses the model.
        RecipeError: an option has a value that SDNQ does not know, or a rule matches nothing.
    """
    refuse_quantized(checkpoint)
    refuse_adapter(checkpoint)
    empty = build_empty_model(checkpoint)
    model = empty.model
    modules = tuple(walk_modules(model))
    unmatched: tuple[Rule, ...] = ()
    if decided is None:
        config, unmatched = resolve_config(recipe, model, modules)
    else:
        config = load_library("sdnq.quantizer").SDNQConfig.from_dict(dict(decided))
    # Only the weights can choose a dtype; without them the smallest one is planned.
    config.use_dynamic_quantization = False
    quantized = _run(model, modules, config)
    config.use_dynamic_quantization = recipe.is_data_dependent
    planned = {}
    for named in modules:
        if named.path in quantized:
            source = empty.sources[named.path + ".weight"]
            module = quantized[named.path]
            planned[source] = PlannedModule(
                name=named.path,
                source=source,
                shape=tuple(module.sdnq_dequantizer.original_shape),
                options=_quantize_options(named, module, config),
            )
    quantization_config = _as_json(config)
    return Plan(
        class_name=type(model).__name__,
        stem=empty.stem,
        tensors=tuple(_planned_tensors(empty, quantized)),
        modules=planned,
        ignored=empty.ignored,
        unloadable=refused_names(model, saved_names(empty)) if empty.is_transformers else "",
        index_metadata={"total_parameters": model.num_parameters()} if empty.is_transformers else {},
        config={**written_config(empty), "quantization_config": quantization_config},
        assumed_config=empty.config.assumed,
        quantization_config=quantization_config,
        versions=package_versions(),
        unmatched_rules=unmatched,
        depends_on_numbers=empty.depends_on_numbers,
    )


def walk_modules(model: nn.Module, path: str = "", parameter: str = "") -> Iterator[NamedModule]:
    """All modules with a weight, in the order in which SDNQ visits them."""
    for name, module in model.named_children():
        child = f"{path}.{name}" if path else name
        looked_up = f"{parameter}.{name}" if parameter else name
        if getattr(module, "weight", None) is not None:
            looked_up += ".weight"
            yield NamedModule(child, looked_up, module)
        yield from walk_modules(module, child, looked_up)


def resolve_config(recipe: Recipe, model: nn.Module, modules: Sequence[NamedModule]) -> tuple[Any, tuple[Rule, ...]]:
    """Turn a recipe into an ``SDNQConfig`` that names modules exactly.

    A glob that means the same as a pattern of SDNQ stays as it is, so that the saved lists are those of a run of SDNQ
    with that pattern. A rule that quantizes a module which SDNQ would skip wins: SDNQ's patterns are then replaced by
    the exact names of the other modules that they matched.

    Returns:
        The configuration, and the optional rules that match nothing.

    Raises:
        RecipeError: an option has a value that SDNQ does not know, or a rule matches nothing.
    """
    quantizer, utilities = load_library("sdnq.quantizer"), load_library("sdnq.utils")
    check_dtypes(recipe.options, f"recipe {recipe.name}")
    for rule in recipe.rules:
        check_dtypes(rule.options, f"recipe {recipe.name}, rule for {rule}")
    try:
        config = quantizer.SDNQConfig(**recipe.options)
    except (TypeError, ValueError, KeyError) as error:
        raise RecipeError(f"recipe {recipe.name}", str(error)) from error
    quantizable = {
        named.path: named.parameter
        for named in modules
        if utilities.check_quant_is_allowed(type(named.module).__name__, named.module.weight, config)
    }
    class_name, names = type(model).__name__, tuple(model.state_dict())
    decided = resolve_rules(recipe, tuple(quantizable), names, class_name)
    unmatched = unmatched_rules(recipe, tuple(quantizable), names, class_name)
    rules = [rule for rule in recipe.rules if rule not in unmatched]

    def matched_by(pattern: str) -> set[str]:
        # SDNQ takes a pattern for a regular expression, which not every glob is.
        try:
            return {path for path, name in quantizable.items() if utilities.check_param_name_in(name, [pattern])}
        except re.error:
            return set()

    changed = {path: rule.options for path, rule in decided.items() if not rule.keep}
    if config.add_skip_keys and changed:
        _, skipping = utilities.add_module_skip_keys(model, quantizer.SDNQConfig(**recipe.options))
        overridden = {pattern for pattern in skipping.modules_to_not_convert if matched_by(pattern) & set(changed)}
        if overridden:
            config = skipping
            config.add_skip_keys = False
            others = {path for pattern in overridden for path in matched_by(pattern)} - set(changed)
            config.modules_to_not_convert = [
                *(pattern for pattern in config.modules_to_not_convert if pattern not in overridden),
                *(quantizable[path] for path in others),
            ]
    config.modules_to_not_convert += _keep_patterns(rules, decided, quantizable, matched_by)
    for path, options in changed.items():
        if options.keys() == {"weights_dtype"}:
            config.modules_dtype_dict.setdefault(options["weights_dtype"], []).append(quantizable[path])
        else:
            config.modules_quant_config[quantizable[path]] = dict(options)
    return config, unmatched


def check_dtypes(options: Mapping[str, Any], where: str) -> None:
    """Refuse dtypes that SDNQ does not know; ``where`` says what has them.

    Raises:
        RecipeError: there is one; the hint names similar dtypes.
    """
    common = load_library("sdnq.common")
    for name in ("weights_dtype", "scale_dtype", "zero_point_dtype", "quantized_matmul_dtype"):
        known = common.accepted_matmul_dtypes if name == "quantized_matmul_dtype" else common.accepted_weight_dtypes
        value = options.get(name)
        if name in ("scale_dtype", "zero_point_dtype"):
            value = named_dtype(value) or None
        if value is not None and value not in known:
            near = difflib.get_close_matches(value.lower(), known, n=3)
            raise RecipeError(
                where,
                f"{name} = {value} is not a dtype of SDNQ",
                f"Similar dtypes: {', '.join(near)}." if near else f"Dtypes: {', '.join(sorted(known)[:40])}.",
            )
    order = common.weights_dtype_order
    if options.get("use_dynamic_quantization") and options.get("weights_dtype", order[0]) not in order:
        raise RecipeError(
            where,
            f"use_dynamic_quantization does not work with weights_dtype = {options['weights_dtype']}",
            f"Use one of: {', '.join(name for name in order if 'int' in name)}.",
        )


def _keep_patterns(
    rules: Sequence[Rule],
    decided: Mapping[str, Rule],
    quantizable: Mapping[str, str],
    matched_by: Callable[[str], set[str]],
) -> list[str]:
    kept = {path for path, rule in decided.items() if rule.keep}
    patterns: set[str] = set()
    for rule in rules:
        if not rule.keep:
            continue
        matched = {path for path in quantizable if rule_matches(rule, path, "")} if rule.match else set()
        if rule.match and matched <= kept and matched_by(rule.match) == matched:
            patterns.add(rule.match)
        else:
            patterns.update(quantizable[path] for path in kept if decided[path] is rule)
    return sorted(patterns)


def _run(model: nn.Module, modules: Sequence[NamedModule], config: Any) -> dict[str, Any]:
    """Run SDNQ over the empty model.

    Returns:
        The modules that it replaced by quantized ones, by path.
    """
    quantizer = load_library("sdnq.quantizer")
    try:
        with _remembering(quantizer):
            quantizer.sdnq_post_load_quant(model, quantization_config=config)
    except QUANTIZING_ERRORS as error:
        raise UnsupportedCheckpoint(
            f"SDNQ cannot quantize {type(model).__name__} with this recipe: {str(error) or repr(error)}",
            "Keep the modules that cause this (--set 'NAME=keep'), or choose another dtype or group size.",
        ) from error
    current = dict(model.named_modules())
    return {named.path: current[named.path] for named in modules if hasattr(current[named.path], "sdnq_dequantizer")}


@contextmanager
def _remembering(quantizer: ModuleType) -> Iterator[None]:
    """Let SDNQ compute once for all weights of one shape and one set of options; without numbers the results are equal.

    A model has hundreds of layers of a few shapes, and torch takes milliseconds for each on the meta device. A later
    plan in the same process needs them again: that of the model once its dtypes are decided, or of one like it.
    """
    quantize = quantizer.sdnq_quantize_layer_weight

    def remembered(weight: torch.Tensor, param_name: str | None = None, **arguments: Any) -> Any:
        if not weight.is_meta:
            return quantize(weight, param_name=param_name, **arguments)
        key = repr((weight.shape, weight.stride(), weight.dtype, sorted(arguments.items())))
        if key not in _answers:
            _answers[key] = quantize(weight, param_name=param_name, **arguments)
        dequantizer, parts = _answers[key]
        return copy(dequantizer), dict(parts)

    quantizer.sdnq_quantize_layer_weight = remembered  # type: ignore[attr-defined]
    try:
        yield
    finally:
        quantizer.sdnq_quantize_layer_weight = quantize  # type: ignore[attr-defined]


def _quantize_options(named: NamedModule, module: Any, config: Any) -> dict[str, Any]:
    """The arguments with which SDNQ quantized a module."""
    dequantizer = module.sdnq_dequantizer
    options: dict[str, Any] = load_library("sdnq.utils").get_quant_kwargs(
        module, config, torch_dtype=dequantizer.result_dtype, param_name=named.parameter
    )
    for name in PLACEMENT:
        options.pop(name)
    options["layer_class_name"] = dequantizer.layer_class_name
    options["torch_dtype"] = str(dequantizer.result_dtype).removeprefix("torch.")
    return options


def _planned_tensors(empty: EmptyModel, quantized: Mapping[str, Any]) -> Iterator[PlannedTensor]:
    keys = load_library("sdnq.common").sdnq_keys
    origins: dict[int, tuple[str, str]] = {}
    for name, tensor in empty.model.state_dict(keep_vars=True).items():
        path, _, last = name.rpartition(".")
        if path in quantized and last in keys:
            origins[id(tensor)] = empty.sources[path + ".weight"], last
        else:
            origins[id(tensor)] = empty.sources[name], ""
    for name, tensor in saved_names(empty).items():
        source, part = origins[id(tensor)]
        yield PlannedTensor(TensorSpec(name, SAFETENSORS_NAMES[tensor.dtype], tuple(tensor.shape)), source, part)


def _as_json(config: Any) -> dict[str, Any]:
    """An SDNQ configuration as in its file, with the lists that went through a set in sorted order."""
    content: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    for name in _UNORDERED:
        content[name] = sorted(set(content[name]))
    for dtype, names in content["modules_dtype_dict"].items():
        content["modules_dtype_dict"][dtype] = sorted(set(names))
    return content
