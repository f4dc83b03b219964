"""The measurements that a card may show: those of the release's own weights, by sha256."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter.checkpoint.dtypes import LONG_NAMES
from converter.conversion.release.manifest import SUMMARY_NAME
from converter.errors import EvidenceError, unreadable
from converter.measurement.evidence.files import FORMATS, METRICS_NAME, read_evidence_folder
from converter.presentation.card.figures import GB
from converter.presentation.card.release import CardRelease

#: Half a unit of the last digit of a size in GB, and a little for binary fractions.
_ROUNDING = 0.00051
_UNVERIFIED_HINT = "Measure again with `lensconv bench`, or take the figures as they are with --unverified."


@dataclass(frozen=True)
class CardEvidence:
    """Measurements by file name, and how far they can be trusted."""

    folder: Path
    files: Mapping[str, Mapping[str, Any]]
    unverified: tuple[str, ...]
    """Names of those that carry no sha256 of the weights."""
    contradictions: tuple[str, ...]
    """What unverified ones say that the release's headers do not."""
    foreign_summary: Mapping[str, Any] | None
    """A summary of another checkpoint, which does not take the place of the release's own."""
    as_found: Mapping[str, Mapping[str, Any]]
    """Measurements as the folder has them, which charts are drawn from."""

    @property
    def is_verified(self) -> bool:
        """Whether every figure belongs to the release's weights by their sha256."""
        return not self.unverified


def read_card_evidence(release: CardRelease, folder: Path | None, *, unverified: bool) -> CardEvidence:
    """Read the measurements for a card.

    Args:
        release: whose card it is.
        folder: holds them; by default the release itself.
        unverified: whether those that carry no sha256 are taken.

    Raises:
        MissingInput: a folder was named that is not there or holds none.
        EvidenceError: they are malformed, contradict each other, were made from other weights, or cannot be verified.
    """
    place = folder or release.root
    if folder is None and not any((place / name).exists() for name in FORMATS):
        return CardEvidence(place, {}, (), (), None, {})
    as_found = read_evidence_folder(place)
    found = dict(as_found)
    own = release.summary
    foreign = None
    if SUMMARY_NAME in found and found[SUMMARY_NAME] != own:
        if own is not None and not unverified:
            raise EvidenceError(
                place / SUMMARY_NAME,
                "is not the summary that the release has, and was made from other weights",
                "Leave it out; the release's own is used.",
            )
        foreign = found.pop(SUMMARY_NAME)
    if own is not None:
        found[SUMMARY_NAME] = own
    doubtful = tuple(name for name, content in found.items() if name != SUMMARY_NAME and "sources" not in content)
    for name, content in found.items():
        if "sources" in content:
            _check_sources(place / name, content["sources"], release)
    if foreign is not None:
        doubtful = (*doubtful, SUMMARY_NAME)
    if doubtful and not unverified:
        raise EvidenceError(
            place / doubtful[0], "carries no sha256 of the weights that it was made from", _UNVERIFIED_HINT
        )
    contradictions = tuple(_contradictions(found, foreign, release)) if doubtful else ()
    ordered = {name: found[name] for name in FORMATS if name in found}
    return CardEvidence(place, ordered, doubtful, contradictions, foreign, as_found)


def read_beside(folder: Path, name: str) -> bytes:
    """The content of a file in a folder of measurements.

    Raises:
        EvidenceError: it leads out of the folder.
        MissingInput: it cannot be read.
    """
    file = folder / name
    try:
        if not file.resolve().is_relative_to(folder.resolve()):
            raise EvidenceError(file, "leads out of the folder", "Copy the file itself.")
        return file.read_bytes()
    except OSError as error:
        raise unreadable(file, error, "Check the file.") from error


def _check_sources(file: Path, sources: Mapping[str, Any], release: CardRelease) -> None:
    """Refuse measurements of other weights."""
    measured = {entry["name"]: entry["sha256"] for entry in sources["quantized"]["transformer"]}
    if measured != release.component_files:
        raise EvidenceError(
            file,
            "is stale: it was measured on other weights than the release holds, by their sha256",
            "Measure this release with `lensconv bench`.",
        )


def _contradictions(
    files: Mapping[str, Mapping[str, Any]], foreign: Mapping[str, Any] | None, release: CardRelease
) -> list[str]:
    """What figures without a sha256 say of the weights that the headers of the release do not."""
    found = []
    held = release.total_bytes / GB
    metrics = files.get(METRICS_NAME)
    if metrics is not None and "sources" not in metrics:
        said = metrics["models"]["quantized"]["transformer_storage_gb"]
        if abs(said - held) > _ROUNDING:
            found.append(f"{METRICS_NAME} was measured on a transformer of {said:.3f} GB, and this one has {held:.3f}")
    if foreign is not None:
        dtypes = {LONG_NAMES.get(key, key): size for key, size in release.audit.checkpoint.bytes_by_dtype.items()}
        if foreign["quant_transformer_dtypes"] != dtypes:
            said = sum(foreign["quant_transformer_dtypes"].values())
            found.append(
                f"{SUMMARY_NAME} describes a transformer of {said:,} bytes, and this one has {release.total_bytes:,}"
            )
    return found
