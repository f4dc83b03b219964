"""LoRA adapters as manifests describe them, and files of measurements after them. This module does not need torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from converter.errors import printable
from converter.fields import Fields

#: JSON objects of adapters by component, in the order in which they are added.
DescribedAdapters: TypeAlias = Mapping[str, Sequence[Mapping[str, Any]]]


@dataclass(frozen=True)
class ManifestAdapter:
    """What a manifest says about a LoRA adapter that was added to the weights before they were quantized."""

    name: str
    """Name of its file."""
    sha256: str
    scale: float
    config_sha256: str = ""
    """Of the ``adapter_config.json`` beside it, where that was used."""

    @property
    def identity(self) -> tuple[str, float, str]:
        """What decides what is added; the name of the file does not."""
        return self.sha256, self.scale, self.config_sha256

    @property
    def title(self) -> str:
        """What messages call it."""
        config = " and its adapter_config.json" if self.config_sha256 else ""
        return f"{printable(self.name)} with scale {self.shown_scale}{config}"

    @property
    def shown_scale(self) -> str:
        """The scale with all of its digits, but without a needless point."""
        short = f"{self.scale:g}"
        return short if float(short) == self.scale else repr(self.scale)

    @classmethod
    def parse(cls, fields: Fields) -> ManifestAdapter:
        """Check the values of an adapter's JSON object.

        Raises: the error of the fields.
        """
        name, sha256 = fields.take("name", str), fields.take("sha256", str)
        return cls(name, sha256, fields.take("scale", float), fields.take("config_sha256", str, ""))

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        config = {"config_sha256": self.config_sha256} if self.config_sha256 else {}
        return {"name": self.name, "sha256": self.sha256, "scale": self.scale, **config}


def adapter_identities(adapters: DescribedAdapters) -> dict[str, list[tuple[str, float, str]]]:
    """What decides what is added to each component."""
    return {component: [ManifestAdapter(**each).identity for each in found] for component, found in adapters.items()}
