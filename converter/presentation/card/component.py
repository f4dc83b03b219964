"""A component that was quantized, as a card describes it: from its headers and the manifest."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from converter.checkpoint.footprint import ComponentFootprint
from converter.conversion.planning.rules import weight_format
from converter.conversion.release.manifest import ManifestComponent
from converter.measurement.evidence.units import LOADED_BYTES
from converter.measurement.evidence.weights import TRANSFORMER, component_noun
from converter.models.lens.layout import CLASS_NAME
from converter.models.roles import role
from converter.presentation.tables.figures import reduction
from converter.verification.audit import Audit
from converter.verification.report import FamilyFootprint

#: Contents of Lens' families.
_LENS_ROLES = {
    "img_mod": "modulation of the image stream",
    "txt_mod": "modulation of the text stream",
    "attn": "attention",
    "img_mlp": "feed-forward of the image stream",
    "txt_mlp": "feed-forward of the text stream",
    "embed": "embeddings and projections",
    "norm": "norms",
}


@dataclass(frozen=True)
class CardComponent:
    """A component that was quantized, and the facts that a card states about it."""

    audit: Audit
    described: ManifestComponent
    """What the manifest says about it."""

    @property
    def name(self) -> str:
        """Its folder in the pipeline; empty outside of one."""
        return self.described.name

    @property
    def noun(self) -> str:
        """What sentences call it, such as ``text encoder``."""
        if self.name:
            return component_noun(self.name)
        return TRANSFORMER if TRANSFORMER.title() in self.class_name or not self.class_name else "model"

    @property
    def is_denoiser(self) -> bool:
        """Whether it is what a summary of a quantization calls the transformer."""
        return self.noun == TRANSFORMER or role(self.name, self.class_name) == "denoiser"

    @property
    def class_name(self) -> str:
        """Class of the model; empty if it is unknown."""
        return self.audit.class_name

    @property
    def is_lens(self) -> bool:
        """Whether it is a Lens transformer."""
        return self.class_name == CLASS_NAME

    @property
    def weights(self) -> list[str]:
        """Paths of its weight files inside the release."""
        checkpoint = self.audit.checkpoint
        return [checkpoint.prefix + header.file.name for header in checkpoint.headers]

    @property
    def bytes(self) -> int:
        """Bytes of its tensors."""
        return self.audit.checkpoint.total_bytes

    @property
    def source_bytes(self) -> int:
        """Bytes of its tensors in the source."""
        return sum(self.described.source_bytes_by_dtype.values())

    @property
    def footprint(self) -> ComponentFootprint:
        """Its size."""
        return ComponentFootprint(self.name, self.class_name, self.bytes, self.audit.checkpoint.bytes_by_dtype)

    @property
    def families(self) -> tuple[FamilyFootprint, ...]:
        """Footprint of each family, the largest first."""
        return self.audit.footprints()

    def contents(self, family: str) -> str:
        """Return the contents of a family in words."""
        return _LENS_ROLES.get(family, family) if self.is_lens else family

    @property
    def weights_dtype(self) -> str:
        """Dtype of the codes, as SDNQ names it."""
        return str(self.audit.config.get("weights_dtype", ""))

    @property
    def bits(self) -> int | None:
        """Bits of a code of that dtype; None if SDNQ does not know it."""
        known = weight_format(self.weights_dtype)
        return known.bits if known is not None else None

    @property
    def is_dynamic(self) -> bool:
        """Whether the weights decided which modules have another dtype than that."""
        return bool(self.audit.config.get("use_dynamic_quantization"))

    @property
    def group_sizes(self) -> list[int]:
        """Numbers of weights that share a scale, from the shapes of weights and scales."""
        found = set()
        for module in self.audit.modules.values():
            scale, elements = module.parts.get("scale"), module.elements
            if scale is not None and elements and prod(scale.shape):
                found.add(elements // prod(scale.shape))
        return sorted(found)

    @property
    def skip_patterns(self) -> list[str]:
        """Patterns of modules that the recipe keeps: those with a star in SDNQ's list."""
        names = self.audit.config.get("modules_to_not_convert") or ()
        return sorted(name for name in names if "*" in name)

    @property
    def kept_dtypes(self) -> list[str]:
        """Dtypes of the tensors that are not quantized."""
        return sorted({entry.dtype for entry in self.audit.kept.values()})

    @property
    def source_dtypes(self) -> list[str]:
        """Dtypes of the source."""
        return sorted(self.described.source_bytes_by_dtype)

    @property
    def uses_matmul(self) -> bool:
        """Whether its configuration asks for quantized matrix products."""
        return bool(self.audit.config.get("use_quantized_matmul"))

    def figures(self) -> dict[str, Any]:
        """Return sizes and numbers for templates."""
        checkpoint, audit = self.audit.checkpoint, self.audit
        loaded = LOADED_BYTES * audit.parameters
        return {
            "bytes": self.bytes,
            "source_bytes": self.source_bytes,
            "loaded_bytes": loaded,
            "vs_source": reduction(self.source_bytes, self.bytes),
            "vs_bf16": reduction(loaded, self.bytes),
            "parameters": audit.parameters,
            # The Hub counts these as parameters: a byte of packed codes is one.
            "stored_elements": sum(prod(tensor.entry.shape) for tensor in checkpoint.tensors.values()),
            "tensors": len(checkpoint.tensors),
            "source_tensors": self.described.source_tensors,
            "quantized_modules": len(audit.modules),
            "quantized_bytes": sum(entry.bytes for module in audit.modules.values() for entry in module.parts.values()),
            "kept_bytes": sum(entry.bytes for entry in audit.kept.values()),
            "bytes_by_dtype": checkpoint.bytes_by_dtype,
        }
