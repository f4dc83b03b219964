"""The ways in which each module of a model could be stored: one for each candidate, and as it is.

A candidate is a dtype of SDNQ, with the other options of a recipe. Modules that SDNQ skips by its own keys are not part
of the choice, unless a rule of the search includes them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from converter.checkpoint.source import Checkpoint
from converter.conversion.planning.plan import Plan
from converter.conversion.planning.planner import check_dtypes, plan_with_sdnq
from converter.conversion.recipe.recipe import Recipe, Rule
from converter.errors import RecipeError, UnsupportedCheckpoint, UsageError, printable
from converter.libraries import load_library
from converter.measurement.sensitivity.storage import Storage, storages

#: The name of the candidate that is not quantized, and another name by which it can be asked for.
KEPT, _KEEP = "BF16", "keep"
#: Options of SDNQ that a candidate can switch on, by what follows its dtype.
_SWITCHES = {"svd": "use_svd", "hadamard": "use_hadamard"}
#: Names of SDNQ for a quantization to bfloat16, which people take for ``BF16``.
_WITH_SCALES = ("bf16", "bfloat16")


@dataclass(frozen=True)
class Candidate:
    """A way to store modules."""

    name: str
    options: Mapping[str, Any]
    """Options of SDNQ for a rule; empty if modules are not quantized."""

    def rule(self, match: str) -> Rule:
        """A rule of a recipe that gives it to the modules that a glob selects."""
        return Rule(match=match, keep=not self.options, options=self.options)


_UNQUANTIZED = Candidate(KEPT, {})


@dataclass(frozen=True)
class SearchedModule:
    """A module about which something is chosen."""

    source: str
    """Name of its weight in the source."""
    names: tuple[str, ...]
    """Full names of the module; several if modules share the weight."""
    storages: Mapping[str, Storage]
    """How its weight is stored, by candidate and as ``KEPT``; candidates that leave it unquantized are missing."""
    bytes: Mapping[str, int]
    """Bytes of all tensors that its weight becomes, by candidate."""


@dataclass(frozen=True)
class SearchSpace:
    """All that can be chosen for a component."""

    class_name: str
    recipe: Recipe
    """Gives all options that the candidates do not have."""
    candidates: tuple[Candidate, ...]
    """Those that were asked for; others than ``KEPT`` need not fit every module."""
    modules: tuple[SearchedModule, ...]
    """In the order of the model's state dict."""
    fixed_bytes: int
    """Bytes of all tensors about which nothing is chosen."""
    quantizations: Mapping[str, Mapping[str, Any]]
    """The ``quantization_config`` of a model that has one candidate alone, by its name."""
    skipped: tuple[str, ...]
    """Full names of the other modules with a weight: SDNQ cannot quantize them, or skips them."""

    def candidate(self, name: str) -> Candidate:
        """The candidate with this name."""
        return next(candidate for candidate in (*self.candidates, _UNQUANTIZED) if candidate.name == name)


def parse_candidates(text: str, recipe: Recipe) -> tuple[Candidate, ...]:
    """Parse the candidates of a search, such as ``uint4,int8+svd,BF16``.

    Args:
        text: dtypes of SDNQ, each alone or with ``+svd``, ``+hadamard`` or both; ``BF16`` or ``keep`` stands for
            modules that are not quantized.
        recipe: gives the other options.

    Raises:
        UsageError: one is malformed or there twice, or none is quantized.
        RecipeError: SDNQ does not know a dtype.
    """
    found: dict[tuple[Any, ...], Candidate] = {}
    for word in text.split(","):
        candidate = _parse_candidate(word.strip())
        meaning = _meaning(candidate, recipe)
        if meaning in found:
            names = f"{found[meaning].name} and {candidate.name}"
            raise UsageError(f"--candidates {printable(text)}: {names} are the same", "Name each candidate once.")
        found[meaning] = candidate
    if not any(candidate.options for candidate in found.values()):
        raise UsageError(f"--candidates {printable(text)} has no dtype to quantize to", "Add one, such as uint4.")
    return tuple(found.values())


def _parse_candidate(word: str) -> Candidate:
    where = f"--candidates {printable(word)}"
    if word in (KEPT, _KEEP):
        return _UNQUANTIZED
    dtype, *switches = word.split("+")
    if not dtype or set(switches) - _SWITCHES.keys() or len(set(switches)) < len(switches):
        raise UsageError(f"{where}: must be DTYPE, DTYPE+svd, DTYPE+hadamard, DTYPE+svd+hadamard or {KEPT}")
    if dtype in _WITH_SCALES:
        raise UsageError(f"{where}: SDNQ would store scales besides", f"Use {KEPT} for modules that are not quantized.")
    check_dtypes({"weights_dtype": dtype}, where)
    chosen = [switch for switch in _SWITCHES if switch in switches]
    return Candidate("+".join([dtype, *chosen]), {"weights_dtype": dtype, **{_SWITCHES[name]: True for name in chosen}})


def _meaning(candidate: Candidate, recipe: Recipe) -> tuple[Any, ...]:
    """What SDNQ takes a candidate for; it has several names for some dtypes."""
    if not candidate.options:
        return ()
    options = {**recipe.options, **candidate.options}
    known = load_library("sdnq.common").dtype_dict
    same = next(name for name, properties in known.items() if properties is known[options["weights_dtype"]])
    return (same, *(bool(options.get(option)) for option in _SWITCHES.values()))


def find_choices(
    checkpoint: Checkpoint, recipe: Recipe, candidates: Sequence[Candidate], included: Sequence[Rule] = ()
) -> SearchSpace:
    """Find the storages of each module that SDNQ quantizes with any of the candidates.

    Args:
        checkpoint: the original, of which headers and config are used.
        recipe: gives the other options; its rules do not count.
        candidates: from ``parse_candidates``.
        included: select modules that are part of the choice although SDNQ skips them by its own keys. Only what they
            match counts.

    Raises:
        UnsupportedCheckpoint: the class is unknown, the tensors do not fit it, or nothing can be quantized.
        RecipeError: SDNQ refuses an option, the dtypes depend on the weights, or a rule matches nothing.
    """
    if recipe.is_data_dependent:
        raise RecipeError(
            f"recipe {recipe.name}",
            "use_dynamic_quantization chooses dtypes by the weights, so nothing is left to a search",
            "Use another recipe.",
        )
    quantizing = [candidate for candidate in candidates if candidate.options]
    plans = {
        candidate.name: plan_with_sdnq(checkpoint, _everything(recipe, candidate, included)) for candidate in quantizing
    }
    kept = plan_with_sdnq(checkpoint, replace(recipe, rules=(Rule(match="*", keep=True),)))
    plans[KEPT] = kept
    modules = tuple(_find_modules(plans, recipe.rounding))
    if not modules:
        raise UnsupportedCheckpoint(
            f"{checkpoint.folder}: SDNQ quantizes no module of it with any candidate", "Choose other candidates."
        )
    searched = {module.source for module in modules}
    names = {name for module in modules for name in module.names}
    return SearchSpace(
        class_name=kept.class_name,
        recipe=replace(recipe, rules=()),
        candidates=tuple(candidates),
        modules=modules,
        fixed_bytes=sum(tensor.spec.bytes for tensor in kept.tensors if tensor.source not in searched),
        quantizations={name: plan.quantization_config for name, plan in plans.items()},
        skipped=tuple(name for name in kept.kept_modules if name not in names),
    )


def _everything(recipe: Recipe, candidate: Candidate, included: Sequence[Rule]) -> Recipe:
    """The recipe that quantizes all modules to one candidate."""
    rules = tuple(replace(rule, keep=False, options=candidate.options) for rule in included)
    return replace(recipe, options={**recipe.options, **candidate.options}, rules=rules)


def _find_modules(plans: Mapping[str, Plan], rounding: str) -> Iterator[SearchedModule]:
    """The modules that any plan quantizes, in the order of the model."""
    quantized = {name: plan.modules for name, plan in plans.items() if plan.modules}
    stored = {name: storages(plan, rounding) for name, plan in plans.items()}
    sizes = {name: _bytes_by_source(plan) for name, plan in plans.items()}
    for source in dict.fromkeys(tensor.source for tensor in plans[KEPT].tensors):
        possible = [name for name, modules in quantized.items() if source in modules]
        if possible:
            choices = (*possible, KEPT)
            yield SearchedModule(
                source=source,
                names=_module_names(plans[possible[0]], source),
                storages={name: stored[name][source] for name in choices},
                bytes={name: sizes[name][source] for name in choices},
            )


def _bytes_by_source(plan: Plan) -> Counter[str]:
    total: Counter[str] = Counter()
    for tensor in plan.tensors:
        total[tensor.source] += tensor.spec.bytes
    return total


def _module_names(plan: Plan, source: str) -> tuple[str, ...]:
    """The names of the modules that get a quantized weight from one tensor of the source."""
    saved = [tensor.spec.name for tensor in plan.tensors if tensor.source == source and tensor.part == "weight"]
    # The model's own name counts, which for transformers need not be that in the file.
    return tuple(name.removesuffix(".weight") for name in saved) if len(saved) > 1 else (plan.modules[source].name,)
