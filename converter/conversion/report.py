"""The result of a conversion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from converter.checkpoint.components import footprints
from converter.checkpoint.footprint import ComponentFootprint, WholeFootprint, whole_footprint
from converter.conversion.release.manifest import MANIFEST_NAME, ReleaseFile, describe_file, read_manifest
from converter.conversion.request import Request
from converter.errors import MissingInput
from converter.memory import peak_rss_bytes


@dataclass(frozen=True)
class ConvertReport:
    """What a conversion did."""

    output: Path
    recipe: str
    assumed_config: Mapping[str, Any]
    """What was assumed because no ``config.json`` names the class; else empty."""
    files: tuple[ReleaseFile, ...]
    bytes_by_dtype: Mapping[str, int]
    tensors: int
    elapsed_s: float
    bytes_read_per_s: float
    """Bytes of the source that this run converted, per second of its whole time."""
    peak_rss_bytes: int
    """Peak memory of this process plus that of the planning process."""
    resumed_tensors: int = 0
    """Tensors of the output that an interrupted run had finished."""
    nonfinite: Mapping[str, int] = field(default_factory=dict)
    """Numbers that are not finite, by tensor of the source."""
    other_components: tuple[ComponentFootprint, ...] = ()
    """Models of the pipeline that stayed as they are."""
    source_bytes: int = 0
    """Footprint of the source."""

    @property
    def whole(self) -> WholeFootprint:
        """Footprint of the release with its other components."""
        return whole_footprint(sum(self.bytes_by_dtype.values()), self.source_bytes, self.other_components)

    def to_dict(self) -> dict[str, Any]:
        """Return what ``lensconv convert --json`` prints."""
        return {
            **asdict(self),
            "output": str(self.output),
            "files": [file.to_dict() for file in self.files],
            "other_components": [asdict(other) for other in self.other_components],
            "whole": self.whole.to_dict(),
        }


def published_report(output: Path, request: Request, elapsed_s: float) -> ConvertReport:
    """The report of a run that was killed after its last step, from the manifest of its output.

    Raises:
        MissingInput: the release has no manifest.
    """
    manifest = read_manifest(output)
    if manifest is None:
        raise MissingInput(output / MANIFEST_NAME, "no such file")
    return ConvertReport(
        output=output,
        files=(*manifest.files.values(), describe_file(MANIFEST_NAME, manifest.encode())),
        bytes_by_dtype=manifest.bytes_by_dtype,
        tensors=manifest.tensors,
        recipe=request.recipe.name,
        elapsed_s=elapsed_s,
        bytes_read_per_s=0.0,
        peak_rss_bytes=peak_rss_bytes(),
        assumed_config=manifest.assumed_config,
        resumed_tensors=manifest.tensors,
        nonfinite=manifest.content["source"]["nonfinite"],
        source_bytes=sum(manifest.source_bytes_by_dtype.values()),
        other_components=footprints(request.others),
    )
