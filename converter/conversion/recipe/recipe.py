"""What to quantize, how, and what to keep.

A recipe is a TOML file: a name, the options of SDNQ by SDNQ's own names, and rules that single out modules. A rule
matches full names with an ``fnmatch`` glob, or a family; of all rules that match a module the last one wins. SDNQ's
own patterns are no globs (a bare word matches a whole dotted component, ``*`` is anchored at the start), which is why
rules are resolved to exact names before SDNQ sees them.

    name = "mine"

    [sdnq]
    weights_dtype = "uint4"

    [[rules]]
    match = "*.img_mod.*"
    keep = true

    [[rules]]
    family = "attn"
    weights_dtype = "int8"
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from importlib import resources
from pathlib import Path
from typing import Any

from converter.checkpoint.source import Checkpoint
from converter.errors import RecipeError, printable
from converter.models.families import family
from converter.models.lens.layout import CLASS_NAME, infer_config

#: The options of ``sdnq.SDNQConfig`` 0.2.8 that change the file, and the type of each. Module lists are not among
#: them: rules say the same by name, and are checked against the model.
OPTION_TYPES: dict[str, type] = {
    "weights_dtype": str,
    "scale_dtype": str,
    "zero_point_dtype": str,
    "quantized_matmul_dtype": str,
    "group_size": int,
    "hadamard_group_size": int,
    "svd_rank": int,
    "svd_steps": int,
    "codebook_steps": int,
    "dynamic_loss_threshold": float,
    "use_svd": bool,
    "use_hadamard": bool,
    "use_codebook": bool,
    "use_codebook_scale": bool,
    "use_quantized_matmul": bool,
    "use_quantized_matmul_conv": bool,
    "use_dynamic_quantization": bool,
    "use_stochastic_rounding": bool,
    "dequantize_fp32": bool,
    "quant_conv": bool,
    "quant_embedding": bool,
    "add_skip_keys": bool,
    "minimum_allowed_numel": int,
    "minimum_allowed_channel_size": int,
}

#: Options that SDNQ can set for one module (``modules_quant_config``).
RULE_OPTIONS = tuple(
    name
    for name in OPTION_TYPES
    if name
    not in (
        "quant_conv",
        "quant_embedding",
        "add_skip_keys",
        "minimum_allowed_numel",
        "minimum_allowed_channel_size",
        "use_dynamic_quantization",
        "dynamic_loss_threshold",
    )
)

#: TOML's types, as TOML's documentation calls them.
_TYPE_NAMES = {
    bool: "true or false",
    dict: "a table",
    float: "a number",
    int: "an integer",
    list: "an array",
    str: "a string",
}
_TOP_LEVEL_KEYS = ("name", "description", "classes", "seed", "sdnq", "rules")


@dataclass(frozen=True)
class Rule:
    """What happens to the modules that a glob or a family singles out."""

    match: str = ""
    """A glob over full names of modules or tensors; empty when a family is given."""
    family: str = ""
    keep: bool = False
    """Whether the modules stay in bfloat16."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of SDNQ for these modules; empty when they are kept."""

    def __str__(self) -> str:
        return f"family {self.family}" if self.family else printable(self.match)


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
    """Seed of torch's generator where an option of SDNQ draws random numbers."""

    def with_rules(self, rules: Iterable[Rule]) -> Recipe:
        """The same recipe with further rules, which win over its own."""
        return replace(self, rules=(*self.rules, *rules))

    @property
    def is_random(self) -> bool:
        """Whether SDNQ draws random numbers for it."""
        return any(options.get("use_svd") or options.get("use_stochastic_rounding") for options in self._all_options())

    @property
    def depends_on_threads(self) -> bool:
        """Whether another number of torch's threads gives other bits: a factorisation adds up in another order."""
        return any(options.get("use_svd") for options in self._all_options())

    @property
    def is_data_dependent(self) -> bool:
        """Whether the weights decide dtypes, so that the size is known only afterwards."""
        return bool(self.options.get("use_dynamic_quantization"))

    def _all_options(self) -> Iterable[Mapping[str, Any]]:
        return (self.options, *(rule.options for rule in self.rules))


def builtin_recipes() -> tuple[Recipe, ...]:
    """The recipes that ship with lensconv, by name."""
    files = sorted(
        (entry for entry in resources.files(__package__).iterdir() if entry.name.endswith(".toml")),
        key=lambda entry: entry.name,
    )
    return tuple(parse_recipe(file.read_text("utf-8"), where=file.name) for file in files)


def find_recipe(name: str | None, class_name: str) -> Recipe:
    """The recipe that a user asked for.

    Args:
        name: a built-in recipe's name, or the path of a TOML file; None picks the default for the class.
        class_name: class of the model.

    Raises:
        RecipeError: there is no such recipe, or the file is malformed.
    """
    builtin = builtin_recipes()
    if name is None:
        return next(
            (recipe for recipe in builtin if class_name in recipe.classes),
            next(recipe for recipe in builtin if recipe.name == "sdnq-uint4"),
        )
    for recipe in builtin:
        if recipe.name == name:
            return recipe
    path = Path(name)
    if not path.is_file():
        names = ", ".join(recipe.name for recipe in builtin)
        raise RecipeError(name, "no such recipe and no such file", f"Built in: {names}.")
    try:
        text = path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(name, f"cannot be read: {error}") from error
    return parse_recipe(text, where=name)


def choose_recipe(recipe: str | Recipe | None, checkpoint: Checkpoint, settings: tuple[str, ...]) -> Recipe:
    """The recipe to use for a checkpoint, with further rules.

    Raises:
        RecipeError: there is no such recipe, or a rule is malformed.
    """
    if not isinstance(recipe, Recipe):
        class_name = checkpoint.class_name
        shapes = checkpoint.shapes
        if not class_name and infer_config(shapes) is not None:
            class_name = CLASS_NAME
        recipe = find_recipe(recipe, class_name)
    return recipe.with_rules(parse_setting(setting) for setting in settings) if settings else recipe


def parse_recipe(text: str, *, where: str) -> Recipe:
    """Parse the text of a recipe.

    Args:
        text: TOML.
        where: what to call it in messages.

    Raises:
        RecipeError: it is not TOML, or has an unknown key, or a value of the wrong type.
    """
    try:
        content = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecipeError(where, f"not TOML: {error}") from error
    _refuse_unknown(content, _TOP_LEVEL_KEYS, where, "a recipe")
    name = _typed(content, "name", str, where, Path(where).stem)
    classes = _typed(content, "classes", list, where, [])
    if not all(isinstance(item, str) for item in classes):
        raise RecipeError(where, "classes must be a list of strings")
    options = _parse_options(_typed(content, "sdnq", dict, where, {}), tuple(OPTION_TYPES), where, "[sdnq]")
    rules = _typed(content, "rules", list, where, [])
    seed = _typed(content, "seed", int, where, 0)
    if not 0 <= seed < 1 << 63:
        raise RecipeError(where, "seed must be a number from 0 to 2**63 - 1")
    return Recipe(
        name=name,
        options=options,
        rules=tuple(_parse_rule(rule, f"{where}: rule {number}") for number, rule in enumerate(rules, 1)),
        description=_typed(content, "description", str, where, ""),
        classes=tuple(classes),
        seed=seed,
    )


def parse_setting(text: str) -> Rule:
    """Parse a rule from the command line: ``GLOB=keep`` or ``GLOB=DTYPE``.

    Raises:
        RecipeError: it is neither.
    """
    glob, separator, value = text.rpartition("=")
    if not (separator and glob and value):
        raise RecipeError(f"--set {text}", "must be GLOB=keep or GLOB=DTYPE", "For example '*.attn.*=int8'.")
    return Rule(match=glob, keep=True) if value == "keep" else Rule(match=glob, options={"weights_dtype": value})


def resolve_rules(
    rules: Sequence[Rule],
    modules: Sequence[str],
    tensors: Iterable[str],
    class_name: str,
) -> dict[str, Rule]:
    """Find out which rule each module falls under: the last one that matches it.

    Args:
        rules: in the order of the recipe.
        modules: full names of the modules that SDNQ is able to quantize.
        tensors: full names of all tensors of the model.
        class_name: class of the model, for its families.

    Returns:
        The rule of every module that any rule matches.

    Raises:
        RecipeError: a rule matches nothing.
    """
    names = set(tensors)
    names |= {name.rpartition(".")[0] for name in names} - {""}
    decided: dict[str, Rule] = {}
    for rule in rules:
        matched = [module for module in modules if rule_matches(rule, module, class_name)]
        if not matched and not (rule.keep and any(rule_matches(rule, name, class_name) for name in names)):
            raise _no_match(rule, modules, names, class_name)
        for module in matched:
            decided[module] = rule
    return decided


def rule_matches(rule: Rule, module: str, class_name: str) -> bool:
    """Whether a rule singles out a module; a glob may be written for the module or for its weight."""
    if rule.family:
        return family(module + ".weight", class_name) == rule.family
    return fnmatchcase(module, rule.match) or fnmatchcase(module + ".weight", rule.match)


def _no_match(rule: Rule, modules: Sequence[str], names: set[str], class_name: str) -> RecipeError:
    if rule.family:
        families = sorted({family(module + ".weight", class_name) for module in modules})
        return RecipeError(f"rule for {rule}", "no module is of that family", f"Families: {', '.join(families)}.")
    if any(rule_matches(rule, name, class_name) for name in names):
        return RecipeError(f"rule for {rule}", "matches only tensors that SDNQ cannot quantize", "Remove the rule.")
    parts = {part for name in names for part in name.split(".") if not part.isdigit()}
    wanted = rule.match.strip("*.")
    near = difflib.get_close_matches(wanted, sorted(parts | names), n=4, cutoff=0.5)
    return RecipeError(
        f"rule for {rule}",
        "matches nothing in the model",
        f"Names like it: {', '.join(map(printable, near))}." if near else "Compare it with the names in the header.",
    )


def _parse_rule(content: Any, where: str) -> Rule:
    if not isinstance(content, dict):
        raise RecipeError(where, "must be a table, written [[rules]]")
    keys = ("match", "family", "keep")
    _refuse_unknown(content, (*keys, *RULE_OPTIONS), where, "a rule")
    options = {name: value for name, value in content.items() if name not in keys}
    rule = Rule(
        match=_typed(content, "match", str, where, ""),
        family=_typed(content, "family", str, where, ""),
        keep=_typed(content, "keep", bool, where, False),
        options=_parse_options(options, RULE_OPTIONS, where, "a rule"),
    )
    if bool(rule.match) == bool(rule.family):
        raise RecipeError(where, "needs either match or family")
    if rule.keep == bool(rule.options):
        raise RecipeError(where, "needs either keep = true or options such as weights_dtype")
    return rule


def _parse_options(content: Mapping[str, Any], allowed: Sequence[str], where: str, what: str) -> dict[str, Any]:
    _refuse_unknown(content, allowed, where, what)
    return {name: _typed(content, name, OPTION_TYPES[name], where, None) for name in content}


def _refuse_unknown(content: Mapping[str, Any], allowed: Sequence[str], where: str, what: str) -> None:
    for key in content:
        if key not in allowed:
            near = difflib.get_close_matches(key, allowed, n=3)
            raise RecipeError(
                where,
                f"{key} is no key of {what}",
                f"Keys like it: {', '.join(near)}." if near else f"Keys: {', '.join(allowed)}.",
            )


def _typed(content: Mapping[str, Any], key: str, kind: type, where: str, default: Any) -> Any:
    if key not in content:
        return default
    value = content[key]
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise RecipeError(where, f"{key} must be {_TYPE_NAMES[kind]}, not {value!r}")
    return value
