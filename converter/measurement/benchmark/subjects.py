"""The two models: their repos, the checksums of their weights, and whether they can be compared."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from converter.checkpoint.checksum import file_sha256
from converter.checkpoint.files import list_folder
from converter.checkpoint.header import Header
from converter.console import Progress, Reporter
from converter.conversion.adapters.choice import AdapterChoice
from converter.conversion.adapters.described import DescribedAdapters
from converter.conversion.release.manifest import SUMMARY_NAME, ReleaseFile, read_manifest
from converter.errors import InputError, MissingInput, UnsupportedCheckpoint, UsageError, printable, unreadable
from converter.measurement.benchmark.adapters import add_to_original, contained_adapters
from converter.measurement.benchmark.changes import file_states
from converter.measurement.benchmark.repos import MeasuredRepo, open_both
from converter.measurement.evidence.files import SUMMARY_HINT, read_evidence
from converter.measurement.evidence.names import ORIGINAL, QUANTIZED
from converter.measurement.evidence.weights import TRANSFORMER
from converter.verification.audit import Audit
from converter.verification.audited import open_audits

#: The Hub's cache stores a repo as models--OWNER--NAME/snapshots/REVISION.
_CACHED_REPO = re.compile(r"models--(?P<owner>[^/]+?)--(?P<name>[^/]+)/snapshots/(?P<revision>[0-9a-f]{40})$")
#: Written by `hf download --local-dir` for each file: the commit, the etag and the time, one per line.
_DOWNLOAD_NOTE = Path(".cache/huggingface/download/model_index.json.metadata")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Subject:
    """One of the two models."""

    name: str
    """``original`` or ``quantized``."""
    repo: MeasuredRepo
    weights: Mapping[str, tuple[ReleaseFile, ...]]
    """Weight files by component."""
    states: Mapping[str, list[int]]
    """States of all files that its weights are read from, before they were read."""
    adapters: DescribedAdapters = field(default_factory=dict)
    """The LoRA adapters that its weights contain: those that are added to the original, and those in a release."""
    choices: tuple[AdapterChoice, ...] = ()
    """The files of those that are added when it is loaded."""

    @property
    def label(self) -> str:
        """What tables call the model; components other than the denoiser are named."""
        return f"{self._method} + LoRA" if self.adapters else self._method

    @property
    def _method(self) -> str:
        denoiser = self.repo.denoiser
        if self.name == ORIGINAL and denoiser not in self.repo.quantizations:
            return f"Original {self.repo_id.rpartition('/')[2]}"
        found = self.repo.quantizations.items()
        methods = [f"{'' if name == denoiser else f'{name} '}{_method(config)}" for name, config in found]
        return f"SDNQ {', '.join(methods)}" if methods else "Not quantized"

    @property
    def repo_id(self) -> str:
        """Name of the repo on the Hub, if the folder shows it; else the name of the folder."""
        return self._identity[0]

    @property
    def revision(self) -> str | None:
        """Commit of the repo, if the folder shows it."""
        return self._identity[1]

    @cached_property
    def _identity(self) -> tuple[str, str | None]:
        return identify_repo(self.repo.folder)

    @cached_property
    def components(self) -> dict[str, dict[str, str]]:
        """sha256 of every file that a figure may depend on, by component and name."""
        found = {}
        for name in self.repo.component_names:
            files = {file.name: file.sha256 for file in self.weights.get(name, ())}
            for file in list_folder(self.repo.folder / name):
                if name not in self.repo.headers or file.suffix == ".json":
                    digest = file_sha256(file)
                    files |= {file.name: digest} if digest is not None else {}
            found[name] = files
        return found

    def source(self) -> dict[str, Any]:
        """Return the weight files and the adapters, as evidence names them."""
        files = {name: [file.to_dict() for file in found] for name, found in self.weights.items()}
        denoiser = files.pop(self.repo.denoiser)
        named = {} if self.repo.denoiser == TRANSFORMER else {"denoiser": self.repo.denoiser}
        return {
            "repo_id": self.repo_id,
            "revision": self.revision,
            **named,
            TRANSFORMER: denoiser,
            "components": files,
            **({"adapters": dict(self.adapters)} if self.adapters else {}),
        }

    def footprint(self) -> dict[str, Any]:
        """Return the bytes of the denoiser's tensors by dtype and family, from its headers."""
        audit = Audit(self.repo.folder, component=self.repo.denoiser)
        checkpoint = audit.checkpoint
        return {
            "class_name": checkpoint.class_name,
            "tensors": len(checkpoint.tensors),
            "parameters": audit.parameters,
            "bytes": checkpoint.total_bytes,
            "bytes_by_dtype": checkpoint.bytes_by_dtype,
            "families": [
                {key: family.to_dict()[key] for key in ("name", "tensors", "bytes", "bytes_by_dtype")}
                for family in audit.footprints()
            ],
        }


def identify_repo(folder: Path) -> tuple[str, str | None]:
    """Name and revision of a repo, as the Hub's client notes them; else the name of the folder, and None."""
    folder = folder.resolve()
    cached = _CACHED_REPO.search(folder.as_posix())
    if cached:
        return f"{cached['owner']}/{cached['name']}", cached["revision"]
    first = ""
    with suppress(OSError, UnicodeDecodeError):
        first = (folder / _DOWNLOAD_NOTE).read_text("ascii").partition("\n")[0]
    return printable(folder.name), first if _COMMIT.fullmatch(first) else None


def open_subjects(
    original: Path,
    quantized: Path,
    reporter: Reporter,
    choices: Sequence[AdapterChoice] = (),
    known: dict[tuple[int, int], str] | None = None,
) -> tuple[Subject, Subject]:
    """Open both repos, and compute the checksums of their weight files.

    Args:
        original: a pipeline repo.
        quantized: another one.
        reporter: shows progress and notes.
        choices: LoRA adapters that are added to the original.
        known: collects the checksums of files that were read, by device and inode; these are not read again.

    Raises:
        InputError: a repo cannot be used, both are the same folder, or they are in the wrong order; or the quantized
            one does not contain these adapters.
    """
    repos = open_both(original, quantized)
    if original.samefile(quantized):
        raise UsageError(f"{original} and {quantized} are the same folder", "Give the original and a quantized repo.")
    if repos[0].uses_sdnq and not repos[1].uses_sdnq:
        raise UsageError(f"{original} is quantized, and {quantized} is not", "Give the original first.")
    for repo in repos:
        _check_summary(repo)
    # They are read again after the measurements, which must not be lost to a malformed config.
    _, audits = [open_audits(repo.folder) for repo in repos]
    added = add_to_original(repos[0], audits, choices, reporter)
    states = [file_states(repo.weight_files) for repo in repos]
    # A file that both repos have, even under different names, is read once.
    digests = {} if known is None else known
    sizes = {(device, inode): size for state in states for device, inode, size, _ in state.values()}
    unread = sum(size for file, size in sizes.items() if file not in digests)
    with reporter.progress("checksums", unread) as shown:
        weights = [hash_weights(repo, state, digests, shown) for repo, state in zip(repos, states, strict=True)]
    first, second = ({name: {file.sha256 for file in found} for name, found in files.items()} for files in weights)
    if first == second:
        reporter.note("the weights are the same, file by file; differences in time show how exact the measurement is")
    states[0] |= file_states(added.files)
    return (
        Subject(ORIGINAL, repos[0], weights[0], states[0], added.describe(), tuple(choices)),
        Subject(QUANTIZED, repos[1], weights[1], states[1], contained_adapters(audits)),
    )


def find_summary(repo: MeasuredRepo) -> Path | None:
    """Return the summary of the denoiser's quantization; None if there is none.

    The keys of a summary call every component the transformer. Earlier versions wrote one for others, too, which only
    the manifest shows.
    """
    file = repo.folder / SUMMARY_NAME
    try:
        manifest = read_manifest(repo.folder)
    except InputError:
        # The summary itself is compared with the headers.
        manifest = None
    is_about_it = manifest is None or manifest.main.name in ("", repo.denoiser)
    return file if is_about_it and file.is_file() else None


def _check_summary(repo: MeasuredRepo) -> None:
    """Refuse a release whose summary, which is published next to the measurements, is about other weights.

    Raises:
        EvidenceError: it contradicts itself.
        UnsupportedCheckpoint: it contradicts the headers.
    """
    file = find_summary(repo)
    if file is None:
        return
    _, content = read_evidence(file)
    shown = sum(content["quant_transformer_dtypes"].values())
    held = sum(entry.bytes for header in repo.headers[repo.denoiser] for entry in header.tensors.values())
    if shown != held:
        raise UnsupportedCheckpoint(
            f"{file}: quant_transformer_dtypes add up to {shown} bytes, and the headers of the "
            f"{repo.denoiser} to {held}",
            SUMMARY_HINT,
        )


def hash_weights(
    repo: MeasuredRepo, states: Mapping[str, list[int]], known: dict[tuple[int, int], str], progress: Progress
) -> dict[str, tuple[ReleaseFile, ...]]:
    """Compute the checksums of a repo's weight files.

    Args:
        repo: opened.
        states: of its files, from ``file_states``.
        known: collects the checksums of files that were read, by device and inode.
        progress: counts bytes.

    Returns:
        The files by component.

    Raises:
        MissingInput: a file cannot be read.
    """

    def hashed(header: Header) -> ReleaseFile:
        device, inode, *_ = states[str(header.file.absolute())]
        if (device, inode) not in known:
            known[device, inode] = _digest(header.file, progress)
        return ReleaseFile(header.file.name, header.file_bytes, known[device, inode])

    return {name: tuple(map(hashed, headers)) for name, headers in repo.headers.items()}


def _method(quantization: Mapping[str, Any]) -> str:
    kind = "dynamic" if quantization.get("use_dynamic_quantization") else "static"
    return f"{printable(str(quantization.get('weights_dtype')))} {kind}"


def _digest(file: Path, progress: Progress) -> str:
    try:
        digest = file_sha256(file, progress)
    except OSError as error:
        raise unreadable(file, error) from error
    if digest is None:
        raise MissingInput(file, "no such file")
    return digest
