"""What the components of a pipeline take, and the whole of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class ComponentFootprint:
    """What a component of a pipeline takes."""

    name: str
    class_name: str
    bytes: int
    """Bytes of tensor storage; those of the weight files where headers were not read."""
    bytes_by_dtype: Mapping[str, int]
    """Bytes of tensor storage, the largest first; empty where headers were not read."""


@dataclass(frozen=True)
class WholeFootprint:
    """What a release takes with all its components, and what its source does."""

    bytes: int
    source_bytes: int

    @property
    def reduction(self) -> float:
        """The fraction by which it is smaller."""
        return 1 - self.bytes / self.source_bytes if self.source_bytes else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {**asdict(self), "vs_source": self.reduction}


def whole_footprint(output: int, source: int, others: Iterable[ComponentFootprint]) -> WholeFootprint:
    """Add what the components take that were not converted.

    Args:
        output: bytes of the converted component.
        source: its bytes before.
        others: the others.
    """
    besides = sum(other.bytes for other in others)
    return WholeFootprint(output + besides, source + besides)
