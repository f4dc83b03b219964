"""The one commit that publishes a release, and how to find out whether it was made.

A commit is a single request. If its answer is lost, the commit may have been made, or not, or may still be made later.
The request names the parent commit, so it can succeed only once, and the branch then shows which case it was. Nothing
is sent again on a guess.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from converter.errors import HubError, MissingObject
from converter.hub.failures import answered_status, client_errors, hub_failure
from converter.hub.retry import is_transient
from converter.publication.files import Difference, compare
from converter.publication.preflight import FitRelease
from converter.publication.session import HubSession

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd

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
    difference: Difference,
    operations: Sequence[CommitOperationAdd],
    message: str,
) -> str:
    """Make the commit exactly once.

    Args:
        session: the connection to the repo.
        release: what the repo will contain.
        target: where to commit.
        difference: between the release and the parent.
        operations: add files, which are uploaded already.
        message: title of the commit.

    Returns:
        The id of the commit.

    Raises:
        MissingObject: the Hub has lost what was uploaded.
        HubError: the Hub refuses, does not answer in time, or another commit was made meanwhile.
    """
    from huggingface_hub import CommitOperationDelete

    deletions = [CommitOperationDelete(path_in_repo=name, is_folder=False) for name in difference.deleted]

    def send() -> str:
        try:
            info = session.api.create_commit(
                session.repository,
                [*operations, *deletions],
                commit_message=message,
                commit_description=f"{DESCRIPTION_KEY} {release.manifest_sha256}",
                revision=target.revision,
                parent_commit=target.parent,
            )
            return str(info.oid)
        except client_errors() as error:
            made = _find_commit(session, release, target, error)
            if made is None:
                raise
            return made

    return session.call("committing", send)


def _find_commit(session: HubSession, release: FitRelease, target: Target, error: BaseException) -> str | None:
    """Find the commit that was made although its answer was lost; None if none was made and it may be tried again.

    Raises:
        MissingObject: the Hub has lost what was uploaded.
        HubError: the commit was refused, or another one was made.
    """
    status = answered_status(error)
    if status == 400 and "lfs pointer pointed to a file that does not exist" in str(error).lower():
        raise MissingObject(f"{session.address}: the Hub does not have a file that was uploaded") from error
    if status in _REFUSALS:
        raise hub_failure(f"{session.address}: committing", error) from error
    head = session.refs().head(target.revision)
    if head == target.parent:
        if is_transient(error):
            return None
        raise hub_failure(f"{session.address}: committing", error) from error
    made = _find_in_history(session, release, target, head)
    if made is None:
        raise HubError(
            f"{session.address}: {target.revision} has changed since it was read; this release was not published",
            "Look at what changed there; if you publish again, the release replaces it.",
        ) from error
    return made


def _find_in_history(session: HubSession, release: FitRelease, target: Target, head: str | None) -> str | None:
    """Find the commit that contains the release: the head of a branch, or one below later commits of others."""
    if head is None:
        return None
    if not compare(release.files, session.files_at(head).files):
        return head
    for commit in session.history(target.revision):
        if commit.commit_id == target.parent:
            break
        if release.manifest_sha256 in f"{commit.title}\n{commit.message}" and not compare(
            release.files, session.files_at(commit.commit_id).files
        ):
            return str(commit.commit_id)
    return None
