"""How the codes of a component were chosen, as its manifest says it."""

from __future__ import annotations

from dataclasses import dataclass

from converter.conversion.recipe.recipe import CALIBRATED, NEAREST
from converter.fields import Fields


@dataclass(frozen=True)
class ManifestRounding:
    """How codes were chosen."""

    method: str = NEAREST
    """The recipe's rounding; a newer version may know more of them."""
    nearest: tuple[str, ...] = ()
    """Modules for which it does not work, so that they have SDNQ's codes."""
    scale: tuple[str, ...] = ()
    """Modules that were not calibrated, so that their scales were searched instead."""
    calibration_sha256: str = ""
    """Of the file of the calibration; empty without one."""

    def is_calibrated(self, module: str) -> bool:
        """Whether the codes of a quantized module make up for each other's errors."""
        return self.method == CALIBRATED and module not in self.nearest and module not in self.scale

    @classmethod
    def parse(cls, recipe: Fields) -> ManifestRounding:
        """Check the object that a component's recipe has if codes are not SDNQ's.

        Raises: the error of the fields.
        """
        if "rounding" not in recipe.content:
            return cls()
        fields = Fields(recipe.take("rounding", dict), f"{recipe.where}: rounding", recipe.error)
        return cls(
            fields.take("method", str),
            fields.take_strings("nearest"),
            fields.take_strings("scale"),
            fields.take("calibration_sha256", str, ""),
        )
