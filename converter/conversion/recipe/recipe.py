"""What to quantize, how, and what to keep.

A recipe is a TOML file: a name, the options of SDNQ by SDNQ's own names, and rules that select modules. A rule
matches full names with an ``fnmatch`` glob, or a family; of all rules that match a module the last one wins. SDNQ's
own patterns are not globs (a bare word matches a whole dotted component, ``*`` is anchored at the start), so rules are
resolved to exact names before SDNQ sees them.

    name = "mine"

    [sdnq]
    weights_dtype = "uint4"

    [[rules]]
    match = "*.img_mod.*"
    keep = true

    [[rules]]
    family = "attn"
    weights_dtype = "int8"

    [components.text_encoder.sdnq]
    weights_dtype = "int8"

The table of a component has options, which are laid over those of the recipe. If it has rules or a rounding, they
replace the recipe's.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from importlib import resources
from pathlib import Path
from typing import Any

from converter.checkpoint.files import read_bounded
from converter.checkpoint.source import Checkpoint
from converter.errors import RecipeError, printable
from converter.fields import Fields, parse_toml
from converter.models.config import model_config
from converter.models.families import family

#: The options of ``sdnq.SDNQConfig`` 0.2.8 that change the file and that SDNQ can set for one module
#: (``modules_quant_config``), and the type of each. Lists of modules are left out: rules do the same by name, and are
#: checked against the model.
RULE_OPTION_TYPES: dict[str, type] = {
    "weights_dtype": str,
    "scale_dtype": str,
    "zero_point_dtype": str,
    "quantized_matmul_dtype": str,
    "group_size": int,
    "hadamard_group_size": int,
    "svd_rank": int,
    "svd_steps": int,
    "codebook_steps": int,
    "use_svd": bool,
    "use_hadamard": bool,
    "use_codebook": bool,
    "use_codebook_scale": bool,
    "use_quantized_matmul": bool,
    "use_quantized_matmul_conv": bool,
    "use_stochastic_rounding": bool,
    "dequantize_fp32": bool,
}
#: All options: those above, and those that SDNQ can only set for the whole model.
OPTION_TYPES: dict[str, type] = {
    **RULE_OPTION_TYPES,
    "quant_conv": bool,
    "quant_embedding": bool,
    "add_skip_keys": bool,
    "minimum_allowed_numel": int,
    "minimum_allowed_channel_size": int,
    "use_dynamic_quantization": bool,
    "dynamic_loss_threshold": float,
}
#: How scales, zero points and codes are chosen: as SDNQ does, by a search for the least squared error of weights, or of
#: what layers compute, with inputs like those of a calibration.
NEAREST, SCALE, CALIBRATED = "nearest", "scale", "calibrated"
ROUNDINGS = (NEAREST, SCALE, CALIBRATED)
#: Limit for the file of a recipe, in bytes; real ones have a few hundred.
MAXIMUM_RECIPE_BYTES = 1_000_000


@dataclass(frozen=True)
class Rule:
    """What happens to the modules that a glob or a family selects."""

    match: str = ""
    """A glob over full names of modules or tensors; empty when a family is given."""
    family: str = ""
    keep: bool = False
    """Whether the modules stay in bfloat16."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of SDNQ for these modules; empty when they are kept."""
    component: str = ""
    """The only component that it is for; empty if it is for all."""
    optional: bool = False
    """Whether it may select nothing, since it is meant for other components as well."""

    def __str__(self) -> str:
        return f"family {self.family}" if self.family else self.match


@dataclass(frozen=True)
class Recipe:
    """A named choice of SDNQ options and rules."""

    name: str
    options: Mapping[str, Any]
    rules: tuple[Rule, ...] = ()
    description: str = ""
    classes: tuple[str, ...] = ()
    """Classes of models that this recipe is the default for."""
    seed: int = 0
    """Seed of torch's generator, for options of SDNQ that use random numbers."""
    rounding: str = NEAREST
    """How codes are chosen, one of ``ROUNDINGS``."""
    evidence_sha256: str = ""
    """sha256 of the evidence by which a search chose the rules, in hexadecimal digits; empty if none did."""
    components: Mapping[str, Recipe] = field(default_factory=dict)
    """Recipes of components that have their own options and rules, by name."""

    def for_component(self, name: str) -> Recipe:
        """The recipe for one component of a pipeline.

        Args:
            name: of the component.
        """
        return self.components.get(name) or replace(self, components={})

    def with_rules(self, rules: Iterable[Rule]) -> Recipe:
        """The same recipe with more rules, which win over its own."""
        return replace(self, rules=(*self.rules, *rules))

    def with_optional_rules(self) -> Recipe:
        """The same recipe, of which every rule may select nothing."""
        return replace(self, rules=tuple(replace(rule, optional=True) for rule in self.rules))

    @property
    def is_random(self) -> bool:
        """Whether SDNQ uses random numbers for it."""
        return any(options.get("use_svd") or options.get("use_stochastic_rounding") for options in self._all_options())

    @property
    def depends_on_threads(self) -> bool:
        """Whether the number of torch's threads changes bits: a factorisation then adds up in another order."""
        return self.rounding == CALIBRATED or any(options.get("use_svd") for options in self._all_options())

    @property
    def is_data_dependent(self) -> bool:
        """Whether the weights decide dtypes, so that the size is not known before."""
        return bool(self.options.get("use_dynamic_quantization"))

    @property
    def reads_in_order(self) -> bool:
        """Whether tensors can be converted in any order; random numbers and decisions have that of the modules."""
        return not (self.is_random or self.is_data_dependent)

    def _all_options(self) -> Iterable[Mapping[str, Any]]:
        return (self.options, *(rule.options for rule in self.rules))


def builtin_recipes() -> tuple[Recipe, ...]:
    """The recipes that ship with lensconv, by name."""
    files = [entry for entry in resources.files(__package__).iterdir() if entry.name.endswith(".toml")]
    recipes = [parse_recipe(file.read_text("utf-8"), where=file.name) for file in files]
    return tuple(sorted(recipes, key=lambda recipe: recipe.name))


def find_recipe(name: str | None, class_name: str) -> Recipe:
    """Return the recipe that the user named.

    Args:
        name: name of a built-in recipe, or path of a TOML file; None chooses the default for the class.
        class_name: class of the model.

    Raises:
        RecipeError: the recipe does not exist, or the file is malformed.
        MissingInput: the file cannot be read.
    """
    builtin = {recipe.name: recipe for recipe in builtin_recipes()}
    if name is None:
        defaults = (recipe for recipe in builtin.values() if class_name in recipe.classes)
        return next(defaults, builtin["sdnq-uint4"])
    if name in builtin:
        return builtin[name]
    path = Path(name)
    if not path.is_file():
        raise RecipeError(name, "no such recipe and no such file", f"Built in: {', '.join(builtin)}.")
    return parse_recipe(read_recipe_text(path), where=name)


def read_recipe_text(file: Path) -> str:
    """Read a TOML file with rules of recipes or like them, as far as that it is text.

    Raises:
        MissingInput: it cannot be read.
        RecipeError: it is too long, or not UTF-8.
    """
    try:
        return read_bounded(file, MAXIMUM_RECIPE_BYTES, RecipeError).decode("utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(file, f"is not UTF-8 at byte {error.start}", "Save it again as UTF-8.") from error


def choose_recipe(recipe: str | Recipe | None, checkpoint: Checkpoint) -> Recipe:
    """The recipe to use for a checkpoint.

    Raises:
        RecipeError: the recipe does not exist.
    """
    if not isinstance(recipe, Recipe):
        recipe = find_recipe(recipe, model_config(checkpoint).class_name)
    return recipe


def parse_recipe(text: str, *, where: str) -> Recipe:
    """Parse the text of a recipe.

    Args:
        text: TOML.
        where: its file, for messages.

    Raises:
        RecipeError: it is not TOML, or has an unknown key, or a value of the wrong type.
    """
    content = parse_toml(text, where, RecipeError)
    texts = ("name", "description", "classes", "seed", "rounding", "evidence_sha256")
    content.refuse_unknown((*texts, "sdnq", "rules", "components"), "a recipe")
    seed = content.take("seed", int, 0)
    if not 0 <= seed < 1 << 63:
        raise RecipeError(where, "seed must be a number from 0 to 2**63 - 1")
    evidence = content.take("evidence_sha256", str, "")
    if "evidence_sha256" in content.content and not re.fullmatch("[0-9a-f]{64}", evidence):
        raise RecipeError(where, "evidence_sha256 must be 64 lower-case hexadecimal digits")
    recipe = Recipe(
        name=content.take("name", str, Path(where).stem),
        options=_sdnq_options(content),
        rules=tuple(map(_parse_rule, content.take_tables("rules", "rule"))),
        description=content.take("description", str, ""),
        classes=content.take_strings("classes"),
        seed=seed,
        rounding=_take_rounding(content, NEAREST),
        evidence_sha256=evidence,
    )
    components = Fields(content.take("components", dict, {}), where, RecipeError)
    return replace(recipe, components={name: _parse_component(recipe, components, name) for name in components.content})


def _parse_component(recipe: Recipe, components: Fields, name: str) -> Recipe:
    """The recipe of a component that has a table of its own."""
    where = f"{components.where}: [components.{printable(name)}]"
    content = Fields(components.take(name, dict), where, RecipeError)
    content.refuse_unknown(("rounding", "sdnq", "rules"), "a component")
    return parse_overlay(recipe, content)


def parse_overlay(recipe: Recipe, content: Fields) -> Recipe:
    """The recipe with the options and rules of a table: options are laid over its own, and rules replace its own.

    Args:
        recipe: what is changed.
        content: a table with ``sdnq``, ``rules`` and ``rounding``, which may be missing.

    Raises:
        RecipeError: an option or a rule is malformed.
    """
    own = tuple(map(_parse_rule, content.take_tables("rules", "rule")))
    return replace(
        recipe,
        options={**recipe.options, **_sdnq_options(content)},
        rules=own if "rules" in content.content else recipe.rules,
        rounding=_take_rounding(content, recipe.rounding),
    )


def _take_rounding(content: Fields, default: str) -> str:
    rounding: str = content.take("rounding", str, default)
    if rounding not in ROUNDINGS:
        known = ", ".join(ROUNDINGS)
        raise RecipeError(content.where, f"rounding = {printable(rounding, 40)} is not known", f"Use one of: {known}.")
    return rounding


def _sdnq_options(content: Fields) -> dict[str, Any]:
    return _take_options(Fields(content.take("sdnq", dict, {}), content.where, RecipeError), OPTION_TYPES, "[sdnq]")


def parse_setting(text: str) -> Rule:
    """Parse a rule from the command line: ``GLOB=keep`` or ``GLOB=DTYPE``, the glob after ``COMPONENT/`` or alone.

    Raises:
        RecipeError: it is neither.
    """
    glob, separator, value = text.rpartition("=")
    # Names of modules contain no slash.
    component, slash, glob = glob.rpartition("/")
    if not (separator and glob and value) or (slash and not component):
        raise RecipeError(
            f"--set {text}",
            "must be GLOB=keep or GLOB=DTYPE",
            "For example '*.attn.*=int8'.",
        )
    options = {} if value == "keep" else {"weights_dtype": value}
    return Rule(match=glob, keep=not options, options=options, component=component)


def resolve_rules(
    recipe: Recipe,
    modules: Sequence[str],
    tensors: Iterable[str],
    class_name: str,
) -> dict[str, Rule]:
    """The rule of each module: the last one that matches it.

    Args:
        recipe: its rules count, in their order.
        modules: full names of the modules that SDNQ is able to quantize.
        tensors: full names of all tensors of the model.
        class_name: class of the model, for its families.

    Returns:
        The rule of every module that any rule matches.

    Raises:
        RecipeError: a rule that is not optional matches nothing.
    """
    names = _all_names(tensors)
    decided: dict[str, Rule] = {}
    for rule in recipe.rules:
        matched = [module for module in modules if rule_matches(rule, module, class_name)]
        if not (matched or rule.optional or _keeps_any(rule, names, class_name)):
            raise no_match(f"recipe {recipe.name}, rule for {rule}", rule, modules, names, class_name)
        for module in matched:
            decided[module] = rule
    return decided


def unmatched_rules(
    recipe: Recipe, modules: Sequence[str], tensors: Iterable[str], class_name: str
) -> tuple[Rule, ...]:
    """The optional rules that match nothing; arguments as for ``resolve_rules``."""
    names = _all_names(tensors)
    return tuple(
        rule
        for rule in recipe.rules
        if rule.optional
        and not any(rule_matches(rule, module, class_name) for module in modules)
        and not _keeps_any(rule, names, class_name)
    )


def _all_names(tensors: Iterable[str]) -> set[str]:
    """Names of tensors, and of the modules that own them."""
    names = set(tensors)
    return names | ({name.rpartition(".")[0] for name in names} - {""})


def _keeps_any(rule: Rule, names: Iterable[str], class_name: str) -> bool:
    """Whether a rule keeps something that SDNQ would not quantize in any case."""
    return rule.keep and any(rule_matches(rule, name, class_name) for name in names)


def rule_matches(rule: Rule, module: str, class_name: str) -> bool:
    """Whether a rule selects a module; a glob may name the module or its weight."""
    if rule.family:
        return family(module + ".weight", class_name) == rule.family
    return fnmatchcase(module, rule.match) or fnmatchcase(module + ".weight", rule.match)


def no_match(where: str, rule: Rule, modules: Sequence[str], names: Collection[str], class_name: str) -> RecipeError:
    """Return the error for a rule that selects nothing; it names what is similar.

    Args:
        where: the rule, for the message.
        rule: what it selects counts.
        modules: full names of the modules that could be selected.
        names: full names of all modules and tensors.
        class_name: class of the model, for its families.
    """
    if rule.family:
        families = sorted({family(module + ".weight", class_name) for module in modules})
        return RecipeError(where, "no module belongs to that family", f"Families: {', '.join(families)}.")
    if any(rule_matches(rule, name, class_name) for name in names):
        return RecipeError(where, "matches only tensors that SDNQ cannot quantize", "Remove the rule.")
    parts = {part for name in names for part in name.split(".") if not part.isdigit()}
    wanted = rule.match.strip("*.")
    near = difflib.get_close_matches(wanted, sorted(parts.union(names)), n=4, cutoff=0.5)
    return RecipeError(
        where,
        "matches nothing in the model",
        f"Similar names: {', '.join(near)}." if near else "`lensconv plan SOURCE --json` lists the names.",
    )


def _parse_rule(content: Fields) -> Rule:
    keys = ("match", "family", "keep")
    rule = Rule(
        match=content.take("match", str, ""),
        family=content.take("family", str, ""),
        keep=content.take("keep", bool, False),
        options=_take_options(content, RULE_OPTION_TYPES, "a rule", keys),
    )
    if bool(rule.match) == bool(rule.family):
        raise RecipeError(content.where, "needs match or family, not both")
    if rule.keep == bool(rule.options):
        raise RecipeError(content.where, "needs keep = true or options such as weights_dtype, not both")
    return rule


def _take_options(content: Fields, types: Mapping[str, type], what: str, others: Sequence[str] = ()) -> dict[str, Any]:
    content.refuse_unknown((*others, *types), what)
    return {name: content.take(name, types[name]) for name in content.content if name not in others}
