"""Whose weights were measured: what ``sources`` says of one model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def measured_weights(source: Mapping[str, Any]) -> dict[str, Sequence[Mapping[str, Any]]]:
    """Return name, bytes and sha256 of the weight files of each component, the transformer first.

    Args:
        source: ``sources.original`` or ``sources.quantized`` in a file of measurements. Earlier versions noted the
            transformer alone.
    """
    return {"transformer": source["transformer"], **source.get("components", {})}
