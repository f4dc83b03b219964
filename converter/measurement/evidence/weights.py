"""Whose weights were measured: what ``sources`` says of one model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from converter.measurement.evidence.names import ORIGINAL, QUANTIZED

#: The key of the files of the denoiser, whatever the pipeline calls it.
TRANSFORMER = "transformer"
#: Names of components that are abbreviations, as people write them.
_NOUNS = {"unet": "UNet"}


def measured_weights(source: Mapping[str, Any]) -> dict[str, Sequence[Mapping[str, Any]]]:
    """Return name, bytes and sha256 of the weight files of each component, the denoiser first.

    Args:
        source: ``sources.original`` or ``sources.quantized`` in a file of measurements. Earlier versions noted the
            transformer alone.
    """
    return {source.get("denoiser", TRANSFORMER): source[TRANSFORMER], **source.get("components", {})}


def component_noun(name: str) -> str:
    """Return what sentences call a component, such as ``text encoder`` or ``UNet``."""
    return _NOUNS.get(name, name.replace("_", " "))


def denoiser_noun(content: Mapping[str, Any]) -> str:
    """Return what sentences call the denoiser that was measured: ``transformer``, if the pipeline does not say other.

    Args:
        content: of a file of measurements.
    """
    sources = content.get("sources", {})
    # Measurements of the original alone name no other.
    source = sources.get(QUANTIZED, sources.get(ORIGINAL, {}))
    return component_noun(str(source.get("denoiser", TRANSFORMER)))


def denoiser_title(content: Mapping[str, Any]) -> str:
    """Return the same with a capital letter."""
    noun = denoiser_noun(content)
    return noun[:1].upper() + noun[1:]
