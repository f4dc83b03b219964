"""Is what lies on the Hub what was released? Asked of the Hub's records, and of the bytes that it serves."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from converter.console import SILENT, Progress, Reporter
from converter.errors import HubError, ReleaseError
from converter.hub.remote import RemoteRepo
from converter.publication.difference import compare, describe
from converter.publication.files import PublishedFile
from converter.verification.report import first_few

#: Bytes that are read back in any case: whole files, the shortest first.
_WHOLE_BYTES = 256 << 20
#: Of longer files pieces are read: the beginning, the end, and some in between.
_PIECE_BYTES = 1 << 20
_PIECES = 8
#: Bytes of one request where a file is read from end to end.
_STEP_BYTES = 16 << 20


@dataclass(frozen=True)
class ReadBack:
    """How much was read back and found equal."""

    files: int
    """Files that were read from end to end."""
    sampled_files: int
    """Files of which pieces were read."""
    bytes: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON shows it."""
        return {"files": self.files, "sampled_files": self.sampled_files, "bytes": self.bytes}


def prove_records(files: Iterable[PublishedFile], remote: RemoteRepo) -> None:
    """Compare a commit's records with the release: every path, size and checksum.

    Raises:
        HubError: they differ.
    """
    difference = compare(files, remote.files)
    if difference:
        faults = list(describe(difference, remote.files))
        raise HubError(f"{remote.address}: is not the release: {first_few(faults)}", "Publish it again.")


def prove_bytes(
    files: Iterable[PublishedFile],
    remote: RemoteRepo,
    *,
    everything: bool,
    reporter: Reporter = SILENT,
) -> ReadBack:
    """Read files back as anybody would download them, and compare them with the release.

    Args:
        files: to read.
        remote: the commit.
        everything: whether to read long files from end to end too, and not pieces of them.
        reporter: shows progress.

    Raises:
        HubError: the Hub serves something else than was released.
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
    """Which bytes of each file to read."""
    left = _WHOLE_BYTES
    for file in sorted(files, key=lambda file: (file.bytes, file.name)):
        left -= file.bytes
        if everything or left >= 0 or file.bytes <= _PIECES * _PIECE_BYTES:
            steps = range(0, file.bytes, _STEP_BYTES)
            yield file, [(start, min(start + _STEP_BYTES, file.bytes)) for start in steps]
        else:
            # Chosen by the content, so that two runs read the same.
            generator = random.Random(file.sha256)  # noqa: S311 - no secret
            last = file.bytes - _PIECE_BYTES
            starts = sorted({0, last, *(generator.randrange(last) for _ in range(_PIECES - 2))})
            yield file, [(start, start + _PIECE_BYTES) for start in starts]


def _is_whole(file: PublishedFile, pieces: list[tuple[int, int]]) -> bool:
    return sum(end - start for start, end in pieces) == file.bytes


def _compare_pieces(file: PublishedFile, pieces: list[tuple[int, int]], remote: RemoteRepo, progress: Progress) -> None:
    digest = hashlib.sha256()
    try:
        stream = file.file.open("rb")
    except OSError as error:
        raise _changed(file) from error
    with stream:
        for start, end in pieces:
            served = remote.read(file.name, start, end)
            digest.update(served)
            stream.seek(start)
            if served != stream.read(end - start):
                if file.has_changed():
                    raise _changed(file)
                raise HubError(
                    f"{remote.where(file.name)}: the Hub serves other bytes than were uploaded, between {start} and "
                    f"{end}; its record of the file is right, its storage is not",
                    "Tell the Hub's support; to upload it again, change the file's name or delete it there first.",
                )
            progress.advance(end - start)
            progress.refresh()
    if _is_whole(file, pieces) and digest.hexdigest() != file.sha256:
        raise HubError(f"{remote.where(file.name)}: has another sha256 than the manifest says", "Publish it again.")


def _changed(file: PublishedFile) -> ReleaseError:
    return ReleaseError(
        f"{file.file}: has changed since it was published, so that nothing can be held against it",
        "Publish it again.",
    )
