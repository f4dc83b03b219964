"""Rules of the user for a search: what must be kept, have so many bits, or be the same.

A file of rules is TOML. Each rule selects modules as a rule of a recipe does, by a glob or a family, and says one thing
about them:

    [[rules]]
    match = "*.img_mod.*"
    keep = true

    [[rules]]
    family = "attn"
    at_least = "int8"

    [[rules]]
    match = "proj_out"
    include = true

    [[rules]]
    same = ["*.attn.to_q", "*.attn.to_k", "*.attn.to_v"]

``include`` makes modules part of the choice that SDNQ would skip by its own keys. ``same = true`` gives all modules
that are selected the same candidate. With globs, those get the same one for which the stars stand for the same text:
here the three layers of each block, which share a kernel.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter.conversion.planning.planner import check_dtypes
from converter.conversion.recipe.recipe import Rule, read_recipe_text
from converter.errors import RecipeError
from converter.fields import Fields, parse_toml

#: What a rule can say, in its file.
KEEP, INCLUDE, AT_LEAST, SAME = KINDS = ("keep", "include", "at_least", "same")


@dataclass(frozen=True)
class SearchRule:
    """What a search must do with the modules that a rule selects."""

    kind: str
    """One of ``KINDS``."""
    globs: tuple[str, ...] = ()
    """Over full names of modules; several only for ``SAME``."""
    family: str = ""
    """Instead of globs."""
    dtype: str = ""
    """For ``AT_LEAST``: a dtype of SDNQ, whose bits count."""
    where: str = ""
    """Where it was written, for messages."""

    @property
    def selectors(self) -> tuple[Rule, ...]:
        """Rules of a recipe that select the same modules, one for each glob."""
        return (Rule(family=self.family),) if self.family else tuple(Rule(match=text) for text in self.globs)

    def to_dict(self) -> dict[str, Any]:
        """The rule as in its file."""
        if len(self.globs) > 1:
            return {self.kind: list(self.globs)}
        selected = {"family": self.family} if self.family else {"match": self.globs[0]}
        return {**selected, self.kind: self.dtype or True}


def read_rules(file: Path) -> tuple[SearchRule, ...]:
    """Read a file of rules.

    Raises:
        MissingInput: it cannot be read.
        RecipeError: it is malformed.
    """
    content = parse_toml(read_recipe_text(file), str(file), RecipeError)
    content.refuse_unknown(("rules",), "a file of rules")
    return tuple(map(_parse_rule, content.take_tables("rules", "rule")))


def _parse_rule(content: Fields) -> SearchRule:
    content.refuse_unknown(("match", "family", *KINDS), "a rule of a search")
    kinds = [kind for kind in KINDS if kind in content.content]
    if len(kinds) != 1:
        raise RecipeError(content.where, f"needs one of {', '.join(KINDS)}")
    (kind,) = kinds
    match, family = content.take("match", str, ""), content.take("family", str, "")
    if kind == SAME and isinstance(content.content[SAME], list):
        globs = content.take_strings(SAME)
        if match or family or len(set(globs)) < max(2, len(globs)) or not all(globs):
            raise RecipeError(content.where, "same needs two or more different globs, and neither match nor family")
        return _checked(SearchRule(kind, globs, where=content.where))
    if bool(match) == bool(family):
        raise RecipeError(content.where, "needs match or family, not both")
    dtype = content.take(kind, str) if kind == AT_LEAST else ""
    if kind != AT_LEAST and not content.take(kind, bool):
        raise RecipeError(content.where, f"{kind} must be true", "Remove the rule.")
    return _checked(SearchRule(kind, (match,) if match else (), family, dtype, content.where))


def parse_rule(text: str) -> SearchRule:
    """Parse a rule from the command line: ``GLOB=keep``, ``GLOB=include``, ``GLOB=same`` or ``GLOB>=DTYPE``.

    Several globs, separated by commas, may be ``same``, as in a file.

    Raises:
        RecipeError: it is none of these, or SDNQ does not know the dtype.
    """
    where = f"--rule {text}"
    match, least, dtype = text.rpartition(">=")
    if least and match and dtype:
        return _checked(SearchRule(AT_LEAST, (match,), dtype=dtype, where=where))
    match, _, kind = text.rpartition("=")
    globs = tuple(match.split(",")) if kind == SAME else (match,)
    if kind not in (KEEP, INCLUDE, SAME) or not all(globs) or len(set(globs)) < len(globs):
        raise RecipeError(
            where,
            "must be GLOB=keep, GLOB=include, GLOB>=DTYPE or GLOB,GLOB=same",
            "For example '*.attn.*>=int8'.",
        )
    return _checked(SearchRule(kind, globs, where=where))


def _checked(rule: SearchRule) -> SearchRule:
    if rule.kind == AT_LEAST:
        check_dtypes({"weights_dtype": rule.dtype}, rule.where)
    if len(rule.globs) > 1 and any(re.search(r"[?\[]", text) for text in rule.globs):
        raise RecipeError(rule.where, "has globs with ? or [; of several globs, only stars are compared", "Use stars.")
    return rule


def included(rules: Sequence[SearchRule]) -> tuple[Rule, ...]:
    """What selects the modules that SDNQ would skip and that are part of the choice."""
    return tuple(selector for rule in rules if rule.kind == INCLUDE for selector in rule.selectors)
