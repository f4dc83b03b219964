"""Publishing by a pull request: the user's own open one for this release, or else a new one."""

from __future__ import annotations

from typing import Any

from converter.errors import printable
from converter.publication.session import HubSession

_DESCRIPTION = (
    "This pull request holds a release as a whole, in one commit. It was made with `lensconv publish --create-pr`; the "
    "same command with the same message updates it."
)


def open_pull_request(session: HubSession, title: str, user: str) -> int:
    """Find the pull request of an earlier run, or make one.

    Args:
        session: with the repo.
        title: tells which one it is.
        user: who made it.

    Returns:
        Its number.

    Raises:
        HubError: the Hub refuses, or does not answer.
    """

    def find() -> int | None:
        # Drafts count as open, and this is one until its commit is made.
        discussions: list[Any] = list(
            session.api.get_repo_discussions(
                session.repository, author=user, discussion_type="pull_request", discussion_status="open"
            )
        )
        numbers = [
            discussion.num
            for discussion in discussions
            if discussion.is_pull_request
            and discussion.title == title
            and discussion.author == user
            and discussion.status in ("open", "draft")
        ]
        return min(numbers, default=None)

    def make() -> int:
        # One that was made although the answer was lost is found here by the next try.
        found = find()
        if found is not None:
            return found
        made = session.api.create_pull_request(session.repository, title, description=_DESCRIPTION)
        return int(made.num)

    return session.call(f"opening the pull request {printable(title)}", make)


def offer_pull_request(session: HubSession, number: int) -> None:
    """Make a draft an open pull request, now that it holds the release.

    Raises:
        HubError: the Hub refuses, or does not answer.
    """

    def offer() -> None:
        if session.api.get_discussion_details(session.repository, number).status == "draft":
            session.api.change_discussion_status(session.repository, number, "open")

    session.call(f"opening pull request {number}", offer)
