"""What a verification found, as a value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from converter.checkpoint.footprint import ComponentFootprint
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

    @property
    def title(self) -> str:
        """The name for people."""
        return _TITLES.get(self.name, self.name)


def list_problems(name: str, problems: Sequence[str], good: str) -> Check:
    """A check that passes with ``good`` when there is not a single problem, and names the first few problems otherwise.

    Both may contain names from files: they are made safe to show.
    """
    return Check(name, not problems, first_few(problems) if problems else printable(good, TEXT_LIMIT))


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
class VerifyReport:
    """All that a verification found."""

    class_name: str
    checks: tuple[Check, ...]
    notes: tuple[str, ...]
    """What is unusual and yet works."""
    tensors: int
    bytes_by_dtype: Mapping[str, int]
    total_bytes: int
    parameters: int
    """Logical: a packed byte contains several, and scales and zero points do not count."""
    quantized_modules: int
    families: tuple[FamilyFootprint, ...]
    other_components: tuple[ComponentFootprint, ...] = ()
    """Other models of the pipeline; empty if one component of it was asked for."""
    fidelity: Mapping[str, Any] = field(default_factory=dict)
    """How far the weights are from the source; empty when there was none to compare with."""
    hub: Mapping[str, Any] = field(default_factory=dict)
    """For a repo on the Hub: its address at the examined commit, its bytes, and the downloaded bytes; else empty."""

    @property
    def ok(self) -> bool:
        """Whether all checks passed."""
        return all(check.ok for check in self.checks)

    @property
    def whole_bytes(self) -> int:
        """Footprint of this component and the others."""
        return self.total_bytes + sum(other.bytes for other in self.other_components)

    def to_dict(self) -> dict[str, Any]:
        """Return what ``lensconv verify --json`` prints."""
        content = {"ok": self.ok, **asdict(self), "whole_bytes": self.whole_bytes}
        content |= {name: list(content[name]) for name in ("checks", "notes", "families", "other_components")}
        return {name: value for name, value in content.items() if value or name not in ("fidelity", "hub")}
