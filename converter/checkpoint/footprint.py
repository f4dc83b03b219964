"""Sizes of the components of a pipeline, and of the whole pipeline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class ComponentFootprint:
    """Size of a component of a pipeline."""

    name: str
    class_name: str
    bytes: int
    """Bytes of tensor storage; those of the weight files where headers were not read."""
    bytes_by_dtype: Mapping[str, int]
    """Bytes of tensor storage, the largest first; empty where headers were not read."""


@dataclass(frozen=True)
class WholeFootprint:
    """Size of a release with all its components, and of its source."""

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
    """Add the sizes of the components that were not converted.

    Args:
        output: bytes of the converted component.
        source: its bytes before.
        others: the components that were not converted.
    """
    besides = sum(other.bytes for other in others)
    return WholeFootprint(output + besides, source + besides)


def add_bytes(parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Add bytes by dtype; the largest sum comes first."""
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part)
    return dict(total.most_common())
