"""The plan: what each tensor becomes, known from headers and config alone.

A plan is a plain value. ``planner`` makes it by running SDNQ on the model's class without weights; ``prediction``
derives the same plan without torch, for Lens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import prod
from typing import Any

from converter.checkpoint.layout import TensorSpec
from converter.checkpoint.source import Checkpoint, count_bytes_by_dtype
from converter.conversion.planning.rules import has_misread_scales
from converter.conversion.recipe.recipe import Recipe, Rule
from converter.errors import RecipeError
from converter.models.families import family


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """One tensor of the output."""

    spec: TensorSpec
    source: str
    """Name of the tensor in the source that it is made from."""
    part: str = ""
    """Which of SDNQ's results it is, for example ``scale``; empty when the tensor is kept."""


@dataclass(frozen=True, slots=True)
class PlannedModule:
    """A module that gets quantized."""

    name: str
    source: str
    """Name of its weight in the source."""
    shape: tuple[int, ...]
    """Shape of the weight."""
    options: Mapping[str, Any]
    """Arguments of ``sdnq.quantizer.sdnq_quantize_layer_weight``, with ``torch_dtype`` by its name."""


@dataclass(frozen=True)
class Plan:
    """Everything that a conversion will write, except the values of the weights."""

    class_name: str
    stem: str
    """Name of the weight file without its suffix."""
    tensors: tuple[PlannedTensor, ...]
    """Tensors in the order of the model's state dict, which decides the shards."""
    modules: Mapping[str, PlannedModule]
    """Quantized modules by the source name of their weight."""
    ignored: tuple[str, ...] = ()
    """Tensors of the source that the class does not load."""
    unloadable: str = ""
    """Why SDNQ's own loader cannot load the output, though the library of the class can; empty if it can."""
    index_metadata: Mapping[str, int] = field(default_factory=dict)
    """What the index of the shards says besides the total size."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Content of ``config.json``."""
    assumed_config: Mapping[str, Any] = field(default_factory=dict)
    """What was assumed because no ``config.json`` names the class and the tensors do not show it; else empty."""
    quantization_config: Mapping[str, Any] = field(default_factory=dict)
    """Content of ``quantization_config.json``."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Versions of the packages that decide the bytes."""
    unmatched_rules: tuple[Rule, ...] = ()
    """Optional rules of the recipe that select nothing."""
    depends_on_numbers: bool = False
    """Whether numbers of this source decided something, so that another source may get another plan."""

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        """The tensors of the output, in the order of the state dict."""
        return tuple(tensor.spec for tensor in self.tensors)

    @property
    def kept(self) -> tuple[PlannedTensor, ...]:
        """The tensors that are copied, rounded to their new dtype."""
        return tuple(tensor for tensor in self.tensors if not tensor.part)

    @property
    def parts(self) -> dict[str, dict[str, TensorSpec]]:
        """The tensors that a quantized weight becomes, by part; the key is the weight's name in the source."""
        found: dict[str, dict[str, TensorSpec]] = {}
        for tensor in self.tensors:
            if tensor.part:
                found.setdefault(tensor.source, {})[tensor.part] = tensor.spec
        return found

    @property
    def has_misread_scales(self) -> bool:
        """Whether loaders misread a module, because its scales or zero points are quantized by an option for all."""
        parts = self.parts
        return any(
            has_misread_scales(
                f"{module.name}.weight", self.quantization_config, has_zero_point="zero_point" in parts[source]
            )
            for source, module in self.modules.items()
        )

    @property
    def bytes_by_dtype(self) -> dict[str, int]:
        """Footprint of the output by dtype, the largest first."""
        return count_bytes_by_dtype((tensor.spec.dtype, tensor.spec.bytes) for tensor in self.tensors)

    @property
    def kept_modules(self) -> tuple[str, ...]:
        """Modules that own a weight and are not quantized, by name."""
        return tuple(
            tensor.spec.name.removesuffix(".weight") for tensor in self.kept if tensor.spec.name.endswith(".weight")
        )


@dataclass(frozen=True)
class FamilyTotals:
    """The bytes of a family before and after."""

    name: str
    source_bytes: int
    output_bytes: int
    quantized: bool
    """Whether any of its modules is quantized."""

    def to_dict(self) -> dict[str, Any]:
        """Return the family as the JSON of ``plan`` and ``verify`` shows it."""
        return asdict(self)


def family_totals(plan: Plan, checkpoint: Checkpoint) -> tuple[FamilyTotals, ...]:
    """Add the plan up by family, the largest source first."""
    families = {name: family(name, plan.class_name) for name in checkpoint.tensors}
    source, output = Counter[str](), Counter[str]()
    for name, tensor in checkpoint.tensors.items():
        source[families[name]] += tensor.entry.bytes
    for planned in plan.tensors:
        output[families[planned.source]] += planned.spec.bytes
    quantized = {families[weight] for weight in plan.modules}
    return tuple(
        FamilyTotals(key, size, output[key], key in quantized)
        for key, size in sorted(source.items(), key=lambda item: (-item[1], item[0]))
    )


def parameter_count(plan: Plan, checkpoint: Checkpoint) -> int:
    """Logical parameters: the elements of the unquantized model, without what its class does not load."""
    return sum(prod(shape) for name, shape in checkpoint.shapes.items() if name not in plan.ignored)


def refuse_unmatched(recipes: Sequence[Recipe], plans: Sequence[Plan]) -> None:
    """Refuse a rule for several components that selects nothing in any of them.

    Raises:
        RecipeError: there is one.
    """
    for recipe in recipes:
        for rule in recipe.rules:
            users = [plan for other, plan in zip(recipes, plans, strict=True) if rule in other.rules]
            if rule.optional and all(rule in plan.unmatched_rules for plan in users):
                raise RecipeError(
                    f"recipe {recipe.name}, rule for {rule}",
                    "selects nothing that SDNQ can quantize, in any of the components",
                    "`lensconv plan SOURCE --json` lists the names.",
                )
