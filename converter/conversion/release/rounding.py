"""How the codes of a component were chosen, as its manifest says it."""

from __future__ import annotations

from dataclasses import dataclass

from converter.conversion.recipe.recipe import NEAREST
from converter.fields import Fields


@dataclass(frozen=True)
class ManifestRounding:
    """How codes were chosen."""

    method: str = NEAREST
    """The recipe's rounding; a newer version may know more of them."""
    nearest: tuple[str, ...] = ()
    """Modules for which it does not work, so that they have SDNQ's codes."""

    @classmethod
    def parse(cls, recipe: Fields) -> ManifestRounding:
        """Check the object that a component's recipe has if codes are not SDNQ's.

        Raises: the error of the fields.
        """
        if "rounding" not in recipe.content:
            return cls()
        fields = Fields(recipe.take("rounding", dict), f"{recipe.where}: rounding", recipe.error)
        return cls(fields.take("method", str), fields.take_strings("nearest"))
