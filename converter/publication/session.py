"""The connection to one repo on the Hub: every call is retried, and every failure is one line.

This uses only calls that huggingface_hub has in its versions 1 and 2 alike. ``upload_folder`` is not one of them: in
version 2 it makes several commits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from converter.errors import HubError, MissingObject
from converter.hub.addresses import HubAddress
from converter.hub.failures import redact
from converter.hub.remote import RemoteRepo
from converter.hub.retry import Retry

#: Newest commits of a branch that are searched for an earlier publication.
_HISTORY = 50
_TOKEN_HINT = "Set HF_TOKEN, or log in with `hf auth login`."  # noqa: S105 - not a token
_CARD_HINT = "Correct README.md, run `lensconv card RELEASE --adopt`, then publish again."
#: Text of a pull request.
_DESCRIPTION = (
    "This pull request contains a whole release in one commit. It was made with `lensconv publish --create-pr`; the "
    "same command with the same message updates it."
)

_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class RemoteRefs:
    """The commits that the branches, tags and pull requests of a repo name."""

    branches: Mapping[str, str]
    tags: Mapping[str, str]
    pull_requests: Mapping[str, str]
    """Commits of pull requests, by ``refs/pr/N``."""

    def head(self, revision: str) -> str | None:
        """Return the newest commit of a branch or a pull request; None if it does not exist."""
        return self.branches.get(revision) or self.pull_requests.get(revision)


class HubSession:
    """A user's connection to one repo. Every method raises HubError if the Hub refuses or does not answer.

    Args:
        repository: ``OWNER/NAME``.
        retry: how often and how long to try.
    """

    def __init__(self, repository: str, retry: Retry) -> None:
        from huggingface_hub import HfApi

        self.repository = repository
        self.address = HubAddress(repository)
        self.retry = retry
        # Publishing needs the token, even if HF_HUB_DISABLE_IMPLICIT_TOKEN keeps it from other calls.
        self.api = HfApi(token=True)
        self._commits: dict[str, RemoteRepo] = {}

    def call(self, what: str, function: Callable[[], _Answer]) -> _Answer:
        """Call the Hub, several times if necessary.

        Args:
            what: what is being done, for messages.
            function: sends the request; it may be called several times.

        Raises:
            LensconvError: the Hub refuses, or does not answer in time.
        """
        return self.retry.call(f"{self.address}: {what}", function)

    def error(self, message: str, hint: str = "") -> HubError:
        """Return an error about this repo."""
        return HubError(f"{self.address}: {message}", hint)

    def lost_upload(self) -> MissingObject:
        """Return the error for a file that the Hub no longer has."""
        return MissingObject(f"{self.address}: the Hub does not have a file that was uploaded")

    @property
    def page(self) -> str:
        """Web address of the repo."""
        return redact(f"{self.api.endpoint}/{self.repository}")

    def user(self) -> str:
        """Return the name of the user whose token is in use.

        Raises:
            HubError: no token was found, or it is not valid.
        """
        from huggingface_hub import get_token

        try:
            token = self.call("looking for the token", get_token)
        except HubError as error:
            if isinstance(error.__cause__, UnicodeError):
                raise self.error("the file that should contain the token is not text", _TOKEN_HINT) from error
            raise
        if not token:
            raise self.error("no token was found", _TOKEN_HINT)
        answer: Any = self.call("checking the token", self.api.whoami)
        name = answer.get("name") if isinstance(answer, dict) else None
        if not isinstance(name, str):
            raise self.error("the Hub does not say whose token this is", "Check HF_ENDPOINT.")
        return name

    def describe(self) -> Any | None:
        """Return huggingface_hub's description of the repo; None if it does not exist or may not be seen."""
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

        def ask() -> Any | None:
            try:
                return self.api.repo_info(self.repository)
            except GatedRepoError:
                raise
            except RepositoryNotFoundError:
                return None

        return self.call("looking for the repo", ask)

    def create(self, *, private: bool) -> None:
        """Create the repo, if it does not exist."""
        self.call("creating the repo", lambda: self.api.create_repo(self.repository, private=private, exist_ok=True))

    def create_branch(self, branch: str, start: str) -> None:
        """Create a branch from another one, if it does not exist."""
        self.call(
            f"creating the branch {branch}",
            lambda: self.api.create_branch(self.repository, branch=branch, revision=start, exist_ok=True),
        )

    def create_tag(self, tag: str, commit: str) -> None:
        """Tag a commit, if the tag does not exist. Callers must check that an existing tag names this commit."""
        self.call(
            f"tagging {tag}",
            lambda: self.api.create_tag(self.repository, tag=tag, revision=commit, exist_ok=True),
        )

    def prove_write_access(self) -> None:
        """Make sure that the token may write. A repo that the token can read or create does not show that."""
        self.call("checking the right to write", lambda: self.api.auth_check(self.repository, write=True))

    def refs(self) -> RemoteRefs:
        """Return branches, tags and pull requests."""
        found = self.call(
            "reading the branches", lambda: self.api.list_repo_refs(self.repository, include_pull_requests=True)
        )
        return RemoteRefs(
            branches={ref.name: ref.target_commit for ref in found.branches},
            tags={ref.name: ref.target_commit for ref in found.tags},
            pull_requests={ref.ref: ref.target_commit for ref in found.pull_requests or ()},
        )

    def history(self, revision: str) -> list[Any]:
        """Return the newest commits of a branch or a pull request, as huggingface_hub describes them."""
        return self.call(
            "reading the history", lambda: self.api.list_repo_commits(self.repository, revision=revision)[:_HISTORY]
        )

    def files_at(self, commit: str) -> RemoteRepo:
        """Return the files of a commit, as the Hub records them. A commit never changes, so it is read once."""
        if commit not in self._commits:
            self._commits[commit] = RemoteRepo.open(HubAddress(self.repository, commit), token=True, retry=self.retry)
        return self._commits[commit]

    def open_pull_request(self, title: str, user: str) -> int:
        """Return the number of the user's open pull request with this title; create one if there is none."""

        def open_or_create() -> int:
            # If one was created but the answer was lost, the next try finds it. Drafts count as open, and a pull
            # request is a draft until its commit is made.
            numbers = [
                discussion.num
                for discussion in self.api.get_repo_discussions(
                    self.repository, author=user, discussion_type="pull_request", discussion_status="open"
                )
                if discussion.is_pull_request
                and discussion.title == title
                and discussion.author == user
                and discussion.status in ("open", "draft")
            ]
            if numbers:
                return int(min(numbers))
            return int(self.api.create_pull_request(self.repository, title, description=_DESCRIPTION).num)

        return self.call(f"opening the pull request {title}", open_or_create)

    def offer_pull_request(self, number: int) -> None:
        """Turn a draft into an open pull request, after its commit was made."""

        def offer() -> None:
            if self.api.get_discussion_details(self.repository, number).status == "draft":
                self.api.change_discussion_status(self.repository, number, "open")

        self.call(f"opening pull request {number}", offer)

    def check_card(self, text: str) -> None:
        """Let the Hub check the metadata of a card, before anything is uploaded.

        Raises:
            HubError: the Hub refuses them.
        """
        from huggingface_hub.utils import (  # type: ignore[attr-defined]
            build_hf_headers,
            get_session,
            hf_raise_for_status,
        )

        def ask() -> list[str]:
            response = get_session().post(
                f"{self.api.endpoint}/api/validate-yaml",
                json={"content": text, "repoType": "model"},
                headers=build_hf_headers(token=True),
            )
            # A list of errors comes with this status.
            if response.status_code != 400:
                hf_raise_for_status(response)
            faults = [str(error["message"]) for error in response.json().get("errors") or ()]
            if not faults:
                hf_raise_for_status(response)
            return faults

        faults = self.call("checking the card", ask)
        if faults:
            raise self.error(f"the Hub refuses the card: {redact('; '.join(faults))}", _CARD_HINT)
