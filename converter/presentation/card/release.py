"""A release as its card describes it, from its headers, its manifest and its small files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from converter.checkpoint.components import footprints
from converter.checkpoint.files import read_json
from converter.checkpoint.footprint import ComponentFootprint, WholeFootprint, whole_footprint
from converter.checkpoint.source import PIPELINE_INDEX, pipeline_components
from converter.conversion.release.code import CODE_SUFFIX
from converter.conversion.release.manifest import MANIFEST_NAME, SUMMARY_NAME, Manifest, read_manifest
from converter.conversion.release.selection import TERMS
from converter.errors import MalformedCheckpoint, MissingInput, UnsupportedCheckpoint, printable
from converter.measurement.evidence.units import LOADED_BYTES
from converter.models.lens.layout import CLASS_NAME
from converter.presentation.tables.figures import reduction
from converter.verification.audit import Audit
from converter.verification.checks import check_headers
from converter.verification.components import other_components
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
class CardRelease:
    """A release, and the facts that its card states."""

    root: Path
    manifest: Manifest
    audit: Audit
    components: Mapping[str, str]
    """Class of each component of the pipeline; empty if the release is not a pipeline."""
    quantizations: Mapping[str, str] = field(default_factory=dict)
    """Method by which the other components are quantized, by name; only of those that are."""
    others: tuple[ComponentFootprint, ...] = ()
    """The other models of the pipeline."""

    @property
    def content(self) -> Mapping[str, Any]:
        """The manifest as its file has it."""
        return self.manifest.content

    @property
    def is_lens(self) -> bool:
        """Whether the release is a Lens transformer."""
        return self.audit.class_name == CLASS_NAME

    @cached_property
    def component_files(self) -> dict[str, str]:
        """sha256 of the transformer's weight files, by name."""
        prefix = self.audit.checkpoint.prefix
        names = [header.file.name for header in self.audit.checkpoint.headers]
        return {name: self.manifest.files[prefix + name].sha256 for name in names}

    @property
    def written(self) -> dict[str, str]:
        """sha256 of the files that ``convert`` wrote, by path."""
        return {name: file.sha256 for name, file in self.manifest.files.items() if name not in self.added}

    @property
    def terms(self) -> list[str]:
        """Files of the source with the terms of the model, such as LICENSE."""
        return [name for name in self.written if "/" not in name and TERMS.fullmatch(name)]

    @property
    def code(self) -> list[str]:
        """Files of the source with code."""
        return [name for name in self.written if name.endswith(CODE_SUFFIX)]

    @property
    def added(self) -> tuple[str, ...]:
        """Files that an earlier card listed."""
        return self.manifest.card_files

    @property
    def stored_elements(self) -> int:
        """Stored elements, which the Hub counts as parameters: a byte of packed codes is one."""
        return sum(prod(tensor.entry.shape) for tensor in self.audit.checkpoint.tensors.values())

    @property
    def total_bytes(self) -> int:
        """Footprint of the transformer."""
        return self.audit.checkpoint.total_bytes

    @property
    def source_bytes(self) -> int:
        """Footprint of the source."""
        return sum(self.manifest.main.source_bytes_by_dtype.values())

    @property
    def whole(self) -> WholeFootprint:
        """Footprint of the release with its other components."""
        return whole_footprint(self.total_bytes, self.source_bytes, self.others)

    @property
    def families(self) -> tuple[FamilyFootprint, ...]:
        """Footprint of each family, the largest first."""
        return self.audit.footprints()

    def role(self, family: str) -> str:
        """Return the contents of a family in words."""
        return _LENS_ROLES.get(family, family) if self.is_lens else family

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
        return sorted(self.manifest.main.source_bytes_by_dtype)

    @cached_property
    def summary(self) -> dict[str, Any] | None:
        """Content of the summary that ``convert`` wrote; None if there is none."""
        return read_json(self.root / SUMMARY_NAME) if SUMMARY_NAME in self.written else None

    def figures(self) -> dict[str, Any]:
        """Return sizes and numbers for templates."""
        loaded = LOADED_BYTES * self.audit.parameters
        return {
            "bytes": self.total_bytes,
            "source_bytes": self.source_bytes,
            "loaded_bytes": loaded,
            "vs_source": reduction(self.source_bytes, self.total_bytes),
            "vs_bf16": reduction(loaded, self.total_bytes),
            "whole_bytes": self.whole.bytes,
            "whole_vs_source": reduction(self.whole.source_bytes, self.whole.bytes),
            "parameters": self.audit.parameters,
            "stored_elements": self.stored_elements,
            "tensors": len(self.audit.checkpoint.tensors),
            "source_tensors": self.manifest.main.source_tensors,
            "quantized_modules": len(self.audit.modules),
            "quantized_bytes": sum(e.bytes for m in self.audit.modules.values() for e in m.parts.values()),
            "kept_bytes": sum(entry.bytes for entry in self.audit.kept.values()),
            "bytes_by_dtype": self.audit.checkpoint.bytes_by_dtype,
        }


def read_release(root: Path) -> CardRelease:
    """Read a release, and check its headers.

    Raises:
        MissingInput: the folder does not exist, or has no manifest.
        MalformedCheckpoint: a file breaks its format, or a check of its headers failed.
        UnsupportedCheckpoint: the release is not quantized.
    """
    where = printable(str(root))
    if not root.is_dir():
        raise MissingInput(where, "no such folder", "Name the folder that `lensconv convert` made.")
    manifest = read_manifest(root)
    if manifest is None:
        raise MissingInput(where, f"has no {MANIFEST_NAME}", "Make the release with `lensconv convert`.")
    audit = Audit(root, component=manifest.main.name or None, manifest=manifest)
    if not audit.modules:
        raise UnsupportedCheckpoint(f"{where}: no module in it is quantized", "Make it with `lensconv convert`.")
    _check(audit, manifest)
    others = other_components([audit])
    quantizations = {other.name: other.quantization for other in others if other.quantization}
    return CardRelease(root, manifest, audit, _classes(root), quantizations, footprints(others))


def _check(audit: Audit, manifest: Manifest) -> None:
    """Compare the weights with the manifest, and run the checks of ``verify``.

    Other files in the manifest are not compared: the card may replace them.
    """
    for header in audit.checkpoint.headers:
        name = audit.checkpoint.prefix + header.file.name
        listed = manifest.files.get(name)
        if listed is None or listed.bytes != header.file_bytes or manifest.main.headers.get(name) != header.sha256:
            raise MalformedCheckpoint(header.file, f"differs from the file in {MANIFEST_NAME}")
    for check in check_headers(audit):
        if not check.ok and check.name != "manifest":
            raise MalformedCheckpoint(audit.root, f"{check.name}: {check.detail}", hint="See `lensconv verify`.")


def _classes(root: Path) -> dict[str, str]:
    """Class of each component, by name."""
    if not (root / PIPELINE_INDEX).is_file():
        return {}
    return {name: class_name for name, (_, class_name) in pipeline_components(root).items()}
