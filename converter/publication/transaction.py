"""The one commit that publishes a release, and the question whether it was made.

A commit is a single request. Where its answer is lost, the commit may have been made or not, and may be made later
still: the request names the commit that it builds on, so that it can be made only once, and what the branch holds then
tells which it was. Nothing is ever sent again on a guess.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from converter.errors import HubError, MissingObject
from converter.hub.failures import client_errors, hub_failure
from converter.hub.retry import is_transient
from converter.publication.difference import Difference, compare
from converter.publication.preflight import FitRelease
from converter.publication.session import HubSession

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd

#: Begins the line of a commit's description that tells which release it is.
DESCRIPTION_KEY = "lensconv manifest sha256:"
#: Commits that are looked through for one that was made while others came after it.
_HISTORY = 50
#: Statuses that say for certain that no commit was made. 409 and 412 do not: they may be the answer to a second request
#: for what a first one has done.
_REFUSALS = range(400, 409)


@dataclass(frozen=True)
class Target:
    """Where a commit is to be made."""

    revision: str
    """A branch, or ``refs/pr/N``."""
    parent: str
    """Its newest commit, which the new one builds on."""


def make_commit(
    session: HubSession,
    release: FitRelease,
    target: Target,
    difference: Difference,
    operations: Sequence[CommitOperationAdd],
    message: str,
) -> str:
    """Make the commit, once.

    Args:
        session: with the repo.
        release: what the repo will hold.
        target: where.
        difference: between the release and the parent.
        operations: that add files, already uploaded.
        message: title of the commit.

    Returns:
        The commit's id.

    Raises:
        MissingObject: the Hub has lost what was uploaded.
        HubError: it refuses, does not answer in time, or something else was committed meanwhile.
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
    """The commit that was made although its answer was lost; None where it was not made and may be tried again.

    Raises:
        MissingObject: the Hub has lost what was uploaded.
        HubError: it was refused, or something else was committed.
    """
    status = _status(error)
    if status == 400 and "lfs pointer pointed to a file that does not exist" in str(error).lower():
        raise MissingObject(f"{session.place}: the Hub does not have a file that was uploaded") from error
    if status in _REFUSALS and status != 408:
        raise hub_failure(f"{session.place}: committing", error) from error
    head = session.refs().head(target.revision)
    if head == target.parent:
        if is_transient(error):
            return None
        raise hub_failure(f"{session.place}: committing", error) from error
    made = _find_in_history(session, release, target, head)
    if made is None:
        raise HubError(
            f"{session.place}: {target.revision} has changed since it was read; this release was not published",
            "Look at what changed there; publishing again replaces it.",
        ) from error
    return made


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _find_in_history(session: HubSession, release: FitRelease, target: Target, head: str | None) -> str | None:
    """The commit that holds the release, at the head of a branch or below what others committed since."""
    if head is None:
        return None
    if not compare(release.files, session.files_at(head).files):
        return head
    commits: list[Any] = session.call(
        "reading its history",
        lambda: list(session.api.list_repo_commits(session.repository, revision=target.revision)[:_HISTORY]),
    )
    for commit in commits:
        if commit.commit_id == target.parent:
            break
        if release.manifest_sha256 in f"{commit.title}\n{commit.message}" and not compare(
            release.files, session.files_at(commit.commit_id).files
        ):
            return str(commit.commit_id)
    return None
