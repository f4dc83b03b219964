"""The two models that are measured: their repos, their weights' checksums, and whether they can be compared at all."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter.checkpoint.source import count_bytes_by_dtype, list_folder, read_json
from converter.console import Progress
from converter.conversion.release import SUMMARY_NAME, ReleaseFile
from converter.errors import MissingInput, UnsupportedCheckpoint, UsageError, printable
from converter.evidence.files import read_evidence
from converter.families import family
from converter.generation.repo import WEIGHTS, PipelineRepo, open_pipeline
from converter.lens_layout import CLASS_NAME
from converter.quantize.plan import parameter_count
from converter.verification.audit import Audit

ORIGINAL, QUANTIZED = "original", "quantized"
_READ_BYTES = 1 << 22
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
    transformer: tuple[ReleaseFile, ...]
    """Its weight files."""
    label: str
    repo_id: str
    """As the Hub names it, as far as the folder tells; else the folder's own name."""
    revision: str | None

    @property
    def headers(self) -> list[str]:
        """sha256 of the headers of the weight files."""
        return [header.sha256 for header in self.repo.transformer.headers]

    @property
    def other_components(self) -> dict[str, Any]:
        """What tells the components apart that both models should share: configs, and headers with their sizes."""
        found: dict[str, Any] = {}
        for name in WEIGHTS:
            if name != "transformer":
                checkpoint = self.repo.weights[name]
                found[name] = [checkpoint.config, [[part.sha256, part.file_bytes] for part in checkpoint.headers]]
        for name in ("scheduler", "tokenizer"):
            folder = self.repo.folder / name
            found[name] = [
                [file.name, hashlib.sha256(file.read_bytes()).hexdigest()]
                for file in list_folder(folder)
                if file.is_file()
            ]
        return {name: hashlib.sha256(repr(value).encode()).hexdigest() for name, value in found.items()}

    def source(self) -> dict[str, Any]:
        """The weights, as evidence names them."""
        return {
            "repo_id": self.repo_id,
            "revision": self.revision,
            "transformer": [file.to_dict() for file in self.transformer],
        }

    def footprint(self) -> dict[str, Any]:
        """Bytes of the transformer's tensors by dtype and family, from its headers."""
        checkpoint = self.repo.transformer
        if self.repo.quantization is None:
            parameters = parameter_count(checkpoint.shapes.values())
            members: dict[str, list[tuple[str, int]]] = {}
            for name, tensor in checkpoint.tensors.items():
                members.setdefault(family(name, CLASS_NAME), []).append((tensor.entry.dtype, tensor.entry.bytes))
            families = [
                {
                    "name": name,
                    "tensors": len(sizes),
                    "bytes": sum(size for _, size in sizes),
                    "bytes_by_dtype": count_bytes_by_dtype(sizes),
                }
                for name, sizes in members.items()
            ]
        else:
            audit = Audit(self.repo.folder)
            parameters = audit.parameters
            families = [part.to_dict() for part in audit.footprints()]
        return {
            "class_name": checkpoint.class_name,
            "tensors": len(checkpoint.tensors),
            "parameters": parameters,
            "bytes": checkpoint.total_bytes,
            "bytes_by_dtype": checkpoint.bytes_by_dtype,
            "families": sorted(
                ({key: part[key] for key in ("name", "tensors", "bytes", "bytes_by_dtype")} for part in families),
                key=lambda part: (-part["bytes"], part["name"]),
            ),
        }


def open_subjects(original: Path, quantized: Path, progress: Callable[[str, int], Progress]) -> tuple[Subject, Subject]:
    """Open both repos, and take the checksums of their transformers.

    Args:
        original: a pipeline repo.
        quantized: another one, of the same class.
        progress: opens a display for a label and a number of bytes.

    Raises:
        InputError: one is not what it should be; both are the same; they are no pair.
    """
    _refuse_other_classes(original, quantized)
    repos = [open_pipeline(place) for place in (original, quantized)]
    inodes = [{(status.st_dev, status.st_ino) for status in _stats(repo)} for repo in repos]
    if inodes[0] & inodes[1]:
        raise _same_weights(original, quantized)
    for repo in repos:
        _check_summary(repo)
    total = sum(header.file_bytes for repo in repos for header in repo.transformer.headers)
    with progress("checksums", total) as shown:
        files = [_hash_weights(repo, shown) for repo in repos]
    if {file.sha256 for file in files[0]} == {file.sha256 for file in files[1]}:
        raise _same_weights(original, quantized)
    subjects = [
        Subject(name, repo, hashed, _label(name, repo), *_identify(repo.folder))
        for name, repo, hashed in zip((ORIGINAL, QUANTIZED), repos, files, strict=True)
    ]
    return subjects[0], subjects[1]


def _refuse_other_classes(original: Path, quantized: Path) -> None:
    names = []
    for place in (original, quantized):
        index = place / "model_index.json"
        # What is wrong with the folder is said by what opens it.
        names.append(read_json(index).get("_class_name") if index.is_file() else None)
    if None not in names and names[0] != names[1]:
        raise UnsupportedCheckpoint(
            f"{printable(str(original))} is a {printable(str(names[0]))}, and {printable(str(quantized))} a "
            f"{printable(str(names[1]))}",
            "Compare two repos of the same pipeline.",
        )


def _stats(repo: PipelineRepo) -> list[Any]:
    return [header.file.stat() for header in repo.transformer.headers]


def _same_weights(original: Path, quantized: Path) -> UsageError:
    return UsageError(
        f"{printable(str(original))} and {printable(str(quantized))} have the same transformer, file by file",
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
            f"{printable(str(file))}: quant_transformer_dtypes add up to {shown} bytes, and the headers of the "
            f"transformer to {repo.transformer.total_bytes}",
            "Convert again, or take the file out.",
        )


def _hash_weights(repo: PipelineRepo, progress: Progress) -> tuple[ReleaseFile, ...]:
    found = []
    buffer = memoryview(bytearray(_READ_BYTES))
    for header in repo.transformer.headers:
        digest = hashlib.sha256()
        try:
            with header.file.open("rb", buffering=0) as stream:
                while count := stream.readinto(buffer):
                    digest.update(buffer[:count])
                    progress.advance(count)
                    progress.refresh()
        except OSError as error:
            raise MissingInput(
                f"{printable(str(header.file))}: {error.strerror or error}", "Check the path."
            ) from error
        found.append(ReleaseFile(header.file.name, header.file_bytes, digest.hexdigest()))
    return tuple(found)


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
