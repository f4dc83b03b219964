"""The one commit that publishes a release, and how to find out whether it was made.

A commit is a single request. If its answer is lost, the commit may have been made, or not, or may still be made later.
The request names the parent commit, so it can succeed only once, and the branch then shows which case it was. Nothing
is sent again on a guess.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from converter.hub.failures import answered_status, client_errors
from converter.publication.files import compare
from converter.publication.preflight import FitRelease
from converter.publication.session import HubSession

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

#: Begins the line of a commit's description that identifies the release.
DESCRIPTION_KEY = "lensconv manifest sha256:"
#: Statuses which mean for certain that no commit was made. 409 and 412 do not: they may answer a second request for a
#: commit that the first request has made, and 408 may come from a gateway.
_REFUSALS = range(400, 408)


@dataclass(frozen=True)
class Target:
    """Where a commit is to be made."""

    revision: str
    """A branch, or ``refs/pr/N``."""
    parent: str
    """Its newest commit, which becomes the parent of the new one."""


def make_commit(
    session: HubSession,
    release: FitRelease,
    target: Target,
    operations: Sequence[CommitOperationAdd | CommitOperationDelete],
    message: str,
) -> str:
    """Make the commit exactly once.

    Args:
        session: the connection to the repo.
        release: what the repo will contain.
        target: where to commit.
        operations: bring the release into the parent; the files that they add are uploaded already.
        message: title of the commit.

    Returns:
        The id of the commit.

    Raises:
        MissingObject: the Hub has lost what was uploaded.
        HubError: the Hub refuses, does not answer in time, or another commit was made meanwhile.
    """
    from huggingface_hub import CommitOperationDelete

    deleted = {operation.path_in_repo for operation in operations if isinstance(operation, CommitOperationDelete)}

    def send() -> str:
        try:
            info = session.api.create_commit(
                session.repository,
                operations,
                commit_message=message,
                commit_description=f"{DESCRIPTION_KEY} {release.manifest_sha256}",
                revision=target.revision,
                parent_commit=target.parent,
            )
            return str(info.oid)
        except client_errors() as error:
            made = _find_commit(session, release, target, deleted, error)
            if made is None:
                # The session tries again if this error may pass, and reports it if not.
                raise
            return made

    return session.call("committing", send)


def _find_commit(
    session: HubSession, release: FitRelease, target: Target, deleted: Collection[str], error: BaseException
) -> str | None:
    """Find the commit that was made although the answer is an error; None if no commit was made.

    Raises:
        MissingObject: the Hub has lost what was uploaded.
        HubError: another commit was made.
    """
    status = answered_status(error)
    if status == 400 and "lfs pointer pointed to a file that does not exist" in str(error).lower():
        raise session.lost_upload() from error
    if status in _REFUSALS:
        return None
    head = session.refs().head(target.revision)
    if head == target.parent:
        return None
    made = _find_in_history(session, release, target, head, deleted)
    if made is None:
        raise session.error(
            f"{target.revision} has changed since it was read; this release was not published",
            "Look at what changed there, then publish again: files of the release replace those of the same name.",
        ) from error
    return made


def _find_in_history(
    session: HubSession, release: FitRelease, target: Target, head: str | None, deleted: Collection[str]
) -> str | None:
    """Find the commit that publishes the release, even below later commits of others."""
    if head is None:
        return None

    def has_release(commit: str) -> bool:
        return not compare(release.files, session.files_at(commit).files, deleted)

    for commit in session.history(target.revision):
        if commit.commit_id == target.parent:
            break
        if release.manifest_sha256 in f"{commit.title}\n{commit.message}" and has_release(commit.commit_id):
            return str(commit.commit_id)
    return head if has_release(head) else None
