"""The original of an ablation: its denoiser on disk, the checksums of its weights, and what evidence says of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from converter.checkpoint.checksum import file_sha256
from converter.checkpoint.header import Header
from converter.checkpoint.source import Checkpoint
from converter.console import Reporter
from converter.conversion.release.manifest import ReleaseFile
from converter.errors import MissingInput
from converter.measurement.benchmark.changes import file_states, refuse_changed_files
from converter.measurement.benchmark.repos import MeasuredRepo
from converter.measurement.benchmark.subjects import Subject, hash_weights, identify_repo
from converter.measurement.evidence.names import ORIGINAL
from converter.measurement.evidence.weights import TRANSFORMER


@dataclass(frozen=True)
class Original:
    """An unquantized model whose variants are measured."""

    checkpoint: Checkpoint
    """Its denoiser."""
    weights: tuple[ReleaseFile, ...]
    """The denoiser's weight files."""
    states: Mapping[str, list[int]]
    """States of these files before they were read."""

    @property
    def identity(self) -> dict[str, Any]:
        """What figures of its weights depend on, as JSON values."""
        return {
            "weights": {file.name: file.sha256 for file in self.weights},
            "config": dict(self.checkpoint.config),
        }

    def source(self) -> dict[str, Any]:
        """The denoiser as evidence names it, for figures that nothing else takes part in."""
        checkpoint = self.checkpoint
        repo_id, revision = identify_repo(checkpoint.pipeline or checkpoint.folder)
        named = {} if checkpoint.component in ("", TRANSFORMER) else {"denoiser": checkpoint.component}
        return {
            "repo_id": repo_id,
            "revision": revision,
            **named,
            TRANSFORMER: [file.to_dict() for file in self.weights],
        }

    def refuse_changed(self) -> None:
        """Refuse weights that changed since they were hashed.

        Raises:
            MissingInput: a file does not exist any more.
            MalformedCheckpoint: a file was changed or replaced.
        """
        refuse_changed_files(self.states)


def hash_original(checkpoint: Checkpoint, reporter: Reporter) -> Original:
    """Compute the checksums of a denoiser's weight files.

    Args:
        checkpoint: of the denoiser.
        reporter: shows progress.

    Raises:
        MissingInput: a file cannot be read.
    """
    headers: Sequence[Header] = checkpoint.headers
    states = file_states(header.file for header in headers)
    with reporter.progress("checksums", sum(header.file_bytes for header in headers)) as shown:
        files = []
        for header in headers:
            digest = file_sha256(header.file, shown)
            if digest is None:
                raise MissingInput(header.file, "no such file")
            files.append(ReleaseFile(header.file.name, header.file_bytes, digest))
    return Original(checkpoint, tuple(files), states)


def open_subject(repo: MeasuredRepo, original: Original, reporter: Reporter) -> Subject:
    """The whole pipeline of an original, with the checksums of all its components.

    Args:
        repo: its pipeline.
        original: its denoiser, whose weights are hashed already.
        reporter: shows progress.

    Raises:
        MissingInput: a file cannot be read.
    """
    states = file_states(repo.weight_files)
    known = {}
    for header, file in zip(original.checkpoint.headers, original.weights, strict=True):
        device, inode, *_ = original.states[str(header.file.absolute())]
        known[device, inode] = file.sha256
    sizes = {(device, inode): size for device, inode, size, _ in states.values()}
    with reporter.progress("checksums", sum(size for place, size in sizes.items() if place not in known)) as shown:
        return Subject(ORIGINAL, repo, hash_weights(repo, states, known, shown), states)
