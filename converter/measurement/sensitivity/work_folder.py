"""What `ablate` and `search` keep on disk until all is measured, so that a run that was killed continues."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from converter.checkpoint.writer import writing


@dataclass(frozen=True)
class WorkFolder:
    """The folder of one measurement; it need not exist."""

    path: Path

    @property
    def tensors(self) -> Path:
        """The folder of quantized tensors."""
        return self.path / "tensors"

    @property
    def calls(self) -> Path:
        """The file of the denoiser's recorded calls."""
        return self.path / "calls.safetensors"

    def remove(self) -> None:
        """Delete it.

        Raises:
            OutputError: it cannot be deleted.
        """
        if self.path.exists():
            with writing(self.path):
                shutil.rmtree(self.path)
