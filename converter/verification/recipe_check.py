"""The check of components against a recipe: whether their tensors are those that it makes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from converter.checkpoint.dtypes import WEIGHT_DTYPES
from converter.checkpoint.header import TensorEntry
from converter.checkpoint.source import Checkpoint, SourceTensor
from converter.conversion.planning.plan import Plan, refuse_unmatched
from converter.conversion.planning.prediction import predict_plan
from converter.conversion.recipe.recipe import Recipe
from converter.conversion.request import choose_recipes
from converter.errors import UsageError
from converter.libraries import require_library_memory
from converter.models.lens.layout import CLASS_NAME, LensConfig, lens_tensors
from converter.verification.audit import Audit
from converter.verification.configuration import differing_options
from converter.verification.copied import is_quantized
from converter.verification.report import Check, about, list_problems


def check_recipe(audits: Sequence[Audit], sources: Sequence[Checkpoint], recipe: str | Recipe) -> list[Check]:
    """Compare names, dtypes and shapes of each component with the result of a recipe, in both directions.

    Args:
        audits: of the components.
        sources: what they were made from; empty if that is not at hand, and their classes have to show it. A component
            that was quantized already is not checked, as no recipe made it.
        recipe: a recipe, its name or its file.

    Raises:
        UsageError: no component can be checked like this.
        UnsupportedCheckpoint: a class is unknown, cannot be built from its config, or SDNQ refuses it.
        RecipeError: the recipe does not exist or does not fit.
    """
    # The recipe's table for a component counts by its name in the release; the source may be its folder alone.
    pairs = [(audit, replace(model, component=audit.name)) for audit, model in _unquantized(audits, sources)]
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


def _unquantized(audits: Sequence[Audit], sources: Sequence[Checkpoint]) -> Iterator[tuple[Audit, Checkpoint]]:
    """Yield the components that a recipe can have made, with what it made them from."""
    sides = zip(audits, sources, strict=True) if sources else ((audit, None) for audit in audits)
    found = [(audit, source) for audit, source in sides if not _is_older(audit, source)]
    if not found:
        folder = (sources[0] if sources else audits[0].checkpoint).folder
        raise UsageError(f"--recipe checks what a conversion made, but {folder} was quantized before")
    for audit, source in found:
        yield audit, source or _source_of_class(audit)


def _is_older(audit: Audit, source: Checkpoint | None) -> bool:
    """Whether the conversion found a component quantized already; without its source, the manifest shows it."""
    if source is not None:
        return is_quantized(source)
    return bool(audit.converted) and audit.name not in audit.converted


def _source_of_class(audit: Audit) -> Checkpoint:
    """The headers that the unquantized form of a component has, by its class and its config.

    Raises:
        UsageError: it has no config.
        UnsupportedCheckpoint: the class is unknown, or cannot be built from the config.
    """
    checkpoint = audit.checkpoint
    if not checkpoint.config:
        raise UsageError(f"{checkpoint.folder}: --recipe needs --against SOURCE for weights without a config.json")
    config = {key: value for key, value in checkpoint.config.items() if key != "quantization_config"}
    plain = replace(checkpoint, config=config)
    tensors = {
        name: SourceTensor(TensorEntry(name, dtype, shape, 0, 0), checkpoint.folder, 0)
        for name, dtype, shape in (_lens(plain) if audit.class_name == CLASS_NAME else _of_class(plain, audit))
    }
    return replace(plain, tensors=tensors)


def _lens(checkpoint: Checkpoint) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Name, dtype and shape of each tensor of a Lens transformer, without torch."""
    for name, shape in lens_tensors(LensConfig.from_dict(checkpoint.config)):
        yield name, "F32", shape


def _of_class(checkpoint: Checkpoint, audit: Audit) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """The same of another class, from the class itself."""
    require_library_memory()
    from converter.models.classes import SAFETENSORS_NAMES
    from converter.models.empty import tensors_of_class

    floats = [name for name, entry in audit.kept.items() if entry.dtype in WEIGHT_DTYPES]
    for name, tensor in tensors_of_class(checkpoint, floats).items():
        yield name, SAFETENSORS_NAMES[tensor.dtype], tuple(tensor.shape)
