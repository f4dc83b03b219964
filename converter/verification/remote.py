"""Checks of a repo on the Hub: the Hub's records against the manifest, and against a release on disk.

The Hub knows the sha256 of files in LFS or Xet, and git's sha1 of all others. Weights are compared without being
downloaded; small files in git are read if a manifest lists their sha256.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from huggingface_hub.utils.sha import git_hash

from converter.checkpoint.checksum import file_sha256
from converter.checkpoint.ignored import is_ignored
from converter.console import Progress
from converter.conversion.release.manifest import Manifest, ReleaseFile
from converter.errors import MissingInput, UsageError
from converter.hub.records import RemoteFile
from converter.hub.remote import RemoteRepo
from converter.hub.shadow import Shadow
from converter.verification.beside import dangers
from converter.verification.manifest import visible_files
from converter.verification.report import Check, VerifyReport, list_problems

#: Bytes of small files that are read for their sha256 alone. Files beyond this limit are compared by size.
HASHED_BYTES = 400_000
#: Longest file on disk that is read whole for git's sha1; the Hub takes longer ones in LFS only.
MAXIMUM_GIT_BYTES = 100_000_000


def remote_report(report: VerifyReport, shadow: Shadow) -> VerifyReport:
    """The report about a repo, made from the one about the folder in its place."""
    repo = shadow.repo
    hub = {
        "place": str(repo.address),
        "bytes": sum(file.bytes for file in repo.files.values()),
        "received_bytes": repo.received_bytes,
    }
    checks = tuple(replace(check, detail=shadow.named(check.detail)) for check in report.checks)
    return replace(report, checks=checks, notes=tuple(map(shadow.named, report.notes)), hub=hub)


def check_records(shadow: Shadow, manifest: Manifest | None) -> Check:
    """Compare the Hub's records with the files that were read, and with the manifest if there is one.

    Args:
        shadow: the repo, from which small files that the manifest lists are read.
        manifest: lists the files that the repo should have.

    Raises:
        HubError: a file cannot be read.
    """
    listed = manifest.files if manifest is not None else {}
    unread = _read_unknown(shadow, listed)
    problems = [problem for name, entry in listed.items() for problem in _differences(shadow, name, entry)]
    for path, content in shadow.contents.items():
        file = shadow.repo.files[path]
        digest = git_hash(content) if file.sha256 is None else hashlib.sha256(content).hexdigest()
        if digest != (file.sha256 or file.git_sha1):
            problems.append(f"{path} does not have the checksum that the Hub records")
    if manifest is None:
        return list_problems(
            "hub", problems, f"{len(shadow.contents)} files that were read have the checksums that the Hub records"
        )
    by_size = f", {len(unread)} of them compared by size alone" if unread else ""
    return list_problems("hub", problems, f"{len(listed)} files are as the manifest lists them{by_size}")


def _read_unknown(shadow: Shadow, listed: Mapping[str, ReleaseFile]) -> list[str]:
    """Read files whose sha256 the Hub does not know, the smallest first; return those that exceed the limit."""
    files = shadow.repo.files
    wanted = [name for name in listed if name in files and files[name].sha256 is None and name not in shadow.contents]
    wanted.sort(key=lambda name: files[name].bytes)
    total, chosen = 0, []
    for name in wanted:
        total += files[name].bytes
        if total > HASHED_BYTES:
            break
        chosen.append(name)
    shadow.fetch(chosen)
    return wanted[len(chosen) :]


def _differences(shadow: Shadow, name: str, listed: ReleaseFile) -> Iterator[str]:
    file = shadow.repo.files.get(name)
    if file is None:
        yield f"{name} is missing"
        return
    if file.bytes != listed.bytes:
        yield f"{name} has {file.bytes} bytes, should have {listed.bytes}"
        return
    sha256 = file.sha256
    if sha256 is None and name in shadow.contents:
        sha256 = hashlib.sha256(shadow.contents[name]).hexdigest()
    if sha256 is not None and sha256 != listed.sha256:
        yield f"{name} has another sha256 than the manifest says"


def local_sizes(release: Path) -> dict[str, int]:
    """Sizes of the files of a release on disk, by path; hidden files are left out.

    Raises:
        UsageError: it is an address on the Hub.
        MissingInput: it does not exist.
    """
    # A path has one slash where the address has two.
    if str(release).lower().startswith("hf:/"):
        raise UsageError("--against compares a repo on the Hub with a release on disk, not with another repo")
    if not release.is_dir():
        raise MissingInput(release, "no such folder", "Name the release that was published.")
    return visible_files(release)


def check_local(
    repo: RemoteRepo, release: Path, sizes: Mapping[str, int], listed: Collection[str] | None, progress: Progress
) -> Check:
    """Compare the Hub's records with a release on disk, in both directions.

    Args:
        repo: the repo.
        release: the release's folder.
        sizes: of its files, from ``local_sizes``.
        listed: names in the manifest of the repo, which other files may stay beside; None if it has no manifest.
        progress: counts the bytes that have been read.
    """
    remote = {path: file for path, file in repo.files.items() if not is_ignored(path)}
    others = {name for name in remote.keys() - sizes.keys() if listed is not None and name not in listed}
    wrong = dangers(others, sizes)
    problems = [f"{name} {fault}" for name, fault in sorted(wrong.items())]
    for name in sorted((remote.keys() | sizes.keys()) - others):
        if name not in sizes:
            problems.append(f"{name} is on the Hub and not in {release!s}")
        elif name not in remote:
            problems.append(f"{name} is not on the Hub")
        elif remote[name].bytes != sizes[name]:
            problems.append(f"{name} has {remote[name].bytes} bytes on the Hub, {sizes[name]} on disk")
        elif not _is_same(release / name, remote[name], progress):
            problems.append(f"{name} has other bytes on the Hub than on disk")
    more = f"; other files in the repo: {len(others)}" if others else ""
    return list_problems("against", problems, f"{len(sizes)} files are the same on the Hub and on disk{more}")


def _is_same(file: Path, record: RemoteFile, progress: Progress) -> bool:
    if record.sha256 is not None:
        return file_sha256(file, progress) == record.sha256
    if record.bytes > MAXIMUM_GIT_BYTES:
        return False
    content = file.read_bytes()
    progress.advance(len(content))
    return git_hash(content) == record.git_sha1
