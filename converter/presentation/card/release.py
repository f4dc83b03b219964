"""A release as its card describes it, from its headers, its manifest and its small files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from converter.checkpoint.components import PipelineComponent, footprints
from converter.checkpoint.files import read_json
from converter.checkpoint.footprint import ComponentFootprint, WholeFootprint, whole_footprint
from converter.checkpoint.source import DENOISERS, PIPELINE_INDEX, pipeline_components
from converter.conversion.release.code import CODE_SUFFIX
from converter.conversion.release.manifest import MANIFEST_NAME, SUMMARY_NAME, Manifest, read_manifest
from converter.conversion.release.selection import TERMS
from converter.errors import MalformedCheckpoint, MissingInput, UnsupportedCheckpoint, printable
from converter.presentation.card.component import CardComponent
from converter.presentation.tables.figures import reduction
from converter.verification.audit import Audit
from converter.verification.checks import check_repo
from converter.verification.components import other_components


@dataclass(frozen=True)
class CardRelease:
    """A release, and the facts that its card states."""

    root: Path
    manifest: Manifest
    converted: tuple[CardComponent, ...]
    """The components that were quantized, the main one first."""
    components: Mapping[str, str]
    """Class of each component of the pipeline; empty if the release is not a pipeline."""
    quantizations: Mapping[str, str] = field(default_factory=dict)
    """Method by which the other components are quantized, by name; only of those that are."""
    other_components: tuple[PipelineComponent, ...] = ()
    """The other components of the pipeline that have files."""

    @property
    def content(self) -> Mapping[str, Any]:
        """The manifest as its file has it."""
        return self.manifest.content

    @cached_property
    def others(self) -> tuple[ComponentFootprint, ...]:
        """The other models of the pipeline."""
        return footprints(self.other_components)

    @property
    def main(self) -> CardComponent:
        """The main component."""
        return self.converted[0]

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
    def adapters(self) -> dict[str, list[dict[str, Any]]]:
        """The LoRA adapters that the weights contain, by component."""
        found = {part.name: [adapter.to_dict() for adapter in part.described.adapters] for part in self.converted}
        return {name: adapters for name, adapters in found.items() if adapters}

    @property
    def added(self) -> tuple[str, ...]:
        """Files that an earlier card listed."""
        return self.manifest.card_files

    @property
    def kept(self) -> dict[str, str]:
        """Class, and method of quantization if it has one, of every component that is as in the source, by name."""
        quantized = {component.name for component in self.converted}
        return {
            name: ", ".join(filter(None, (class_name, self.quantizations.get(name))))
            for name, class_name in sorted(self.components.items())
            if name not in quantized
        }

    @property
    def whole(self) -> WholeFootprint:
        """Footprint of the release with its other components."""
        output = sum(component.bytes for component in self.converted)
        source = sum(component.source_bytes for component in self.converted)
        return whole_footprint(output, source, self.others)

    @property
    def transformer(self) -> ComponentFootprint:
        """The component that measurements call the transformer: the denoiser, or else the main one."""
        models = (*(component.footprint for component in self.converted), *self.others)
        return next((model for name in DENOISERS for model in models if model.name == name), models[0])

    @property
    def pipeline_class(self) -> str:
        """Class of the pipeline; empty if the release is not a pipeline, or its class is code of its own."""
        name = read_json(self.root / PIPELINE_INDEX).get("_class_name") if self.components else None
        return name if isinstance(name, str) and name.isidentifier() else ""

    @cached_property
    def summary(self) -> dict[str, Any] | None:
        """Content of the summary that ``convert`` wrote; None if there is none, or it is not about a denoiser.

        Its keys call every component the transformer; earlier versions wrote one for others, too.
        """
        is_about_it = SUMMARY_NAME in self.written and self.main.is_denoiser
        return read_json(self.root / SUMMARY_NAME) if is_about_it else None

    def figures(self) -> dict[str, Any]:
        """Return sizes and numbers of the main component, and the size of the whole pipeline, for templates."""
        whole = self.whole
        return {
            **self.main.figures(),
            "whole_bytes": whole.bytes,
            "whole_vs_source": reduction(whole.source_bytes, whole.bytes),
        }


def read_release(root: Path) -> CardRelease:
    """Read a release, and check its headers.

    Raises:
        MissingInput: the folder does not exist, or has no manifest.
        MalformedCheckpoint: a file breaks its format, or a check of its headers failed.
        UnsupportedCheckpoint: a component that the manifest describes is not quantized.
    """
    where = printable(str(root))
    if not root.is_dir():
        raise MissingInput(where, "no such folder", "Name the folder that `lensconv convert` made.")
    manifest = read_manifest(root)
    if manifest is None:
        raise MissingInput(where, f"has no {MANIFEST_NAME}", "Make the release with `lensconv convert`.")
    audits = [Audit(root, component=name or None, manifest=manifest) for name in manifest.components]
    for audit in audits:
        if not audit.modules:
            part = printable(f"{where}/{audit.name}") if len(audits) > 1 else where
            raise UnsupportedCheckpoint(f"{part}: no module in it is quantized", "Make it with `lensconv convert`.")
    converted = tuple(map(CardComponent, audits, manifest.components.values()))
    _check(converted, manifest)
    others = other_components(audits)
    quantizations = {other.name: other.quantization for other in others if other.quantization}
    return CardRelease(root, manifest, converted, _classes(root), quantizations, others)


def _check(converted: tuple[CardComponent, ...], manifest: Manifest) -> None:
    """Compare the weights with the manifest, and run the checks of ``verify``.

    Other files in the manifest are not compared: the card may replace them.
    """
    for component in converted:
        headers = component.audit.checkpoint.headers
        for name, header in zip(component.weights, headers, strict=True):
            listed = manifest.files.get(name)
            is_listed = listed is not None and listed.bytes == header.file_bytes
            if not is_listed or component.described.headers.get(name) != header.sha256:
                raise MalformedCheckpoint(header.file, f"differs from the file in {MANIFEST_NAME}")
    audits = [component.audit for component in converted]
    for check in check_repo(audits):
        if not check.ok and check.name != "manifest":
            raise MalformedCheckpoint(audits[0].root, f"{check.title}: {check.detail}", hint="See `lensconv verify`.")


def _classes(root: Path) -> dict[str, str]:
    """Class of each component, by name."""
    if not (root / PIPELINE_INDEX).is_file():
        return {}
    return {name: class_name for name, (_, class_name) in pipeline_components(root).items()}
