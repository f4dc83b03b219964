"""The variants that an ablation measures: each is a recipe with a name.

Without a file they follow from the families of the model: the recipe itself, everything linear quantized, all but one
family, and one family alone. The last two show the harm of a family from both sides: what it costs to quantize it, and
what is gained by keeping it.

A file of variants is TOML. A variant has the options and rules of a recipe that it names, or of the recipe that is
examined; its own options are laid over them, and its rules replace them:

    [[variants]]
    name = "attention in int8"

    [[variants.rules]]
    family = "attn"
    weights_dtype = "int8"
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from converter.checkpoint.source import Checkpoint
from converter.conversion.planning.plan import Plan
from converter.conversion.planning.planner import plan_with_sdnq
from converter.conversion.recipe.recipe import Recipe, Rule, choose_recipe, parse_overlay, read_recipe_text
from converter.errors import RecipeError, UnsupportedCheckpoint, printable
from converter.fields import Fields, parse_toml
from converter.measurement.sensitivity.storage import Storage, storages
from converter.models.families import family

#: The dtype that each built-in variant of one family is measured in besides that of the recipe.
_SECOND_DTYPE = "int8"
#: More variants than anybody compares by eye.
MOST_VARIANTS = 200


@dataclass(frozen=True)
class Variant:
    """One way of storing the model."""

    name: str
    recipe: Recipe
    plan: Plan

    @cached_property
    def storages(self) -> dict[str, Storage]:
        """How it stores each tensor of the source, by its name there."""
        return storages(self.plan, self.recipe.rounding)

    @property
    def bytes(self) -> int:
        """Footprint of the model."""
        return sum(spec.bytes for spec in self.plan.specs)

    @property
    def id(self) -> str:
        """A name for its files."""
        return hashlib.sha256(self.name.encode()).hexdigest()[:12]


def builtin_variants(checkpoint: Checkpoint, recipe: Recipe) -> list[Variant]:
    """The variants that follow from a recipe and the families of a model; the recipe itself comes first.

    Args:
        checkpoint: the original.
        recipe: what is examined.

    Raises:
        UnsupportedCheckpoint: the class is unknown, the tensors do not fit it, or nothing can be quantized.
        RecipeError: the recipe does not fit the model.
    """
    own = Variant(recipe.name, recipe, plan_with_sdnq(checkpoint, recipe))
    linear = replace(recipe, rules=())
    all_linear = Variant(f"{_dtype(linear)}, all linear", linear, plan_with_sdnq(checkpoint, linear))
    if not all_linear.plan.modules:
        raise UnsupportedCheckpoint(
            f"{checkpoint.folder}: SDNQ quantizes no module of it with the options of {recipe.name}",
            "Choose another recipe.",
        )
    families = _quantized_families(all_linear.plan)
    second = replace(linear, options={**linear.options, "weights_dtype": _SECOND_DTYPE})
    recipes: list[tuple[str, Recipe]] = []
    if len(families) > 1:
        recipes += [(f"{_dtype(linear)}, all but {name}", _keeping(linear, [name])) for name in families]
        recipes += [(f"{_dtype(linear)}, {name} alone", _alone(linear, name, families)) for name in families]
    if _dtype(linear) != _SECOND_DTYPE:
        recipes.append((f"{_SECOND_DTYPE}, all linear", second))
        if len(families) > 1:
            recipes += [(f"{_SECOND_DTYPE}, {name} alone", _alone(second, name, families)) for name in families]
    return [own, all_linear, *(Variant(name, made, plan_with_sdnq(checkpoint, made)) for name, made in recipes)]


def read_variants(file: Path, checkpoint: Checkpoint, recipe: Recipe) -> list[Variant]:
    """Read the variants of a file, after the recipe itself.

    Args:
        file: TOML.
        checkpoint: the original.
        recipe: what is examined.

    Raises:
        MissingInput: the file cannot be read.
        RecipeError: it is malformed, or a variant does not fit the model.
    """
    content = parse_toml(read_recipe_text(file), str(file), RecipeError)
    content.refuse_unknown(("variants",), "a file of variants")
    tables = content.take_tables("variants", "variant")
    if not 0 < len(tables) <= MOST_VARIANTS:
        raise RecipeError(file, f"has {len(tables)} variants, must have 1 to {MOST_VARIANTS}", "Write [[variants]].")
    variants = [Variant(recipe.name, recipe, plan_with_sdnq(checkpoint, recipe))]
    for table in tables:
        variants.append(_parse_variant(table, checkpoint, recipe))
        if variants[-1].name in [variant.name for variant in variants[:-1]]:
            raise RecipeError(table.where, f"{printable(variants[-1].name)} is the name of another variant")
    return variants


def distinct_storages(variants: Sequence[Variant]) -> dict[str, list[Storage]]:
    """The different ways in which variants store each tensor of the source."""
    found: dict[str, dict[str, Storage]] = {}
    for variant in variants:
        for source, storage in variant.storages.items():
            found.setdefault(source, {})[storage.key] = storage
    return {source: list(kinds.values()) for source, kinds in found.items()}


def _parse_variant(table: Fields, checkpoint: Checkpoint, examined: Recipe) -> Variant:
    table.refuse_unknown(("name", "recipe", "rounding", "sdnq", "rules"), "a variant")
    name = table.take("name", str)
    if not name or printable(name) != name or len(name) > 100:
        raise RecipeError(table.where, "name must be 1 to 100 characters that can be printed")
    base = examined
    if "recipe" in table.content:
        base = choose_recipe(table.take("recipe", str), checkpoint).for_component(checkpoint.component)
    recipe = replace(parse_overlay(base, table), name=name)
    if recipe.is_data_dependent:
        raise RecipeError(
            table.where, "use_dynamic_quantization chooses dtypes by the weights, which a variant cannot do"
        )
    return Variant(name, recipe, plan_with_sdnq(checkpoint, recipe))


def _dtype(recipe: Recipe) -> str:
    # The dtype of SDNQConfig where a recipe names none.
    return str(recipe.options.get("weights_dtype", _SECOND_DTYPE))


def _quantized_families(plan: Plan) -> list[str]:
    return sorted({family(source, plan.class_name) for source in plan.modules})


def _keeping(recipe: Recipe, families: Sequence[str]) -> Recipe:
    return replace(recipe, rules=tuple(Rule(family=name, keep=True) for name in families))


def _alone(recipe: Recipe, name: str, families: Sequence[str]) -> Recipe:
    return _keeping(recipe, [other for other in families if other != name])


def block_of(name: str) -> str:
    """The block of a tensor: its name up to the first number, such as ``transformer_blocks.2``; else empty."""
    return next(_prefixes(name), "")


def _prefixes(name: str) -> Iterator[str]:
    parts = name.split(".")
    for number, part in enumerate(parts[1:], 1):
        if part.isdecimal():
            yield ".".join(parts[: number + 1])
