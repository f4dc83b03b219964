"""What was measured of one tensor in one storage."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from converter.verification.measures import cosine_of, ratio_db


@dataclass(frozen=True)
class StorageFigures:
    """Size, error and checksums of one tensor in one storage; all fields are values of JSON.

    Sums are in float64, over all numbers of the tensor, and compare with the source as it is in the file. They are 0
    for tensors of integers, which are copied.
    """

    source: str
    """Name of the tensor in the source."""
    key: str
    """The storage, by its ``Storage.key``."""
    bytes: int
    """Bytes of all parts."""
    energy: float
    """The sum of the squares of the source."""
    noise: float
    """The sum of the squared errors of what is restored; not finite if a restored number is not."""
    dot: float
    """The sum of the products of the source and what is restored."""
    length: float
    """The sum of the squares of what is restored."""
    sha256: Mapping[str, str]
    """sha256 of the bytes of each part, in hexadecimal digits; under an empty name if the tensor is kept."""

    @property
    def is_finite(self) -> bool:
        """Whether all restored numbers are finite."""
        return math.isfinite(self.noise)

    @property
    def sqnr_db(self) -> float:
        """Signal-to-quantization-noise ratio, in dB, as ``verify --against`` defines it; infinite without errors."""
        return ratio_db(self.energy, self.noise)

    @property
    def cosine(self) -> float:
        """Cosine of the angle between the source and what is restored, both taken as one vector."""
        return cosine_of(self.energy, self.length, self.dot, self.noise)


#: Figures by the name of the tensor in the source and ``Storage.key``.
Figures = Mapping[tuple[str, str], StorageFigures]
