"""Is this folder fit to be published? Asked before the first request, so that a bad release reaches no network."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from converter.checkpoint.header import read_header
from converter.checkpoint.source import WEIGHTS_SUFFIX
from converter.console import SILENT, Reporter
from converter.conversion.release.manifest import CARD_NAME, MANIFEST_NAME, Manifest, ReleaseFile, read_manifest
from converter.errors import InputError, MissingInput, ReleaseError, printable, unreadable
from converter.publication.files import PublishedFile, file_stamp, hash_files, noted_files
from converter.publication.folder import advice, find_faults
from converter.publication.secrets import find_secrets
from converter.verification.audit import Audit
from converter.verification.checks import check_headers
from converter.verification.report import first_few

#: Longest file that is searched for secrets; tokenizers are the longest texts, with some 30 MB.
_SEARCHED_BYTES = 64 << 20
#: Variables of the environment that may hold a token of the Hub.
_TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


@dataclass(frozen=True)
class FitRelease:
    """A release that was found fit to be published."""

    root: Path
    files: tuple[PublishedFile, ...]
    """By name; the manifest is one of them."""
    advice: tuple[str, ...] = ()
    """What its publisher should know all the same."""

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(file.bytes for file in self.files)

    @property
    def manifest_sha256(self) -> str:
        """sha256 of the manifest, which names those of all other files: it stands for the whole release."""
        return next(file.sha256 for file in self.files if file.name == MANIFEST_NAME)


def examine_release(
    root: Path,
    repository: str,
    reporter: Reporter = SILENT,
    *,
    trusted_from: int | None = None,
) -> FitRelease:
    """Find a release fit to be published, or say why it is not.

    Args:
        root: the release folder.
        repository: ``OWNER/NAME`` that it is to become.
        reporter: shows progress.
        trusted_from: files from so many bytes on are not read yet, if they were never hashed; None for none.

    Raises:
        MissingInput: there is no such folder, or something in it cannot be read.
        MalformedCheckpoint: its manifest or its weights break their format.
        ReleaseError: something lies in it that must not be published, or it is not what its manifest says.
    """
    where = printable(str(root))
    if not root.is_dir():
        raise MissingInput(where, "no such folder", "Check the path.")
    manifest = read_manifest(root)
    if manifest is None:
        raise ReleaseError(
            f"{where}: has no {MANIFEST_NAME}, which says what is to be published", "Make it with `lensconv convert`."
        )
    _refuse(
        root,
        find_faults(root, manifest.files),
        "Move away what does not belong there, and list the card anew with `lensconv card`.",
    )
    _refuse(root, _secrets_in(root, (*manifest.files, MANIFEST_NAME)), "Take it out, and revoke it at its issuer.")
    card_advice = _check_card(root, manifest, repository)
    _refuse(root, _weight_faults(root, manifest), "Convert again, or download the release again.")
    noted = noted_files(root)
    trusted = [
        PublishedFile(name, root / name, file.bytes, file.sha256, "", file_stamp(root / name), is_hashed=False)
        for name, file in manifest.files.items()
        if trusted_from is not None and file.bytes >= trusted_from and name not in noted
    ]
    names = {*manifest.files, MANIFEST_NAME} - {file.name for file in trusted}
    files = hash_files(root, sorted(names), reporter)
    _refuse_other_content(root, files, manifest.files)
    return FitRelease(
        root,
        tuple(sorted([*files, *trusted], key=lambda file: file.name)),
        (*advice(manifest.files), *card_advice),
    )


def hash_trusted(release: FitRelease, files: Iterable[PublishedFile], reporter: Reporter = SILENT) -> None:
    """Read those of some files of a release that were not read yet.

    Raises:
        MissingInput: a file cannot be read.
        ReleaseError: one is not what the manifest says, or is being changed.
    """
    trusted = {file.name: ReleaseFile(file.name, file.bytes, file.sha256) for file in files if not file.is_hashed}
    _refuse_other_content(release.root, hash_files(release.root, sorted(trusted), reporter), trusted)


def _refuse_other_content(root: Path, files: Iterable[PublishedFile], listed: Mapping[str, ReleaseFile]) -> None:
    _refuse(
        root,
        _checksum_faults(files, listed),
        "Make it again; a card that was edited by hand is listed with `lensconv card --adopt`.",
    )


def _refuse(root: Path, faults: Iterable[str], hint: str) -> None:
    found = list(faults)
    if found:
        raise ReleaseError(f"{root}: {first_few(found)}", hint)


def _secrets_in(root: Path, names: Iterable[str]) -> Iterator[str]:
    """Secrets in files that may hold text; of weights, in their headers."""
    known = tuple(value for name in _TOKEN_VARIABLES if (value := os.environ.get(name, "").strip()))
    for name in names:
        for kind, line in find_secrets(_text_of(root / name), known):
            yield f"{printable(name)} holds {kind} in line {line}"


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
    from converter.presentation.card.metadata import check_metadata

    content = (root / CARD_NAME).read_bytes()
    try:
        found = check_metadata(content.decode())
    except UnicodeDecodeError as error:
        reason = f"{CARD_NAME} is not UTF-8: byte {error.start} is {content[error.start]:#04x}"
        raise ReleaseError(f"{root}: {reason}", "Make the card anew with `lensconv card`.") from error
    faults = [f"{CARD_NAME}: {fault}" for fault in found.errors]
    described = manifest.card_repository
    if described is not None and "/" in described and described != repository:
        faults.append(f"{CARD_NAME} tells people to load {printable(described)}, and not {printable(repository)}")
    _refuse(root, faults, "Make the card anew with `lensconv card`.")
    return [f"{CARD_NAME}: {warning}" for warning in found.warnings]


def _weight_faults(root: Path, manifest: Manifest) -> Iterator[str]:
    audit = Audit(root, manifest=manifest)
    examined = {header.file for header in audit.checkpoint.headers}
    for name in manifest.files:
        if name.endswith(WEIGHTS_SUFFIX) and root / name not in examined:
            try:
                read_header(root / name)
            except InputError as error:
                yield error.message
    yield from (f"{check.name}: {check.detail}" for check in check_headers(audit) if not check.ok)


def _checksum_faults(files: Iterable[PublishedFile], listed: Mapping[str, ReleaseFile]) -> Iterator[str]:
    for file in files:
        if file.name in listed and listed[file.name].sha256 != file.sha256:
            yield f"{printable(file.name)} has another sha256 than the manifest says"
