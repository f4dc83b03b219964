"""What a benchmark measured, as one value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter.measurement.evidence.names import MATRIX_NAME, METRICS_NAME, ORIGINAL, QUANTIZED


@dataclass(frozen=True)
class BenchReport:
    """The measurements of a benchmark."""

    output: Path
    evidence: Mapping[str, Mapping[str, Any]]
    """Contents of the files of measurements, by name."""
    images: int
    """Number of measured images, over models, modes and pairs."""
    resumed: int
    """Number of images among them that earlier runs measured."""
    failed: tuple[dict[str, Any], ...]
    """What could not be measured: model, mode, pair, attempt, prompt, reason."""
    elapsed_s: float
    taken_over: int = 0
    """Number of images among them that another benchmark of the same original measured."""

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files of measurements."""
        return tuple(self.evidence)

    @property
    def ok(self) -> bool:
        """Whether everything was measured."""
        return not self.failed

    def to_dict(self) -> dict[str, Any]:
        """Return what ``lensconv bench --json`` shows."""
        metrics = self.evidence[METRICS_NAME]
        return {
            "ok": self.ok,
            "output": str(self.output),
            "files": list(self.files),
            "images": self.images,
            "resumed": self.resumed,
            "failed": list(self.failed),
            "generation_time_s": {
                name: metrics["models"][name].get("generation_time_s") for name in (ORIGINAL, QUANTIZED)
            },
            "slowdown": self.evidence[MATRIX_NAME]["summary"].get("slowdown"),
            "elapsed_s": self.elapsed_s,
        }
