"""Plans as JSON, to keep them for later conversions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from converter.checkpoint.layout import TensorSpec
from converter.conversion.planning.plan import Plan, PlannedModule, PlannedTensor
from converter.conversion.recipe.recipe import Rule


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """A plan as an object of JSON, from which ``plan_from_json`` makes an equal one."""
    content = {field.name: getattr(plan, field.name) for field in fields(plan)}
    content["tensors"] = [
        [tensor.spec.name, tensor.spec.dtype, tensor.spec.shape, tensor.source, tensor.part] for tensor in plan.tensors
    ]
    content["modules"] = [asdict(module) for module in plan.modules.values()]
    content["unmatched_rules"] = [asdict(rule) for rule in plan.unmatched_rules]
    return content


def plan_from_json(content: Mapping[str, Any]) -> Plan:
    """The plan of which ``plan_to_json`` made this.

    Raises:
        KeyError, TypeError, ValueError: it is something else.
    """
    values = {field.name: content[field.name] for field in fields(Plan)}
    modules = [PlannedModule(**{**module, "shape": tuple(module["shape"])}) for module in content["modules"]]
    values["tensors"] = tuple(
        PlannedTensor(TensorSpec(name, dtype, tuple(shape)), source, part)
        for name, dtype, shape, source, part in content["tensors"]
    )
    values["modules"] = {module.source: module for module in modules}
    values["ignored"] = tuple(content["ignored"])
    values["unmatched_rules"] = tuple(Rule(**rule) for rule in content["unmatched_rules"])
    return Plan(**values)
