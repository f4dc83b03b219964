"""The measurements that a card may show: those of the release's own weights, by sha256."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter.checkpoint.dtypes import LONG_NAMES
from converter.conversion.adapters.described import adapter_identities
from converter.conversion.release.manifest import SUMMARY_NAME
from converter.errors import EvidenceError, unreadable
from converter.measurement.evidence.files import FORMATS, read_evidence, read_evidence_folder
from converter.measurement.evidence.names import ABLATION_NAME, METRICS_NAME, ORIGINAL, QUANTIZED
from converter.measurement.evidence.sweep import find_sweep
from converter.measurement.evidence.units import GB, ROUNDING
from converter.measurement.evidence.weights import TRANSFORMER, measured_weights
from converter.presentation.card.published_variant import find_variant
from converter.presentation.card.release import CardRelease

_UNVERIFIED_HINT = "Measure again with `lensconv bench`, or accept unverified figures with --unverified."


@dataclass(frozen=True)
class CardEvidence:
    """Measurements by file name, and how far they can be trusted."""

    folder: Path
    files: Mapping[str, Mapping[str, Any]]
    unverified: tuple[str, ...]
    """Names of those that lack the sha256 of weights that were quantized."""
    unrecorded: tuple[str, ...]
    """Components whose sha256 they lack, where they have those of others."""
    contradictions: tuple[str, ...]
    """What unverified ones say that the release's headers do not."""
    foreign_summary: Mapping[str, Any] | None
    """A summary of another checkpoint, which does not replace the release's own."""
    as_found: Mapping[str, Mapping[str, Any]]
    """Measurements as they are in the folder; charts are made from these."""
    variant: str = ""
    """Name of the variant in the ablation that has the weights of the release; empty without an ablation."""
    sweep: Mapping[str, Any] | None = None
    """Content of the ``sweep.json`` that has the sha256 of these measurements; None without one."""
    sweep_file: Path | None = None
    """Where it is."""
    other_sweep: str = ""
    """Why a ``sweep.json`` that exists is left out; empty if it is not."""

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
        return CardEvidence(source, {}, (), (), (), None, {})
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
    missing: dict[str, tuple[str, ...]] = {}
    variant = ""
    for name, content in found.items():
        if name == ABLATION_NAME:
            variant = find_variant(source / name, content, release)
        elif "sources" in content:
            _check_adapters(source / name, content["sources"][ORIGINAL], release)
            if lacking := _check_sources(source / name, content["sources"][QUANTIZED], release):
                missing[name] = lacking
        elif name != SUMMARY_NAME:
            missing[name] = ()
    if foreign is not None:
        missing[SUMMARY_NAME] = ()
    if missing and not unverified:
        name, lacking = next(iter(missing.items()))
        of_them = f"of {', '.join(lacking)}, which was quantized as well" if lacking else "that it was made from"
        reason = f"contains no sha256 of the weights {of_them}"
        raise EvidenceError(source / name, reason, _UNVERIFIED_HINT)
    contradictions = tuple(_contradictions(found, foreign, release))
    ordered = {name: found[name] for name in FORMATS if name in found}
    unrecorded = tuple(dict.fromkeys(component for lacking in missing.values() for component in lacking))
    sweep, other_sweep = find_sweep(source)
    return CardEvidence(
        source,
        ordered,
        tuple(missing),
        unrecorded,
        contradictions,
        foreign,
        as_found,
        variant,
        sweep=None if sweep is None else read_evidence(sweep)[1],
        sweep_file=sweep,
        other_sweep=other_sweep,
    )


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


def _check_sources(file: Path, source: Mapping[str, Any], release: CardRelease) -> tuple[str, ...]:
    """Refuse measurements of other weights; return the quantized components whose weights are not named."""
    measured = {
        name: {entry["name"]: entry["sha256"] for entry in entries}
        for name, entries in measured_weights(source).items()
    }
    if TRANSFORMER in measured and TRANSFORMER not in release.components:
        # The denoiser has no name outside of a pipeline, and measurements call it the transformer.
        measured = {release.main.name: measured.pop(TRANSFORMER), **(measured if release.components else {})}
    quantized = {component.name: component for component in release.converted}
    for name, files in measured.items():
        prefix = f"{name}/" if name else ""
        listed = {file: release.manifest.files.get(prefix + file) for file in files}
        found = {file: entry.sha256 for file, entry in listed.items() if entry is not None}
        if found != files or (name in quantized and {prefix + file for file in files} != {*quantized[name].weights}):
            raise EvidenceError(
                file,
                "is stale: the sha256 of the weights that were measured is not that of the release's weights",
                "Measure this release with `lensconv bench`.",
            )
    return tuple(name for name in quantized if name not in measured)


def _check_adapters(file: Path, original: Mapping[str, Any], release: CardRelease) -> None:
    """Refuse measurements in which adapters were added to the original that the release does not contain."""
    added = adapter_identities(original.get("adapters", {}))
    if added and added != adapter_identities(release.adapters):
        raise EvidenceError(
            file,
            "is stale: the original was measured with other LoRA than the manifest of the release names",
            "Measure this release with `lensconv bench`.",
        )


def _contradictions(
    files: Mapping[str, Mapping[str, Any]], foreign: Mapping[str, Any] | None, release: CardRelease
) -> Iterator[str]:
    """Yield what figures without a sha256 say of the weights that the headers of the release do not."""
    held = release.transformer.bytes / GB
    metrics = files.get(METRICS_NAME)
    if metrics is not None and "sources" not in metrics:
        said = metrics["models"][QUANTIZED]["transformer_storage_gb"]
        if abs(said - held) > ROUNDING:
            yield f"{METRICS_NAME} was measured on a transformer of {said:.3f} GB, but this one has {held:.3f}"
    own = release.main.audit.checkpoint
    if foreign is not None and release.main.is_denoiser:
        dtypes = {LONG_NAMES.get(key, key): size for key, size in own.bytes_by_dtype.items()}
        if foreign["quant_transformer_dtypes"] != dtypes:
            said = sum(foreign["quant_transformer_dtypes"].values())
            yield f"{SUMMARY_NAME} describes a transformer of {said:,} bytes, but this one has {own.total_bytes:,}"
