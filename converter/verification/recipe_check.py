"""The check of components against a recipe: whether their tensors are those that it makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from converter.checkpoint.header import TensorEntry
from converter.checkpoint.source import Checkpoint, SourceTensor
from converter.conversion.planning.plan import Plan, refuse_unmatched
from converter.conversion.planning.prediction import predict_plan
from converter.conversion.recipe.recipe import Recipe
from converter.conversion.request import choose_recipes
from converter.errors import UsageError
from converter.models.lens.layout import CLASS_NAME, LensConfig, lens_tensors
from converter.verification.audit import Audit
from converter.verification.configuration import differing_options
from converter.verification.copied import is_quantized
from converter.verification.report import Check, about, list_problems


def check_recipe(audits: Sequence[Audit], sources: Sequence[Checkpoint], recipe: str | Recipe) -> list[Check]:
    """Compare names, dtypes and shapes of each component with the result of a recipe, in both directions.

    Args:
        audits: of the components.
        sources: what they were made from; empty if that is not at hand, and only Lens can be checked. A component that
            was quantized already is not checked, as no recipe made it.
        recipe: a recipe, its name or its file.

    Raises:
        UsageError: no component can be checked like this.
        RecipeError: the recipe does not exist or does not fit.
    """
    models = [*sources] if sources else [_unquantized_lens(audit) for audit in audits]
    pairs = [
        # The recipe's table for a component counts by its name in the release; the source may be its folder alone.
        (audit, replace(model, component=audit.name))
        for audit, model in zip(audits, models, strict=True)
        if model is not None and not is_quantized(model)
    ]
    if sources and not pairs:
        raise UsageError(f"--recipe checks what a conversion made, but {sources[0].folder} is quantized already")
    if not pairs:
        is_lens = any(audit.class_name == CLASS_NAME for audit in audits)
        what = "weights without a config.json" if is_lens else "a class other than Lens"
        raise UsageError(f"--recipe needs --against SOURCE for {what}")
    recipes = choose_recipes(recipe, [model for _, model in pairs])
    # A rule may be for components that were converted and are not checked here.
    is_part = bool(audits[0].converted - {audit.name for audit, _ in pairs})
    if is_part:
        recipes = [chosen.with_optional_rules() for chosen in recipes]
    plans = [_plan(model, chosen) for (_, model), chosen in zip(pairs, recipes, strict=True)]
    if not is_part:
        refuse_unmatched(recipes, plans)
    named = len(audits) > 1
    return [
        check
        for (audit, _), plan, chosen in zip(pairs, plans, recipes, strict=True)
        for check in about(audit.name if named else "", [_compare(audit, plan, chosen)])
    ]


def _compare(audit: Audit, plan: Plan, recipe: Recipe) -> Check:
    planned = {spec.name: (spec.dtype, spec.shape) for spec in plan.specs}
    found = {name: (tensor.entry.dtype, tensor.entry.shape) for name, tensor in audit.checkpoint.tensors.items()}
    problems = [f"{name} is missing" for name in sorted(planned.keys() - found.keys())]
    problems += [f"{name} is unexpected" for name in sorted(found.keys() - planned.keys())]
    for name in sorted(planned.keys() & found.keys()):
        if planned[name] != found[name]:
            (dtype, shape), (wanted, wanted_shape) = found[name], planned[name]
            problems.append(f"{name} is {dtype} {list(shape)}, should be {wanted} {list(wanted_shape)}")
    # A predicted plan has no quantization config; the recipe's options are its part of it.
    options = plan.quantization_config or recipe.options
    known = {key: value for key, value in options.items() if key != "sdnq_version"}
    different = differing_options(known, audit.config, only_shared=True)
    if different:
        problems.insert(0, f"the quantization config disagrees with the recipe on {different}")
    return list_problems("recipe", problems, f"all {len(planned)} tensors are as recipe {recipe.name} makes them")


def _plan(model: Checkpoint, recipe: Recipe) -> Plan:
    if recipe.is_data_dependent:
        raise UsageError(f"--recipe cannot check {recipe.name}: its dtypes depend on the weights", "Omit --recipe.")
    plan = predict_plan(model, recipe)
    if plan is None:
        from converter.conversion.planning.planner import plan_with_sdnq

        plan = plan_with_sdnq(model, recipe)
    return plan


def _unquantized_lens(audit: Audit) -> Checkpoint | None:
    """The headers that the unquantized form of a Lens checkpoint has; None for another class or without a config."""
    checkpoint = audit.checkpoint
    if audit.class_name != CLASS_NAME or not checkpoint.config:
        return None
    tensors = {
        name: SourceTensor(TensorEntry(name, "F32", shape, 0, 0), checkpoint.folder, 0)
        for name, shape in lens_tensors(LensConfig.from_dict(checkpoint.config))
    }
    config = {key: value for key, value in checkpoint.config.items() if key != "quantization_config"}
    return replace(checkpoint, tensors=tensors, config=config)
