"""What a reproduction of a release found, as a value."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from converter.verification.report import Check


@dataclass(frozen=True)
class ReproducedComponent:
    """One component of a release, and what its source became when it was converted again."""

    name: str
    """Empty outside of a pipeline repo."""
    class_name: str
    source: str
    """The source: a path, or an address at a commit."""
    recipe: str
    """Where the recipe was found: ``manifest``, or ``config`` if it was inferred from SDNQ's configuration."""
    tensors: int
    differing: tuple[str, ...]
    """Tensors that differ or that only one side has, in the order of the release's files."""


@dataclass(frozen=True)
class ReproduceReport:
    """Whether a release is what its source becomes."""

    release: str
    """The release: a path, or an address at a commit."""
    components: tuple[ReproducedComponent, ...]
    checks: tuple[Check, ...]
    notes: tuple[str, ...]
    """What a user should know about the comparison."""
    elapsed_s: float
    received_bytes: int
    """Bytes that the Hub has sent."""

    @property
    def ok(self) -> bool:
        """Whether release and source agree, byte for byte."""
        return all(check.ok for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """Return what ``lensconv reproduce --json`` prints."""
        return {"ok": self.ok, **asdict(self)}
