"""Figures of a file that differ from what other figures give."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from converter.measurement.evidence.units import ROUNDING

#: Other versions of a library may compute another last digit.
_RELATIVE = 1e-9


def differences(
    where: str,
    shown: Any,
    computed: Any,
    source: str = "the other figures give",
    tolerance: float = 2 * ROUNDING,
) -> Iterator[str]:
    """Yield the figures of a file that differ from what its other figures give.

    Args:
        where: name of the figures.
        shown: the figures in the file; keys that it lacks are not compared.
        computed: the same, computed from other figures.
        source: what gives the other figures, with the verb.
        tolerance: how far figures may be off; by default those of files with three digits after the point.
    """
    if isinstance(shown, Mapping):
        for key, value in shown.items():
            expected = computed.get(key) if isinstance(computed, Mapping) else None
            yield from differences(f"{where}.{key}", value, expected, source, tolerance)
    elif isinstance(shown, list) and isinstance(computed, list) and len(shown) == len(computed):
        for index, (value, expected) in enumerate(zip(shown, computed, strict=True)):
            yield from differences(f"{where}.{index}", value, expected, source, tolerance)
    elif isinstance(shown, float | int) and isinstance(computed, float | int):
        if not math.isclose(shown, computed, rel_tol=_RELATIVE, abs_tol=tolerance):
            yield f"{where} is {shown}, but {source} {computed}"
    elif shown != computed:
        yield f"{where} is {shown}, but {source} {'nothing' if computed is None else computed}"
