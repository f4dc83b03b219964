"""The two models that are measured: their repos, their weights' checksums, and whether they can be compared at all."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter.checkpoint.checksum import file_sha256
from converter.checkpoint.source import PIPELINE_INDEX, list_folder, read_json
from converter.console import Progress, Reporter
from converter.conversion.release.manifest import SUMMARY_NAME, ReleaseFile
from converter.errors import MissingInput, UnsupportedCheckpoint, UsageError, printable, unreadable
from converter.measurement.benchmark.changes import file_states
from converter.measurement.evidence.files import read_evidence
from converter.measurement.generation.repo import COMPONENT_CLASSES, WEIGHTS, PipelineRepo, open_pipeline
from converter.verification.audit import Audit

ORIGINAL, QUANTIZED = "original", "quantized"
#: The Hub's cache holds a repo as models--OWNER--NAME/snapshots/REVISION.
_CACHED_REPO = re.compile(r"models--(?P<owner>[^/]+?)--(?P<name>[^/]+)/snapshots/(?P<revision>[0-9a-f]{40})$")
#: What `hf download --local-dir` notes beside a file: the commit, the etag and the time, a line each.
_DOWNLOAD_NOTE = Path(".cache/huggingface/download/model_index.json.metadata")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Subject:
    """One of the two models."""

    name: str
    """``original`` or ``quantized``."""
    repo: PipelineRepo
    weights: Mapping[str, tuple[ReleaseFile, ...]]
    """Weight files by component."""
    states: Mapping[str, list[int]]
    """Of all weight files, before they were read."""
    label: str
    repo_id: str
    """As the Hub names it, as far as the folder tells; else the folder's own name."""
    revision: str | None

    @property
    def components(self) -> dict[str, dict[str, str]]:
        """sha256 of every file that a figure may depend on, by component and name."""
        found = {}
        for name in COMPONENT_CLASSES:
            weights = {file.name: file.sha256 for file in self.weights.get(name, ())}
            for file in list_folder(self.repo.folder / name):
                if name not in WEIGHTS or file.suffix == ".json":
                    digest = file_sha256(file)
                    weights |= {file.name: digest} if digest is not None else {}
            found[name] = weights
        return found

    def source(self) -> dict[str, Any]:
        """The weights, as evidence names them."""
        return {
            "repo_id": self.repo_id,
            "revision": self.revision,
            "transformer": [file.to_dict() for file in self.weights["transformer"]],
        }

    def footprint(self) -> dict[str, Any]:
        """Bytes of the transformer's tensors by dtype and family, from its headers."""
        checkpoint = self.repo.transformer
        audit = Audit(self.repo.folder)
        families = [family.to_dict() for family in audit.footprints()]
        return {
            "class_name": checkpoint.class_name,
            "tensors": len(checkpoint.tensors),
            "parameters": audit.parameters,
            "bytes": checkpoint.total_bytes,
            "bytes_by_dtype": checkpoint.bytes_by_dtype,
            "families": [
                {key: family[key] for key in ("name", "tensors", "bytes", "bytes_by_dtype")} for family in families
            ],
        }


def open_subjects(original: Path, quantized: Path, reporter: Reporter) -> tuple[Subject, Subject]:
    """Open both repos, and take the checksums of their transformers.

    Args:
        original: a pipeline repo.
        quantized: another one, of the same class.
        reporter: shows progress.

    Raises:
        InputError: one is not what it should be; both are the same; they are no pair.
    """
    _refuse_other_classes(original, quantized)
    repos = [open_pipeline(place) for place in (original, quantized)]
    if repos[0].quantization is not None and repos[1].quantization is None:
        raise UsageError(
            f"{original} is quantized, and {quantized} is not",
            "Give the original first.",
        )
    for repo in repos:
        _check_summary(repo)
    states = [file_states(_weight_files(repo)) for repo in repos]
    # Files that both repos have, by whatever names, are read once.
    sizes = {(device, inode): size for state in states for device, inode, size, _ in state.values()}
    with reporter.progress("checksums", sum(sizes.values())) as shown:
        digests: dict[tuple[int, int], str] = {}
        weights = [_hash_weights(repo, state, digests, shown) for repo, state in zip(repos, states, strict=True)]
    first, second = ({file.sha256 for file in files["transformer"]} for files in weights)
    if first == second:
        raise _same_weights(original, quantized)
    subjects = [
        Subject(name, repo, hashed, state, _label(name, repo), *_identify(repo.folder))
        for name, repo, hashed, state in zip((ORIGINAL, QUANTIZED), repos, weights, states, strict=True)
    ]
    return subjects[0], subjects[1]


def _refuse_other_classes(original: Path, quantized: Path) -> None:
    names = []
    for place in (original, quantized):
        index = place / PIPELINE_INDEX
        # What is wrong with the folder is said by what opens it.
        names.append(read_json(index).get("_class_name") if index.is_file() else None)
    if None not in names and names[0] != names[1]:
        raise UnsupportedCheckpoint(
            f"{original} is a {names[0]}, and {quantized} a {names[1]}",
            "Compare two repos of the same pipeline.",
        )


def _same_weights(original: Path, quantized: Path) -> UsageError:
    return UsageError(
        f"{original} and {quantized} have the same transformer, file by file",
        "Give the original and a quantized repo.",
    )


def _check_summary(repo: PipelineRepo) -> None:
    """A summary in a release is published beside what is measured here, and must speak of the same weights.

    Raises:
        EvidenceError: it contradicts itself.
        UnsupportedCheckpoint: it contradicts the headers.
    """
    file = repo.folder / SUMMARY_NAME
    if not file.is_file():
        return
    _, content = read_evidence(file)
    shown = sum(content["quant_transformer_dtypes"].values())
    if shown != repo.transformer.total_bytes:
        raise UnsupportedCheckpoint(
            f"{file}: quant_transformer_dtypes add up to {shown} bytes, and the headers of the "
            f"transformer to {repo.transformer.total_bytes}",
            "Convert again, or take the file out.",
        )


def _weight_files(repo: PipelineRepo) -> list[Path]:
    return [header.file for name in WEIGHTS for header in repo.weights[name].headers]


def _hash_weights(
    repo: PipelineRepo, states: Mapping[str, list[int]], known: dict[tuple[int, int], str], progress: Progress
) -> dict[str, tuple[ReleaseFile, ...]]:
    """Weight files by component; ``known`` holds the checksums of files that were read, by device and inode."""
    found = {}
    for name in WEIGHTS:
        files = []
        for header in repo.weights[name].headers:
            device, inode, *_ = states[str(header.file.absolute())]
            if (device, inode) not in known:
                known[device, inode] = _digest(header.file, progress)
            files.append(ReleaseFile(header.file.name, header.file_bytes, known[device, inode]))
        found[name] = tuple(files)
    return found


def _digest(file: Path, progress: Progress) -> str:
    try:
        digest = file_sha256(file, progress)
    except OSError as error:
        raise unreadable(file, error) from error
    if digest is None:
        raise MissingInput(file, "no such file", "Check the path.")
    return digest


def _label(name: str, repo: PipelineRepo) -> str:
    if repo.quantization is None:
        return f"Original {_identify(repo.folder)[0].rpartition('/')[2]}" if name == ORIGINAL else "Not quantized"
    kind = "dynamic" if repo.quantization.get("use_dynamic_quantization") else "static"
    return f"SDNQ {printable(str(repo.quantization.get('weights_dtype')))} {kind}"


def _identify(folder: Path) -> tuple[str, str | None]:
    """Name and revision of a repo, as the Hub's client notes them."""
    place = folder.resolve()
    cached = _CACHED_REPO.search(place.as_posix())
    if cached:
        return f"{cached['owner']}/{cached['name']}", cached["revision"]
    note = place / _DOWNLOAD_NOTE
    try:
        first = note.read_text("ascii").partition("\n")[0]
    except (OSError, UnicodeDecodeError):
        first = ""
    return printable(place.name), first if _COMMIT.fullmatch(first) else None
