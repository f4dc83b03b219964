"""What a repo lacks of a release, and what it has too much."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from converter.errors import printable
from converter.hub.records import RemoteFile
from converter.publication.files import PublishedFile

#: Files that the Hub makes itself, and that are left as they are.
_HUB_FILES = (".gitattributes",)


@dataclass(frozen=True)
class Difference:
    """What a commit has to change."""

    added: tuple[PublishedFile, ...]
    """Files that the repo does not have, or has with another content."""
    deleted: tuple[str, ...]
    """Files that the release does not have."""

    def __bool__(self) -> bool:
        """Whether there is anything to change."""
        return bool(self.added or self.deleted)

    @property
    def added_bytes(self) -> int:
        """Of the files to add."""
        return sum(file.bytes for file in self.added)


def compare(files: Iterable[PublishedFile], remote: Mapping[str, RemoteFile]) -> Difference:
    """Compare a release with the Hub's records of a commit.

    Args:
        files: of the release.
        remote: of the commit, by path.
    """
    files = tuple(files)
    expected = {*_HUB_FILES, *(file.name for file in files)}
    return Difference(
        added=tuple(file for file in files if not _is_same(file, remote.get(file.name))),
        deleted=tuple(name for name in remote if name not in expected),
    )


def describe(difference: Difference, remote: Mapping[str, RemoteFile]) -> Iterator[str]:
    """What differs, file by file, in words."""
    for file in difference.added:
        found = remote.get(file.name)
        name = printable(file.name)
        if found is None:
            yield f"{name} is missing there"
        elif found.bytes != file.bytes:
            yield f"{name} has {found.bytes} bytes there, and {file.bytes} here"
        else:
            yield f"{name} has another checksum there"
    for path in difference.deleted:
        yield f"{printable(path)} should not be there"


def _is_same(file: PublishedFile, found: RemoteFile | None) -> bool:
    if found is None or found.bytes != file.bytes:
        return False
    return found.sha256 == file.sha256 if found.sha256 is not None else found.git_sha1 == file.git_sha1
