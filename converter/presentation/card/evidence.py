"""The measurements that a card may show: those of the release's own weights, by sha256."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter.checkpoint.dtypes import LONG_NAMES
from converter.conversion.release.manifest import SUMMARY_NAME
from converter.errors import EvidenceError, unreadable
from converter.measurement.evidence.files import FORMATS, read_evidence_folder
from converter.measurement.evidence.names import METRICS_NAME, QUANTIZED
from converter.measurement.evidence.units import GB, ROUNDING
from converter.presentation.card.release import CardRelease

_UNVERIFIED_HINT = "Measure again with `lensconv bench`, or accept unverified figures with --unverified."


@dataclass(frozen=True)
class CardEvidence:
    """Measurements by file name, and how far they can be trusted."""

    folder: Path
    files: Mapping[str, Mapping[str, Any]]
    unverified: tuple[str, ...]
    """Names of those that contain no sha256 of the weights."""
    contradictions: tuple[str, ...]
    """What unverified ones say that the release's headers do not."""
    foreign_summary: Mapping[str, Any] | None
    """A summary of another checkpoint, which does not replace the release's own."""
    as_found: Mapping[str, Mapping[str, Any]]
    """Measurements as they are in the folder; charts are made from these."""

    @property
    def is_verified(self) -> bool:
        """Whether every figure belongs to the release's weights by their sha256."""
        return not self.unverified

    @property
    def summary(self) -> Mapping[str, Any]:
        """What a summary says of the quantization; empty where there is none."""
        return self.foreign_summary or self.files.get(SUMMARY_NAME, {})


def read_card_evidence(release: CardRelease, folder: Path | None, *, unverified: bool) -> CardEvidence:
    """Read the measurements for a card.

    Args:
        release: whose card it is.
        folder: the folder with the measurements; by default the release itself.
        unverified: whether to accept those that contain no sha256.

    Raises:
        MissingInput: a folder was named that does not exist or contains no measurements.
        EvidenceError: they are malformed, contradict each other, were made from other weights, or cannot be verified.
    """
    source = folder or release.root
    if folder is None and not any((source / name).exists() for name in FORMATS):
        return CardEvidence(source, {}, (), (), None, {})
    as_found = read_evidence_folder(source)
    found = dict(as_found)
    own, foreign = release.summary, found.pop(SUMMARY_NAME, None)
    if own is not None:
        found[SUMMARY_NAME] = own
    if foreign == own:
        foreign = None
    elif foreign is not None and own is not None and not unverified:
        raise EvidenceError(
            source / SUMMARY_NAME,
            "differs from the summary in the release, so it was made from other weights",
            "Remove it; the summary of the release is used.",
        )
    doubtful = [name for name, content in found.items() if name != SUMMARY_NAME and "sources" not in content]
    for name, content in found.items():
        if "sources" in content:
            _check_sources(source / name, content["sources"], release)
    if foreign is not None:
        doubtful.append(SUMMARY_NAME)
    if doubtful and not unverified:
        raise EvidenceError(
            source / doubtful[0], "contains no sha256 of the weights that it was made from", _UNVERIFIED_HINT
        )
    contradictions = tuple(_contradictions(found, foreign, release))
    ordered = {name: found[name] for name in FORMATS if name in found}
    return CardEvidence(source, ordered, tuple(doubtful), contradictions, foreign, as_found)


def read_beside(folder: Path, name: str) -> bytes:
    """Return the content of a file in a folder of measurements.

    Raises:
        EvidenceError: it is outside of the folder.
        MissingInput: it cannot be read.
    """
    file = folder / name
    try:
        if not file.resolve().is_relative_to(folder.resolve()):
            raise EvidenceError(file, "is a link to a file outside of the folder", "Copy the file itself.")
        return file.read_bytes()
    except OSError as error:
        raise unreadable(file, error, "Check the file.") from error


def _check_sources(file: Path, sources: Mapping[str, Any], release: CardRelease) -> None:
    """Refuse measurements of other weights."""
    measured = {entry["name"]: entry["sha256"] for entry in sources[QUANTIZED]["transformer"]}
    if measured != release.component_files:
        raise EvidenceError(
            file,
            "is stale: the sha256 of the weights that were measured is not that of the release's weights",
            "Measure this release with `lensconv bench`.",
        )


def _contradictions(
    files: Mapping[str, Mapping[str, Any]], foreign: Mapping[str, Any] | None, release: CardRelease
) -> Iterator[str]:
    """Yield what figures without a sha256 say of the weights that the headers of the release do not."""
    held = release.total_bytes / GB
    metrics = files.get(METRICS_NAME)
    if metrics is not None and "sources" not in metrics:
        said = metrics["models"][QUANTIZED]["transformer_storage_gb"]
        if abs(said - held) > ROUNDING:
            yield f"{METRICS_NAME} was measured on a transformer of {said:.3f} GB, but this one has {held:.3f}"
    if foreign is not None:
        dtypes = {LONG_NAMES.get(key, key): size for key, size in release.audit.checkpoint.bytes_by_dtype.items()}
        if foreign["quant_transformer_dtypes"] != dtypes:
            said = sum(foreign["quant_transformer_dtypes"].values())
            yield f"{SUMMARY_NAME} describes a transformer of {said:,} bytes, but this one has {release.total_bytes:,}"
