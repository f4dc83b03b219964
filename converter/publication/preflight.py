"""Check whether a folder may be published, before the first request: nothing of a bad release is sent."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from converter.checkpoint.checksum import file_sha256
from converter.checkpoint.header import read_header
from converter.checkpoint.weights import WEIGHTS_SUFFIX
from converter.console import SILENT, Reporter
from converter.conversion.release.manifest import CARD_NAME, MANIFEST_NAME, Manifest, ReleaseFile, read_manifest
from converter.errors import FileError, MissingInput, ReleaseError, first_few, unreadable
from converter.publication.files import PublishedFile, file_stamp, hash_files, noted_files
from converter.publication.folder import advice, find_faults, replace_hint
from converter.publication.secrets import find_secrets
from converter.verification.audited import open_audits
from converter.verification.checks import check_repo
from converter.verification.components import other_components

#: Bytes of a file that are searched for secrets; tokenizers are the longest texts, with about 30 MB.
_SEARCHED_BYTES = 64 << 20
#: Environment variables that may hold a token of the Hub.
_TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_SOURCE_HINT = "Download the source again, then convert it again."
_CARD_HINT = "Make the card again with `lensconv card`, or correct it and list it with `lensconv card --adopt`."
_SECRET_HINT = "Remove it where the file comes from and make the release again. Revoke it where it was issued."  # noqa: S105


@dataclass(frozen=True)
class FitRelease:
    """A release that passed all checks and may be published."""

    root: Path
    files: tuple[PublishedFile, ...]
    """Sorted by name; the manifest is one of them."""
    advice: tuple[str, ...] = ()
    """What its publisher should know; none of it prevents the publication."""

    @property
    def bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.bytes for file in self.files)

    @property
    def manifest_sha256(self) -> str:
        """sha256 of the manifest. The manifest contains those of all other files, so this identifies the release."""
        return next(file.sha256 for file in self.files if file.name == MANIFEST_NAME)


def examine_release(
    root: Path, repository: str, reporter: Reporter = SILENT, *, trusted_from: int | None = None
) -> FitRelease:
    """Check that a release may be published.

    Args:
        root: the release folder.
        repository: the ``OWNER/NAME`` that it will have.
        reporter: shows progress.
        trusted_from: size in bytes from which files are not read yet, if they were never hashed; None to read all.

    Raises:
        MissingInput: the folder does not exist, or something in it cannot be read.
        MalformedCheckpoint: its manifest or its weights break their format.
        ReleaseError: it contains something that must not be published, or it differs from its manifest.
    """
    if not root.is_dir():
        raise MissingInput(root, "no such folder", "Check the path.")
    manifest = read_manifest(root)
    if manifest is None:
        raise ReleaseError(
            f"{root}: has no {MANIFEST_NAME}, which lists the files to publish", "Make it with `lensconv convert`."
        )
    faults = dict(find_faults(root, manifest.files))
    _refuse(root, faults, " ".join(dict.fromkeys(filter(None, faults.values()))))
    _refuse(root, _secrets_in(root, (*manifest.files, MANIFEST_NAME)), _SECRET_HINT)
    card_advice = _check_card(root, manifest, repository)
    weight_faults = list(_weight_faults(root, manifest))
    _refuse(root, [fault for fault, is_inherited in weight_faults if is_inherited], _SOURCE_HINT)
    _refuse(root, [fault for fault, _ in weight_faults], "Convert again, or download the release again.")
    noted = noted_files(root)
    trusted = [
        PublishedFile(name, root / name, file.bytes, file.sha256, "", file_stamp(root / name), is_hashed=False)
        for name, file in manifest.files.items()
        if trusted_from is not None and file.bytes >= trusted_from and name not in noted
    ]
    known = noted | {file.name: file for file in trusted}
    files = hash_files(root, sorted({*manifest.files, MANIFEST_NAME}), reporter, known)
    _refuse_other_content(root, files, manifest.files)
    return FitRelease(root, tuple(files), (*advice(manifest.files), *card_advice))


def hash_trusted(release: FitRelease, files: Iterable[PublishedFile], reporter: Reporter = SILENT) -> None:
    """Hash those of some files of a release that were not read yet.

    Raises:
        MissingInput: a file cannot be read.
        ReleaseError: a file differs from the manifest, or another program is changing it.
    """
    trusted = {file.name: ReleaseFile(file.name, file.bytes, file.sha256) for file in files if not file.is_hashed}
    _refuse_other_content(release.root, hash_files(release.root, sorted(trusted), reporter), trusted)


def _refuse_other_content(root: Path, files: Iterable[PublishedFile], listed: Mapping[str, ReleaseFile]) -> None:
    changed = [file.name for file in files if file.name in listed and listed[file.name].sha256 != file.sha256]
    hint = " ".join(dict.fromkeys(map(replace_hint, changed)))
    _refuse(root, (f"{name} has another sha256 than the manifest says" for name in changed), hint)


def _refuse(root: Path, faults: Iterable[str], hint: str) -> None:
    found = list(faults)
    if found:
        raise ReleaseError(f"{root}: {first_few(found)}", hint)


def _secrets_in(root: Path, names: Iterable[str]) -> Iterator[str]:
    """Find secrets in files that may contain text, and in the headers of weights."""
    known = tuple(value for name in _TOKEN_VARIABLES if (value := os.environ.get(name, "").strip()))
    for name in names:
        for kind, line in find_secrets(_text_of(root / name), known):
            yield f"{name} contains {kind} in line {line}"


def _text_of(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            if file.suffix == WEIGHTS_SUFFIX:
                return stream.read(min(int.from_bytes(stream.read(8), "little"), _SEARCHED_BYTES))
            return stream.read(_SEARCHED_BYTES)
    except OSError as error:
        raise unreadable(file, error, "Check its permissions.") from error


def _check_card(root: Path, manifest: Manifest, repository: str) -> list[str]:
    """Refuse a card that the Hub would not take or that is of another repo, and return what its author should know."""
    from converter.presentation.card.metadata_rules import check_metadata

    content = (root / CARD_NAME).read_bytes()
    try:
        found = check_metadata(content.decode(), manifest.files)
    except UnicodeDecodeError as error:
        reason = f"{CARD_NAME} is not UTF-8: byte {error.start} is {content[error.start]:#04x}"
        raise ReleaseError(f"{root}: {reason}", _CARD_HINT) from error
    faults = [f"{CARD_NAME}: {fault}" for fault in found.errors]
    described = manifest.card_repository
    if described is not None and described != repository:
        faults.append(f"{CARD_NAME} tells people to load {described}, not {repository}")
    _refuse(root, faults, _CARD_HINT)
    return [f"{CARD_NAME}: {warning}" for warning in found.warnings]


def _weight_faults(root: Path, manifest: Manifest) -> Iterator[tuple[str, bool]]:
    """Yield what is wrong with weights, and whether the source had the same fault."""
    audits = open_audits(root)
    others = other_components(audits)
    for problem in (problem for other in others for problem in other.problems):
        yield problem.message.removeprefix(f"{root}/"), _is_as_written(root, manifest, problem)
    examined = {header.file for audit in audits for header in audit.checkpoint.headers}
    examined |= {file for other in others for file in other.weights}
    for name in manifest.files:
        if name.endswith(WEIGHTS_SUFFIX) and root / name not in examined:
            try:
                read_header(root / name)
            except FileError as problem:
                yield problem.message.removeprefix(f"{root}/"), _is_as_written(root, manifest, problem)
    yield from ((f"{check.title}: {check.detail}", False) for check in check_repo(audits) if not check.ok)


def _is_as_written(root: Path, manifest: Manifest, problem: FileError) -> bool:
    """Whether the conversion wrote the file as it is now, or did not write it."""
    listed = manifest.files.get(Path(problem.file).relative_to(root).as_posix())
    try:
        return listed is None or file_sha256(root / listed.name) == listed.sha256
    except OSError:
        return False
