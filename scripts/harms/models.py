"""The models whose modules are ranked, and the settings of their images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter.synthesis.synthesize import synthesize
from scripts.signs.planting import plant_attention

#: The block in whose attention outliers are planted.
PLANTED_BLOCK = 2
#: The modules that get them.
PLANTED = tuple(f"transformer_blocks.{PLANTED_BLOCK}.attn.{name}" for name in ("to_out.0", "to_add_out"))


@dataclass(frozen=True)
class Model:
    """A small pipeline."""

    name: str
    preset: str
    """Of ``lensconv synth``."""
    drawing: Mapping[str, Any]
    """Options of ``generate`` for its images."""
    is_planted: bool = False
    """Whether it has outliers in the output layers of one block's attention."""

    @property
    def folder(self) -> str:
        """A name for its folder."""
        return self.name.replace(", ", "-")

    def make(self, folder: Path) -> None:
        """Write the pipeline."""
        synthesize(folder, preset=self.preset, overwrite=folder.exists())
        if self.is_planted:
            plant_attention(folder, PLANTED_BLOCK)


_SIGNS = {"steps": 20, "guidance": 1.0}
#: Of models with random weights; more steps of larger images would show as little.
_SMALL = {"height": 128, "width": 128}
MODELS = (
    Model("signs", "signs", _SIGNS),
    Model("signs, planted", "signs", _SIGNS, is_planted=True),
    Model("tiny-flux", "tiny-flux", {"steps": 8, **_SMALL, "max_sequence_length": 32}),
    Model("tiny-sdxl", "tiny-sdxl", {"steps": 4, **_SMALL}),
)
