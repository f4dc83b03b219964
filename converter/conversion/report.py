"""The result of a conversion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from converter.checkpoint.components import footprints
from converter.checkpoint.footprint import ComponentFootprint, WholeFootprint, add_bytes, whole_footprint
from converter.conversion.record import Converted
from converter.conversion.release.manifest import MANIFEST_NAME, ReleaseFile, describe_file, read_manifest
from converter.conversion.request import Request
from converter.errors import MissingInput
from converter.memory import peak_rss_bytes


@dataclass(frozen=True)
class ConvertedComponent:
    """What became of one component."""

    name: str
    """Empty outside of a pipeline repo."""
    class_name: str
    recipe: str
    tensors: int
    bytes_by_dtype: Mapping[str, int]
    source_bytes: int
    """Footprint of its source."""
    assumed_config: Mapping[str, Any]
    """What was assumed because no ``config.json`` names the class; else empty."""
    nonfinite: Mapping[str, int]
    """Numbers that are not finite, by tensor of the source."""

    @property
    def bytes(self) -> int:
        """Footprint."""
        return sum(self.bytes_by_dtype.values())


@dataclass(frozen=True)
class ConvertReport:
    """What a conversion did."""

    output: Path
    components: tuple[ConvertedComponent, ...]
    """What was converted, the main component first."""
    files: tuple[ReleaseFile, ...]
    elapsed_s: float
    bytes_read_per_s: float
    """Bytes of the source that this run converted, per second of its whole time."""
    peak_rss_bytes: int
    """Peak memory of this process plus that of the planning process."""
    resumed_tensors: int = 0
    """Tensors of the output that an interrupted run had finished."""
    other_components: tuple[ComponentFootprint, ...] = ()
    """Models of the pipeline that stayed as they are."""
    hub: Mapping[str, Any] = field(default_factory=dict)
    """Of a source on the Hub, its address at the commit, and the bytes that were received; else empty."""

    @property
    def recipe(self) -> str:
        """Name of the main component's recipe."""
        return self.components[0].recipe

    @property
    def assumed_config(self) -> Mapping[str, Any]:
        """What was assumed of the main component because no ``config.json`` names its class; else empty."""
        return self.components[0].assumed_config

    @property
    def tensors(self) -> int:
        """Tensors of all components that were converted."""
        return sum(component.tensors for component in self.components)

    @property
    def bytes_by_dtype(self) -> dict[str, int]:
        """Bytes of these tensors by dtype, the largest first."""
        return add_bytes(component.bytes_by_dtype for component in self.components)

    @property
    def source_bytes(self) -> int:
        """Footprint of what was converted."""
        return sum(component.source_bytes for component in self.components)

    @property
    def nonfinite(self) -> dict[str, int]:
        """Numbers that are not finite, by tensor of the source; of several components, with the component's folder."""
        is_one = len(self.components) == 1
        return {
            tensor if is_one else f"{component.name}/{tensor}": count
            for component in self.components
            for tensor, count in component.nonfinite.items()
        }

    @property
    def whole(self) -> WholeFootprint:
        """Footprint of the release with its other components."""
        return whole_footprint(sum(self.bytes_by_dtype.values()), self.source_bytes, self.other_components)

    def to_dict(self) -> dict[str, Any]:
        """Return what ``lensconv convert --json`` prints; recipe and assumed config are the main component's."""
        return {
            "output": str(self.output),
            "recipe": self.recipe,
            "assumed_config": dict(self.assumed_config),
            "components": [asdict(component) for component in self.components],
            "files": [file.to_dict() for file in self.files],
            "bytes_by_dtype": self.bytes_by_dtype,
            "tensors": self.tensors,
            "elapsed_s": self.elapsed_s,
            "bytes_read_per_s": self.bytes_read_per_s,
            "peak_rss_bytes": self.peak_rss_bytes,
            "resumed_tensors": self.resumed_tensors,
            "nonfinite": self.nonfinite,
            "source_bytes": self.source_bytes,
            "other_components": [asdict(other) for other in self.other_components],
            "whole": self.whole.to_dict(),
            **({"hub": dict(self.hub)} if self.hub else {}),
        }


def _describe_hub(request: Request) -> dict[str, Any]:
    if request.shadow is None:
        return {}
    repo = request.shadow.repo
    return {"place": str(repo.address), "received_bytes": repo.received_bytes}


def finished_report(
    output: Path,
    request: Request,
    converted: Sequence[Converted],
    files: tuple[ReleaseFile, ...],
    elapsed_s: float,
    peak_bytes: int,
) -> ConvertReport:
    """The report of a run that converted something.

    Args:
        output: the release.
        request: what was asked for.
        converted: what became of each component.
        files: of the release.
        elapsed_s: seconds of the whole run.
        peak_bytes: peak memory of all processes together.
    """
    components = (
        ConvertedComponent(
            name=component.target.name,
            class_name=component.plan.class_name,
            recipe=component.target.recipe.name,
            tensors=len(component.plan.tensors),
            bytes_by_dtype=component.plan.bytes_by_dtype,
            source_bytes=component.target.checkpoint.total_bytes,
            assumed_config=component.plan.assumed_config,
            nonfinite=component.outcome.nonfinite,
        )
        for component in converted
    )
    return ConvertReport(
        output=output,
        components=tuple(components),
        files=files,
        elapsed_s=elapsed_s,
        bytes_read_per_s=sum(component.outcome.bytes_read for component in converted) / elapsed_s,
        peak_rss_bytes=peak_bytes,
        resumed_tensors=sum(component.outcome.resumed_tensors for component in converted),
        other_components=footprints(request.others),
        hub=_describe_hub(request),
    )


def published_report(output: Path, request: Request, elapsed_s: float) -> ConvertReport:
    """The report of a run that was killed after its last step, from the manifest of its output.

    Raises:
        MissingInput: the release has no manifest.
    """
    manifest = read_manifest(output)
    if manifest is None:
        raise MissingInput(output / MANIFEST_NAME, "no such file")
    components = (
        ConvertedComponent(
            name=component.name,
            class_name=component.class_name,
            recipe=target.recipe.name,
            tensors=component.tensors,
            bytes_by_dtype=component.bytes_by_dtype,
            source_bytes=sum(component.source_bytes_by_dtype.values()),
            assumed_config=component.assumed_config,
            nonfinite=component.nonfinite,
        )
        for target, component in zip(request.targets, manifest.components.values(), strict=True)
    )
    return ConvertReport(
        output=output,
        components=tuple(components),
        files=(*manifest.files.values(), describe_file(MANIFEST_NAME, manifest.encode())),
        elapsed_s=elapsed_s,
        bytes_read_per_s=0.0,
        peak_rss_bytes=peak_rss_bytes(),
        resumed_tensors=sum(component.tensors for component in manifest.components.values()),
        other_components=footprints(request.others),
        hub=_describe_hub(request),
    )
