"""Check that the Hub has what was released: by its records, and by the bytes that it serves."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from converter.console import SILENT, Progress, Reporter
from converter.errors import HubError, first_few
from converter.hub.remote import RemoteRepo
from converter.publication.files import PublishedFile, changed_error, compare, describe

#: Bytes that are always read back as whole files, the shortest files first.
_WHOLE_BYTES = 256 << 20
#: Longer files are sampled: the beginning, the end, and pieces in between.
_PIECE_BYTES = 1 << 20
_PIECES = 8
#: Bytes of one request when a whole file is read.
_STEP_BYTES = 16 << 20


@dataclass(frozen=True)
class ReadBack:
    """How much was read back and found equal."""

    files: int
    """Files that were read from beginning to end."""
    sampled_files: int
    """Files of which pieces were read."""
    bytes: int


def prove_records(files: Iterable[PublishedFile], remote: RemoteRepo, deleted: Collection[str] = ()) -> None:
    """Compare the records of a commit with the release: every path, size and checksum.

    Args:
        files: the files of the release.
        remote: the commit.
        deleted: names of files that it must not have.

    Raises:
        HubError: they differ.
    """
    difference = compare(files, remote.files, deleted)
    if difference:
        faults = list(describe(difference, remote.files))
        raise HubError(f"{remote.address}: differs from the release: {first_few(faults)}", "Publish it again.")


def prove_bytes(
    files: Iterable[PublishedFile], remote: RemoteRepo, *, everything: bool, reporter: Reporter = SILENT
) -> ReadBack:
    """Read files back the way people download them, and compare them with the release.

    Args:
        files: the files to read.
        remote: the commit.
        everything: whether to read long files completely, too, not only pieces of them.
        reporter: shows progress.

    Raises:
        HubError: the Hub serves other bytes than were released.
        ReleaseError: a file of the release has changed.
    """
    plan = list(_plan(files, everything=everything))
    total = sum(end - start for _, pieces in plan for start, end in pieces)
    with reporter.progress("reading back", total) as shown:
        for file, pieces in plan:
            _compare_pieces(file, pieces, remote, shown)
    whole = sum(_is_whole(file, pieces) for file, pieces in plan)
    return ReadBack(whole, len(plan) - whole, total)


def _plan(files: Iterable[PublishedFile], *, everything: bool) -> Iterator[tuple[PublishedFile, list[tuple[int, int]]]]:
    """Decide which bytes of each file to read."""
    left = _WHOLE_BYTES
    for file in sorted(files, key=lambda file: (file.bytes, file.name)):
        left -= file.bytes
        if everything or left >= 0 or file.bytes <= _PIECES * _PIECE_BYTES:
            steps = range(0, file.bytes, _STEP_BYTES)
            yield file, [(start, min(start + _STEP_BYTES, file.bytes)) for start in steps]
        else:
            # The content chooses the pieces, so that two runs read the same ones.
            generator = random.Random(file.sha256)  # noqa: S311 - not a secret
            last = file.bytes - _PIECE_BYTES
            starts = sorted({0, last, *(generator.randrange(last) for _ in range(_PIECES - 2))})
            yield file, [(start, start + _PIECE_BYTES) for start in starts]


def _is_whole(file: PublishedFile, pieces: list[tuple[int, int]]) -> bool:
    return sum(end - start for start, end in pieces) == file.bytes


def _compare_pieces(file: PublishedFile, pieces: list[tuple[int, int]], remote: RemoteRepo, progress: Progress) -> None:
    digest = hashlib.sha256()
    changed = changed_error(file, "the commit could not be checked")
    try:
        stream = file.file.open("rb")
    except OSError as error:
        raise changed from error
    with stream:
        for start, end in pieces:
            served = remote.read(file.name, start, end)
            digest.update(served)
            stream.seek(start)
            if served != stream.read(end - start):
                if file.has_changed():
                    raise changed
                raise HubError(
                    f"{remote.where(file.name)}: the Hub serves other bytes than were uploaded, between {start} and "
                    f"{end}; its record of the file is right, but its storage is wrong",
                    "Report this to the Hub's support; to upload the file again, first rename it or delete it there.",
                )
            progress.advance(end - start)
            progress.refresh()
    if _is_whole(file, pieces) and digest.hexdigest() != file.sha256:
        raise HubError(f"{remote.where(file.name)}: has another sha256 than the manifest says", "Publish it again.")
