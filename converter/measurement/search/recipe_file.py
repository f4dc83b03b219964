"""What a search found, as a recipe that ``convert`` takes."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from converter.checkpoint.source import Checkpoint
from converter.conversion.planning.plan import Plan
from converter.conversion.planning.planner import plan_with_sdnq
from converter.conversion.recipe.recipe import NEAREST, Recipe, Rule, rule_matches
from converter.errors import RecipeError
from converter.measurement.search.candidates import SearchSpace
from converter.measurement.search.problem import Selection
from converter.measurement.sensitivity.storage import storages


def make_recipe(
    space: SearchSpace, selection: Selection, *, name: str, description: str, evidence_sha256: str
) -> Recipe:
    """Make the recipe that gives each module what was chosen for it.

    Args:
        space: what could be chosen.
        selection: a choice for each of its modules, in their order.
        name: of the recipe.
        description: of the recipe.
        evidence_sha256: sha256 of the evidence of the search, in hexadecimal digits.

    Returns:
        The recipe of the search with other rules: general ones for modules that differ only by numbers in their names,
        then one for each exception. Its rounding is ``NEAREST`` where another one works for nothing that was chosen.
    """
    chosen = {
        path: choice.name
        for module, choice in zip(space.modules, selection.choices, strict=True)
        for path in module.names
    }
    general = _general_rules(space, chosen)
    exceptions = [
        space.candidate(candidate).rule(glob.escape(path))
        for path, candidate in chosen.items()
        if _decided(general, path, space) != _meaning(space.candidate(candidate).rule(""))
    ]
    pairs = zip(space.modules, selection.choices, strict=True)
    roundings = {module.storages[choice.name].rounding for module, choice in pairs}
    return replace(
        space.recipe,
        name=name,
        description=description,
        # A conversion refuses a rounding that works for no module.
        rounding=space.recipe.rounding if space.recipe.rounding in roundings else NEAREST,
        evidence_sha256=evidence_sha256,
        classes=(),
        components={},
        rules=(*general, *exceptions),
    )


def _general_rules(space: SearchSpace, chosen: Mapping[str, str]) -> list[Rule]:
    """A rule for each name with stars instead of numbers, if it matches only modules about which something was chosen.

    It gives them what most of them got.
    """
    alike: dict[str, Counter[str]] = {}
    for path, candidate in chosen.items():
        pattern = ".".join("*" if part.isdecimal() else part for part in glob.escape(path).split("."))
        alike.setdefault(pattern, Counter())[candidate] += 1
    rules = []
    for pattern, counts in alike.items():
        (candidate, count), *_ = counts.most_common()
        rule = space.candidate(candidate).rule(pattern)
        if count > 1 and not any(rule_matches(rule, path, space.class_name) for path in space.skipped):
            rules.append(rule)
    return rules


def _decided(rules: Sequence[Rule], path: str, space: SearchSpace) -> tuple[bool, Mapping[str, Any]] | None:
    """What the last rule that matches a module does with it."""
    return next((_meaning(rule) for rule in reversed(rules) if rule_matches(rule, path, space.class_name)), None)


def _meaning(rule: Rule) -> tuple[bool, Mapping[str, Any]]:
    return rule.keep, rule.options


def recipe_text(recipe: Recipe) -> str:
    """The TOML of a recipe for one component, the same in every run; ``parse_recipe`` makes the same recipe of it."""
    # Imported here: only the extra `measure` has it.
    import tomli_w

    content: dict[str, Any] = {"name": recipe.name, "description": recipe.description}
    if recipe.seed:
        content["seed"] = recipe.seed
    if recipe.rounding != NEAREST:
        content["rounding"] = recipe.rounding
    if recipe.evidence_sha256:
        content["evidence_sha256"] = recipe.evidence_sha256
    content["sdnq"] = dict(recipe.options)
    content["rules"] = [
        {"match": rule.match, **({"keep": True} if rule.keep else rule.options)} for rule in recipe.rules
    ]
    return tomli_w.dumps(content)


def plan_selection(checkpoint: Checkpoint, space: SearchSpace, selection: Selection, recipe: Recipe) -> Plan:
    """Plan a recipe with SDNQ, and compare the result with what was chosen.

    Args:
        checkpoint: the original.
        space: what could be chosen.
        selection: what was chosen.
        recipe: what ``make_recipe`` made of it.

    Raises:
        RecipeError: SDNQ makes something else of a module, or of the whole, than the search expected.
    """
    plan = plan_with_sdnq(checkpoint, recipe)
    stored = storages(plan, recipe.rounding)
    different = [
        f"{module.names[0]} is not stored as {choice.name}"
        for module, choice in zip(space.modules, selection.choices, strict=True)
        if stored[module.source].key != module.storages[choice.name].key
    ]
    total = sum(spec.bytes for spec in plan.specs)
    if total != selection.bytes:
        different.append(f"the result has {total} bytes, not {selection.bytes}")
    if different:
        raise RecipeError(
            f"recipe {recipe.name}",
            f"SDNQ makes something else of it than of the candidates: {different[0]}",
            "Leave out the rules of the search that include modules, or use another recipe for the other options.",
        )
    return plan
