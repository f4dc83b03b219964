"""Which variant of an ablation a release is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from converter.errors import EvidenceError
from converter.presentation.card.component import CardComponent
from converter.presentation.card.release import CardRelease


def find_variant(file: Path, content: Mapping[str, Any], release: CardRelease) -> str:
    """Return the name of the variant that has the weights of a release; all of these are read.

    Args:
        file: ``ablation.json``.
        content: its content.
        release: the release.

    Raises:
        EvidenceError: no variant has them.
    """
    # Importing it takes a moment, and few cards need it.
    from converter.measurement.sensitivity.digest import weights_digest

    component = _measured_component(content["component"], release)
    checkpoint = component.audit.checkpoint if component is not None else None
    total = checkpoint.total_bytes if checkpoint is not None else None
    similar = [variant for variant in content["variants"] if variant["bytes"] == total]
    digest = weights_digest(checkpoint) if checkpoint is not None and similar else ""
    found = next((variant for variant in similar if variant["sha256"] == digest), None)
    if found is None:
        raise EvidenceError(
            file,
            "is stale: none of its variants has the weights of the release",
            "Run `lensconv ablate` again with --recipe of this release.",
        )
    return str(found["name"])


def _measured_component(name: str, release: CardRelease) -> CardComponent | None:
    """Return the component that was measured; outside of a pipeline it has no name."""
    if not (name and release.components):
        return release.main
    return next((component for component in release.converted if component.name == name), None)
