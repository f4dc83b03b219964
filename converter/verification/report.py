"""What a verification found, as a value."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from converter.checkpoint.footprint import ComponentFootprint, add_bytes
from converter.errors import TEXT_LIMIT, first_few, printable

#: Names of checks for people, where they differ from those in the report.
_TITLES = {
    "config of the source": "config matches the source",
    "kept equal source": "kept tensors match the source",
    "near source": "quantized weights are near the source",
}


@dataclass(frozen=True)
class Check:
    """One question that was asked of a checkpoint, and the answer."""

    name: str
    ok: bool
    detail: str
    """What was found; if the check failed, what is wrong and where."""
    component: str = ""
    """The component that it is about, where several were examined; empty if it is about all, or the only one."""

    @property
    def title(self) -> str:
        """The name for people."""
        title = _TITLES.get(self.name, self.name)
        return f"{self.component}: {title}" if self.component else title


def list_problems(name: str, problems: Sequence[str], good: str) -> Check:
    """A check that passes with ``good`` when there is not a single problem, and names the first few problems otherwise.

    Both may contain names from files: they are made safe to show.
    """
    return Check(name, not problems, first_few(problems) if problems else printable(good, TEXT_LIMIT))


def about(component: str, checks: Iterable[Check]) -> list[Check]:
    """Checks that name the component that they are about.

    Args:
        component: its name; empty if it is the only one that is examined.
        checks: of it.
    """
    return [replace(check, component=component) for check in checks]


@dataclass(frozen=True)
class FamilyFootprint:
    """What a family takes."""

    name: str
    tensors: int
    bytes: int
    bytes_by_dtype: Mapping[str, int]
    quantized_modules: int

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class VerifiedComponent:
    """What a verification found in one component."""

    name: str
    """Empty outside of a pipeline repo."""
    class_name: str
    tensors: int
    bytes_by_dtype: Mapping[str, int]
    total_bytes: int
    parameters: int
    """Logical: a packed byte contains several, and scales and zero points do not count."""
    quantized_modules: int
    families: tuple[FamilyFootprint, ...]
    fidelity: Mapping[str, Any] = field(default_factory=dict)
    """How far the weights are from the source; empty when there was none to compare with."""

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        content = {**asdict(self), "families": [family.to_dict() for family in self.families]}
        return {name: value for name, value in content.items() if value or name != "fidelity"}


@dataclass(frozen=True)
class VerifyReport:
    """All that a verification found. Figures without a component are sums over those that were examined."""

    components: tuple[VerifiedComponent, ...]
    """What was examined, the main component first."""
    checks: tuple[Check, ...]
    notes: tuple[str, ...]
    """What is unusual and yet works."""
    other_components: tuple[ComponentFootprint, ...] = ()
    """Other models of the pipeline; empty if components of it were asked for."""
    fidelity: Mapping[str, Any] = field(default_factory=dict)
    """How far the weights are from the source; empty when there was none to compare with."""
    hub: Mapping[str, Any] = field(default_factory=dict)
    """For a repo on the Hub: its address at the examined commit, its bytes, and the downloaded bytes; else empty."""

    @property
    def ok(self) -> bool:
        """Whether all checks passed."""
        return all(check.ok for check in self.checks)

    @property
    def class_name(self) -> str:
        """Class of the main component."""
        return self.components[0].class_name

    @property
    def tensors(self) -> int:
        """Tensors of the components that were examined."""
        return sum(component.tensors for component in self.components)

    @property
    def bytes_by_dtype(self) -> dict[str, int]:
        """Their bytes by dtype, the largest first."""
        return add_bytes(component.bytes_by_dtype for component in self.components)

    @property
    def total_bytes(self) -> int:
        """Their bytes."""
        return sum(component.total_bytes for component in self.components)

    @property
    def parameters(self) -> int:
        """Their logical parameters."""
        return sum(component.parameters for component in self.components)

    @property
    def quantized_modules(self) -> int:
        """Their quantized modules."""
        return sum(component.quantized_modules for component in self.components)

    @property
    def families(self) -> tuple[FamilyFootprint, ...]:
        """What each family takes; of several components, names begin with the component's."""
        is_one = len(self.components) == 1
        return tuple(
            family if is_one else replace(family, name=f"{component.name}/{family.name}")
            for component in self.components
            for family in component.families
        )

    @property
    def whole_bytes(self) -> int:
        """Footprint of these components and the others."""
        return self.total_bytes + sum(other.bytes for other in self.other_components)

    def to_dict(self) -> dict[str, Any]:
        """Return what ``lensconv verify --json`` prints."""
        content = {
            "ok": self.ok,
            "class_name": self.class_name,
            "components": [component.to_dict() for component in self.components],
            "checks": [asdict(check) for check in self.checks],
            "notes": list(self.notes),
            "tensors": self.tensors,
            "bytes_by_dtype": self.bytes_by_dtype,
            "total_bytes": self.total_bytes,
            "parameters": self.parameters,
            "quantized_modules": self.quantized_modules,
            "families": [family.to_dict() for family in self.families],
            "other_components": [asdict(other) for other in self.other_components],
            "whole_bytes": self.whole_bytes,
            "fidelity": dict(self.fidelity),
            "hub": dict(self.hub),
        }
        return {name: value for name, value in content.items() if value or name not in ("fidelity", "hub")}
