"""Upload the contents of files before the commit that will name them.

An upload changes nothing that people see, and what was uploaded once need not be sent again: that is how a publication
resumes. A long file is uploaded alone. A failure then costs only one file, and Ctrl-C need not wait for others.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from converter.console import SILENT, Progress, Reporter
from converter.errors import ReleaseError
from converter.hub.failures import client_errors, deciding
from converter.publication.files import (
    MAXIMUM_REGULAR_BYTES,
    Difference,
    PublishedFile,
    changed_error,
    read_unchanged,
    refuse_changed,
)
from converter.publication.session import HubSession

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

#: Files of at least this size are uploaded one by one.
_LONG_BYTES = 32 << 20
#: Files that are uploaded together, at most; the client asks about 256 at a time.
_GROUP_FILES = 100
_GROUP_BYTES = 64 << 20
#: Rules that leave out nothing. An empty text could be taken for none, and then the .gitignore in the repo would count.
_NO_IGNORE_RULES = "# Everything is uploaded.\n"
#: Where Linux lists the open files of this process, and how far each was read.
_DESCRIPTORS = Path("/proc/self/fd")
_POSITIONS = Path("/proc/self/fdinfo")
_POLL_SECONDS = 0.25


def upload(
    session: HubSession, difference: Difference, revision: str, reporter: Reporter = SILENT
) -> list[CommitOperationAdd | CommitOperationDelete]:
    """Upload what a repo does not have, and return the operations of the commit that removes the difference.

    Args:
        session: the connection to the repo.
        difference: between the release and the repo.
        revision: branch or pull request of the later commit.
        reporter: shows progress.

    Raises:
        MissingObject: the Hub does not have what it accepted.
        HubError: the Hub refuses, or does not answer.
        ReleaseError: a file has changed since it was examined.
    """
    from huggingface_hub import CommitOperationDelete

    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationDelete(path_in_repo=name, is_folder=False) for name in difference.deleted
    ]
    with reporter.progress("uploading", difference.added_bytes) as shown:
        for group in upload_groups(difference.added):
            operations += _upload_group(session, group, revision, shown)
            # If a file has changed meanwhile, stop now and not after the last upload.
            refuse_changed(difference.added)
    return operations


def _upload_group(
    session: HubSession, group: Sequence[PublishedFile], revision: str, progress: Progress
) -> list[CommitOperationAdd]:
    def send() -> list[CommitOperationAdd]:
        # If a file is gone, the client's error would look like a fault of the Hub.
        refuse_changed(group)
        # The client notes in an operation what it has sent, even if that failed: each attempt makes its own.
        operations = [_operation(file) for file in group]
        try:
            with _reading_shown(group, progress):
                session.api.preupload_lfs_files(
                    session.repository,
                    operations,
                    revision=revision,
                    num_threads=2,
                    free_memory=False,
                    gitignore_content=_NO_IGNORE_RULES,
                )
        except client_errors() as error:
            # The Hub is right to refuse a file that has changed.
            refuse_changed(group)
            if _is_missing(error):
                raise session.lost_upload() from error
            raise
        return operations

    name = group[0].name + (f" and {len(group) - 1} more" if len(group) > 1 else "")
    operations = session.call(f"uploading {name}", send)
    for file, operation in zip(group, operations, strict=True):
        if getattr(operation, "_should_ignore", False):
            raise session.error(
                f"the .gitignore in the repo prevents the upload of {file.name}",
                "Delete the .gitignore on the repo's page, then publish again.",
            )
        # The client has hashed what it sent.
        if operation.upload_info.sha256.hex() != file.sha256:
            refuse_changed([file])
            raise ReleaseError(
                f"{file.file}: has another sha256 than the manifest says; nothing was published",
                "Convert again, or download the release again.",
            )
    return operations


def _is_missing(error: BaseException) -> bool:
    """Return whether the check after an LFS upload finds no file, for example because a proxy took the upload."""
    from huggingface_hub.errors import HfHubHTTPError

    error = deciding(error)
    # If something else is missing, such as the repo, the client raises a subclass.
    if type(error) is not HfHubHTTPError or error.response.status_code != 404:
        return False
    path = error.response.request.url.path
    return "/lfs/" in path and not path.endswith("/batch")


def _operation(file: PublishedFile) -> CommitOperationAdd:
    from huggingface_hub import CommitOperationAdd

    if file.bytes <= MAXIMUM_REGULAR_BYTES:
        # A copy in memory cannot change before the commit.
        return CommitOperationAdd(path_in_repo=file.name, path_or_fileobj=read_unchanged(file))
    try:
        operation = CommitOperationAdd(path_in_repo=file.name, path_or_fileobj=str(file.file.resolve()))
    except (OSError, ValueError) as error:
        raise changed_error(file) from error
    if file.is_hashed:
        # Reading gigabytes once more, to compute what is known, would take a long time.
        operation.upload_info.sha256 = bytes.fromhex(file.sha256)
    return operation


def upload_groups(files: Iterable[PublishedFile]) -> Iterator[list[PublishedFile]]:
    """Group files in the order of their upload: first the short ones together, then the long ones one by one."""
    files = list(files)
    short = [file for file in files if file.bytes < _LONG_BYTES]
    while short:
        count = sum(size <= _GROUP_BYTES for size in accumulate(file.bytes for file in short[:_GROUP_FILES]))
        yield short[:count]
        del short[:count]
    yield from ([file] for file in files if file.bytes >= _LONG_BYTES)


@contextmanager
def _reading_shown(files: Iterable[PublishedFile], progress: Progress) -> Iterator[None]:
    """Count what is read of some files while the block uploads them.

    huggingface_hub shows only bars of its own. Linux, however, reports the position in every open file of a process,
    no matter which library reads it. If the block succeeds, all bytes are counted in the end; if it fails, none are.
    """
    sizes = {os.path.realpath(file.file): file.bytes for file in files}
    seen = dict.fromkeys(sizes, 0)
    stopped = threading.Event()

    def look() -> None:
        while not stopped.wait(_POLL_SECONDS):
            for path, position in _positions(sizes):
                step = min(position, sizes[path]) - seen[path]
                if step > 0:
                    seen[path] += step
                    progress.advance(step)
            progress.refresh()

    thread = threading.Thread(target=look, name="progress", daemon=True)
    thread.start()
    counted = 0
    try:
        yield
        counted = sum(sizes.values())
    finally:
        stopped.set()
        thread.join()
        # A failed upload reads the files again from the beginning.
        progress.advance(counted - sum(seen.values()))
        progress.refresh()


def _positions(files: Iterable[str]) -> Iterator[tuple[str, int]]:
    """Yield the position in each of the files that are open."""
    # A file may be closed between two looks.
    with suppress(OSError):
        for descriptor in _DESCRIPTORS.iterdir():
            with suppress(OSError, ValueError):
                path = str(descriptor.readlink())
                if path in files:
                    first = (_POSITIONS / descriptor.name).read_text("ascii").partition("\n")[0]
                    yield path, int(first.partition(":")[2])
