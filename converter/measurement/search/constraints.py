"""What the rules of the user leave to choose."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from converter.checkpoint.dtypes import BITS
from converter.conversion.recipe.recipe import Rule, no_match, rule_matches
from converter.errors import RecipeError
from converter.libraries import load_library
from converter.measurement.search.candidates import KEPT, SearchedModule, SearchSpace
from converter.measurement.search.problem import Choice, Problem
from converter.measurement.search.rules import AT_LEAST, INCLUDE, KEEP, SAME, SearchRule


@dataclass(frozen=True)
class Constraints:
    """What rules leave to choose."""

    allowed: tuple[tuple[str, ...], ...]
    """Names of the candidates of each module of the search; at least one."""
    groups: tuple[tuple[int, ...], ...] = ()
    """Numbers of modules that get the same candidate; they have at least one in common."""

    def problem(self, space: SearchSpace, harms: Mapping[str, Mapping[str, float]]) -> Problem:
        """The problem to solve.

        Args:
            space: that the rules were applied to.
            harms: of each module, by its source and by candidate.
        """
        modules = (
            tuple(Choice(module.bytes[name], harms[module.source][name], name) for name in names)
            for module, names in zip(space.modules, self.allowed, strict=True)
        )
        return Problem(tuple(modules), self.groups, space.fixed_bytes)


def constrain(space: SearchSpace, rules: Sequence[SearchRule]) -> Constraints:
    """Apply rules to what can be chosen.

    Raises:
        RecipeError: a rule selects nothing, or leaves a module without a choice.
    """
    asked = [candidate.name for candidate in space.candidates]
    allowed = [tuple(name for name in asked if name in module.storages) for module in space.modules]
    selected = [(rule, _select(space, rule)) for rule in rules]
    # What is kept need not be among the candidates, so this comes first.
    for rule, numbers in selected:
        for number in numbers if rule.kind == KEEP else ():
            allowed[number] = (KEPT,)
    for rule, numbers in selected:
        for number in numbers if rule.kind == AT_LEAST else ():
            bits, module = _bits_of(rule.dtype), space.modules[number]
            allowed[number] = tuple(name for name in allowed[number] if _bits(space, module, name) >= bits)
            if not allowed[number]:
                reason = f"leaves {module.names[0]} without a choice"
                raise RecipeError(rule.where, reason, f"Add a candidate of at least {bits} bits, or remove the rule.")
    return Constraints(tuple(allowed), _join(space, selected, allowed))


def _select(space: SearchSpace, rule: SearchRule) -> list[int]:
    """The numbers of the modules that a rule selects."""
    found: set[int] = set()
    names = [name for module in space.modules for name in module.names]
    for selector in rule.selectors:
        numbers = {
            number
            for number, module in enumerate(space.modules)
            if any(rule_matches(selector, name, space.class_name) for name in module.names)
        }
        found |= numbers
        if numbers or (rule.kind == KEEP and any(_matches_skipped(space, selector))):
            continue
        if any(_matches_skipped(space, selector)):
            hint = f"Add a rule with {INCLUDE} = true for modules that SDNQ skips, or remove this one."
            raise RecipeError(rule.where, f"{selector} selects only modules about which nothing is chosen", hint)
        raise no_match(f"{rule.where}: {selector}", selector, names, (*names, *space.skipped), space.class_name)
    return sorted(found)


def _matches_skipped(space: SearchSpace, selector: Rule) -> Iterator[bool]:
    return (rule_matches(selector, name, space.class_name) for name in space.skipped)


def _bits_of(dtype: str) -> int:
    return int(load_library("sdnq.common").dtype_dict[dtype]["num_bits"])


def _bits(space: SearchSpace, module: SearchedModule, name: str) -> int:
    """Bits of a number that a module stores for a candidate."""
    if name == KEPT:
        return BITS[module.storages[KEPT].parts[""].dtype]
    return _bits_of(space.candidate(name).options["weights_dtype"])


def _join(
    space: SearchSpace, selected: Sequence[tuple[SearchRule, Sequence[int]]], allowed: Sequence[Sequence[str]]
) -> tuple[tuple[int, ...], ...]:
    """The groups of modules that get the same candidate; groups that share a module become one."""
    groups: list[set[int]] = []
    for rule, numbers in selected:
        for members in _groups(space, rule, numbers) if rule.kind == SAME else ():
            joined = members.union(*(group for group in groups if group & members))
            groups = [group for group in groups if not group & members] + [joined]
            first, *others = sorted(joined)
            common = set(allowed[first])
            for other in others:
                common &= set(allowed[other])
                if not common:
                    raise RecipeError(
                        rule.where,
                        f"leaves {space.modules[other].names[0]} without a choice: the modules that must be the same "
                        "have no candidate in common",
                        "Change the rules or the candidates.",
                    )
    return tuple(tuple(sorted(group)) for group in groups)


def _groups(space: SearchSpace, rule: SearchRule, numbers: Sequence[int]) -> list[set[int]]:
    """The modules that one rule gives the same candidate."""
    found: dict[tuple[str, ...], set[int]] = {}
    patterns = [re.compile("(.*)".join(map(re.escape, text.split("*")))) for text in rule.globs]
    for number in numbers:
        for name in space.modules[number].names:
            for match in filter(None, (pattern.fullmatch(name) for pattern in patterns)):
                found.setdefault(match.groups(), set()).add(number)
    groups = [members for members in found.values() if len(members) > 1] if len(rule.globs) > 1 else [set(numbers)]
    if not groups or len(groups[0]) < 2:
        raise RecipeError(
            rule.where,
            "brings no two modules together",
            "Of several globs, those modules get the same candidate for which all stars stand for the same text.",
        )
    return groups
