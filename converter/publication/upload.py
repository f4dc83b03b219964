"""Sending the contents of files ahead of the commit that will name them.

What is sent this way changes nothing that anybody sees, and what was sent once need not be sent again: that is how a
publication resumes. A long file goes alone, so that a failure costs one file, and Ctrl-C need not wait for others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from converter.console import SILENT, Progress, Reporter
from converter.errors import HubError, MissingObject, ReleaseError, printable
from converter.hub.failures import client_errors, deciding
from converter.publication.files import MAXIMUM_REGULAR_BYTES, PublishedFile
from converter.publication.reading import reading_shown
from converter.publication.session import HubSession

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd

#: Files from this size on are sent one by one.
_LONG_BYTES = 32 << 20
#: Files that are sent together at most; the client asks about 256 at a time.
_GROUP_FILES = 100
_GROUP_BYTES = 64 << 20


def upload(
    session: HubSession,
    files: Sequence[PublishedFile],
    revision: str,
    reporter: Reporter = SILENT,
) -> list[CommitOperationAdd]:
    """Send files, and give the operations that make a commit of them.

    Args:
        session: with the repo.
        files: to send.
        revision: branch or pull request that the commit will be made on.
        reporter: shows progress.

    Raises:
        MissingObject: it does not have what it has taken.
        HubError: it refuses, or does not answer.
        ReleaseError: a file has changed since it was examined.
    """
    operations: list[CommitOperationAdd] = []
    with reporter.progress("uploading", sum(file.bytes for file in files)) as shown:
        for group in _groups(files):
            operations += _upload_group(session, group, revision, shown)
            # What goes wrong later must not be the fault of what is known now.
            refuse_changed(files)
    return operations


def refuse_changed(files: Iterable[PublishedFile]) -> None:
    """Make sure that files are still what was examined.

    Raises:
        ReleaseError: one is not.
    """
    for file in files:
        if file.has_changed():
            raise _changed(file)


def _upload_group(
    session: HubSession, group: Sequence[PublishedFile], revision: str, progress: Progress
) -> list[CommitOperationAdd]:
    def send() -> list[CommitOperationAdd]:
        # What the client says of a file that is gone is no fault of the Hub.
        refuse_changed(group)
        # The client notes in an operation what it has sent, right or wrong: each attempt makes its own.
        operations = [_operation(file) for file in group]
        try:
            with reading_shown([file.file for file in group], progress):
                session.api.preupload_lfs_files(
                    session.repository,
                    operations,
                    revision=revision,
                    num_threads=2,
                    free_memory=False,
                    # A .gitignore on the Hub would make the client leave files out.
                    gitignore_content="",
                )
        except client_errors() as error:
            # A Hub that refuses what has changed is right.
            refuse_changed(group)
            if _is_missing(error):
                raise MissingObject(f"{session.place}: the Hub does not have a file that was uploaded") from error
            raise
        return operations

    name = printable(group[0].name) + (f" and {len(group) - 1} more" if len(group) > 1 else "")
    operations = session.call(f"uploading {name}", send)
    for operation in operations:
        if getattr(operation, "_should_ignore", False):
            raise HubError(
                f"{session.place}: a .gitignore there keeps {operation.path_in_repo} out",
                "Delete it on the repo's page, then publish again.",
            )
    for file, operation in zip(group, operations, strict=True):
        # The client has hashed what it sent.
        if operation.upload_info.sha256.hex() != file.sha256:
            refuse_changed([file])
            raise ReleaseError(
                f"{file.file}: has another sha256 than the manifest says; nothing was published",
                "Convert again, or download the release again.",
            )
    return operations


def _is_missing(error: BaseException) -> bool:
    """Whether the check that follows an upload over LFS finds nothing, as where a proxy has taken the upload."""
    from huggingface_hub.errors import HfHubHTTPError

    error = deciding(error)
    # What is missing otherwise, such as the repo, has a class of its own.
    if type(error) is not HfHubHTTPError or error.response.status_code != 404:
        return False
    return "/lfs/" in error.response.request.url.path and not error.response.request.url.path.endswith("/batch")


def _operation(file: PublishedFile) -> CommitOperationAdd:
    from huggingface_hub import CommitOperationAdd

    if file.bytes <= MAXIMUM_REGULAR_BYTES:
        # What is held in memory cannot change any more before the commit.
        return CommitOperationAdd(path_in_repo=file.name, path_or_fileobj=read_unchanged(file))
    try:
        operation = CommitOperationAdd(path_in_repo=file.name, path_or_fileobj=str(file.file.resolve()))
    except (OSError, ValueError) as error:
        raise _changed(file) from error
    if file.is_hashed:
        # It is known, and reading gigabytes once more to find it out would take its time.
        operation.upload_info.sha256 = bytes.fromhex(file.sha256)
    return operation


def read_unchanged(file: PublishedFile) -> bytes:
    """The content of a file, as it was examined.

    Raises:
        ReleaseError: it is another, or cannot be read any more.
    """
    try:
        content = file.file.read_bytes()
    except OSError as error:
        raise _changed(file) from error
    if hashlib.sha256(content).hexdigest() != file.sha256:
        raise _changed(file)
    return content


def _changed(file: PublishedFile) -> ReleaseError:
    return ReleaseError(
        f"{file.file}: has changed since it was examined; nothing was published",
        "Wait until nothing writes to it, then publish again.",
    )


def _groups(files: Iterable[PublishedFile]) -> Iterator[list[PublishedFile]]:
    """Files in the order in which they are sent: the short ones together, then the long ones one by one."""
    group: list[PublishedFile] = []
    long: list[PublishedFile] = []
    size = 0
    for file in files:
        if file.bytes >= _LONG_BYTES:
            long.append(file)
            continue
        if group and (len(group) == _GROUP_FILES or size + file.bytes > _GROUP_BYTES):
            yield group
            group, size = [], 0
        group.append(file)
        size += file.bytes
    if group:
        yield group
    yield from ([file] for file in long)
