"""Comparisons of images, for several threads at a time."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

from converter.console import SILENT
from converter.measurement.comparison.compare import Comparison
from converter.measurement.comparison.pairs import ImagePair
from converter.measurement.comparison.report import PairFidelity


class Comparisons:
    """As many comparisons as threads use at a time, since each reads one image after the other.

    Args:
        required: strings that the images must show, by id.
        text: whether to read the images.
    """

    def __init__(self, required: Mapping[str, Sequence[str]], *, text: bool) -> None:
        self._required = required
        self._text = text
        self._all = [self._make()]
        self._idle = [*self._all]
        self._lock = threading.Lock()

    def compare(self, pair: ImagePair) -> PairFidelity:
        """Compare two images. Any thread may call this.

        Raises: as ``Comparison.compare``.
        """
        comparison = self._take()
        (found,) = comparison.compare([pair], SILENT).pairs
        with self._lock:
            self._idle.append(comparison)
        return found

    @property
    def not_measured(self) -> dict[str, str]:
        """The reason why a figure is missing, by its name."""
        reasons: dict[str, dict[str, None]] = {}
        for comparison in self._all:
            for name, reason in comparison.not_measured.items():
                reasons.setdefault(name, {})[reason] = None
        return {name: "; ".join(several) for name, several in reasons.items()}

    def methods(self) -> dict[str, str]:
        """The exact definition of each figure that is measured."""
        return self._all[0].methods()

    def _make(self) -> Comparison:
        return Comparison(self._required, text=self._text)

    def _take(self) -> Comparison:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        made = self._make()
        with self._lock:
            self._all.append(made)
        return made
