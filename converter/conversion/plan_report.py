"""The result that a conversion would have, as a value: figures of each component, and their sums."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from converter.checkpoint.footprint import ComponentFootprint, WholeFootprint, add_bytes, whole_footprint
from converter.conversion.planning.plan import FamilyTotals, Plan, family_totals, parameter_count
from converter.conversion.planning.rounding import choose_roundings
from converter.conversion.request import Target
from converter.models.pipeline_fit import FitReport


@dataclass(frozen=True)
class ComponentPlan:
    """The result that the conversion of one component would have."""

    target: Target
    plan: Plan
    files: tuple[tuple[str, int], ...]
    """Weight files and their index: paths inside the release, sizes in bytes."""

    @property
    def name(self) -> str:
        """The component's name; empty outside of a pipeline repo."""
        return self.target.name

    @property
    def is_exact(self) -> bool:
        """False when the weights decide dtypes; the sizes are then the smallest possible."""
        return not self.target.recipe.is_data_dependent

    @property
    def source_bytes_by_dtype(self) -> dict[str, int]:
        """Footprint of the source by dtype, the largest first."""
        return self.target.checkpoint.bytes_by_dtype

    @cached_property
    def parameters(self) -> int:
        """Logical parameters."""
        return parameter_count(self.plan, self.target.checkpoint)

    @cached_property
    def families(self) -> tuple[FamilyTotals, ...]:
        """Bytes of each family before and after."""
        return family_totals(self.plan, self.target.checkpoint)

    def to_dict(self) -> dict[str, Any]:
        """Return the component as ``lensconv plan --json`` prints it."""
        return {
            "name": self.name,
            "class_name": self.plan.class_name,
            "recipe": self.target.recipe.name,
            "exact": self.is_exact,
            **choose_roundings(self.plan, self.target).to_dict(),
            "assumed_config": dict(self.plan.assumed_config),
            "source": _figures(len(self.target.checkpoint.tensors), self.source_bytes_by_dtype, self.parameters),
            "output": _figures(len(self.plan.tensors), self.plan.bytes_by_dtype, self.parameters),
            "families": [totals.to_dict() for totals in self.families],
            "modules": {
                "quantized": [module.name for module in self.plan.modules.values()],
                "kept": list(self.plan.kept_modules),
            },
        }


def _figures(tensors: int, bytes_by_dtype: Mapping[str, int], parameters: int) -> dict[str, Any]:
    return {
        "tensors": tensors,
        "bytes_by_dtype": dict(bytes_by_dtype),
        "total_bytes": sum(bytes_by_dtype.values()),
        "parameters": parameters,
    }


@dataclass(frozen=True)
class PlanReport:
    """The result that a conversion would have. Figures without a component are sums over those that are converted."""

    components: tuple[ComponentPlan, ...]
    """What would be converted, the main component first."""
    peak_memory_bytes: int
    """Estimated peak memory of all processes of a conversion together."""
    notes: tuple[str, ...] = ()
    other_components: tuple[ComponentFootprint, ...] = ()
    """Models of the pipeline that stay as they are."""
    place: str = ""
    """The repo on the Hub at the commit that was read; empty when the source is on disk."""
    memory: FitReport | None = None
    """What drawing takes in weights; None outside of a pipeline."""

    @property
    def main(self) -> ComponentPlan:
        """The main component."""
        return self.components[0]

    @property
    def plan(self) -> Plan:
        """The main component's plan."""
        return self.main.plan

    @property
    def recipe(self) -> str:
        """Name of the main component's recipe."""
        return self.main.target.recipe.name

    @property
    def is_exact(self) -> bool:
        """Whether no dtypes depend on the weights; if some do, the sizes are the smallest possible."""
        return all(component.is_exact for component in self.components)

    @property
    def parameters(self) -> int:
        """Logical parameters."""
        return sum(component.parameters for component in self.components)

    @property
    def files(self) -> tuple[tuple[str, int], ...]:
        """Weight files and their indexes: paths inside the release, sizes in bytes."""
        return tuple(file for component in self.components for file in component.files)

    @property
    def source_bytes_by_dtype(self) -> dict[str, int]:
        """Footprint of the source by dtype, the largest first."""
        return add_bytes(component.source_bytes_by_dtype for component in self.components)

    @property
    def source_bytes(self) -> int:
        """Footprint of the source."""
        return sum(self.source_bytes_by_dtype.values())

    @property
    def output_bytes_by_dtype(self) -> dict[str, int]:
        """Footprint of the output by dtype, the largest first."""
        return add_bytes(component.plan.bytes_by_dtype for component in self.components)

    @property
    def output_bytes(self) -> int:
        """Footprint of the output."""
        return sum(self.output_bytes_by_dtype.values())

    @property
    def whole(self) -> WholeFootprint:
        """Footprint of the release with its other components."""
        return whole_footprint(self.output_bytes, self.source_bytes, self.other_components)

    @property
    def families(self) -> tuple[FamilyTotals, ...]:
        """Bytes of each family before and after; of several components, names begin with the component's."""
        return tuple(
            replace(totals, name=self._full(component, totals.name))
            for component in self.components
            for totals in component.families
        )

    def _full(self, component: ComponentPlan, name: str) -> str:
        return f"{component.name}/{name}" if len(self.components) > 1 else name

    def reduction(self, original: int) -> float:
        """The fraction by which the output is smaller than so many bytes."""
        return 1 - self.output_bytes / original if original else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return what ``lensconv plan --json`` prints; sizes in bytes, reductions as fractions of one.

        Class, recipe and assumed config are the main component's.
        """
        components = [component.to_dict() for component in self.components]
        main = {key: components[0][key] for key in ("class_name", "recipe", "assumed_config")}
        source_tensors, tensors = (
            sum(component[key]["tensors"] for component in components) for key in ("source", "output")
        )
        return {
            **main,
            "exact": self.is_exact,
            "components": components,
            "source": {
                **({"place": self.place} if self.place else {}),
                **_figures(source_tensors, self.source_bytes_by_dtype, self.parameters),
            },
            "output": {
                **_figures(tensors, self.output_bytes_by_dtype, self.parameters),
                "files": [{"name": name, "bytes": size} for name, size in self.files],
            },
            "quantized_modules": sum(len(component.plan.modules) for component in self.components),
            "kept_modules": sum(len(component.plan.kept_modules) for component in self.components),
            "modules": {
                kind: [
                    self._full(component, name)
                    for component, shown in zip(self.components, components, strict=True)
                    for name in shown["modules"][kind]
                ]
                for kind in ("quantized", "kept")
            },
            "families": [totals.to_dict() for totals in self.families],
            "reduction": {
                "vs_source": self.reduction(self.source_bytes),
                "vs_bf16": self.reduction(2 * self.parameters),
            },
            "other_components": [asdict(other) for other in self.other_components],
            "whole": self.whole.to_dict(),
            **({"memory": self.memory.to_dict()} if self.memory is not None else {}),
            "peak_memory_bytes": self.peak_memory_bytes,
            "notes": list(self.notes),
        }
