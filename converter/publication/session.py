"""Speaking with the Hub about one repo: every call with patience, every failure in one line.

Only calls that huggingface_hub has in its versions 1 and 2 alike are used. ``upload_folder`` is none of them: in
version 2 it makes several commits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from converter.errors import HubError, printable
from converter.hub.addresses import HubAddress
from converter.hub.failures import redact
from converter.hub.remote import RemoteRepo
from converter.hub.retry import Retry

_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class RemoteRefs:
    """Commits by the names that a repo has for them."""

    branches: Mapping[str, str]
    tags: Mapping[str, str]
    pull_requests: Mapping[str, str]
    """By ``refs/pr/N``."""

    def head(self, revision: str) -> str | None:
        """The newest commit of a branch or a pull request; None when there is none of that name."""
        return self.branches.get(revision) or self.pull_requests.get(revision)


class HubSession:
    """A user's business with one repo.

    Args:
        repository: ``OWNER/NAME``.
        retry: how patient to be.
    """

    def __init__(self, repository: str, retry: Retry) -> None:
        from huggingface_hub import HfApi

        self.repository = repository
        self.retry = retry
        # Whoever publishes means to show their token, even where HF_HUB_DISABLE_IMPLICIT_TOKEN keeps it from the rest.
        self.api = HfApi(token=True)
        self.place = HubAddress(repository)

    def call(self, what: str, function: Callable[[], _Answer]) -> _Answer:
        """Ask the Hub, again if need be.

        Args:
            what: is being done, for messages.
            function: asks; it may be called several times.

        Raises:
            LensconvError: the Hub refuses, or does not answer in time.
        """
        return self.retry.call(f"{self.place}: {what}", function)

    @property
    def address(self) -> str:
        """Of the repo's page."""
        return redact(f"{self.api.endpoint}/{self.repository}")

    def user(self) -> str:
        """Name of the user whose token is in use.

        Raises:
            HubError: there is no token, or it is not valid.
        """
        from huggingface_hub import get_token

        try:
            token = self.call("looking for the token", get_token)
        except HubError as error:
            if isinstance(error.__cause__, UnicodeError):
                raise HubError(
                    f"{self.place}: the file that should hold the token holds something else",
                    "Log in again with `hf auth login`, or set HF_TOKEN.",
                ) from error
            raise
        if not token:
            raise HubError(f"{self.place}: there is no token", "Set HF_TOKEN, or log in with `hf auth login`.")
        answer = self.call("asking who you are", self.api.whoami)
        name = answer.get("name")
        if not isinstance(name, str):
            raise HubError(f"{self.place}: the Hub does not say who you are", "Check HF_ENDPOINT.")
        return printable(name)

    def describe(self) -> Any | None:
        """What the Hub tells of the repo; None when there is none, or none that may be seen."""
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

        def ask() -> Any | None:
            try:
                return self.api.repo_info(self.repository)
            except GatedRepoError:
                raise
            except RepositoryNotFoundError:
                return None

        return self.call("looking for it", ask)

    def create(self, *, private: bool) -> None:
        """Make the repo, if there is none."""
        self.call("making the repo", lambda: self.api.create_repo(self.repository, private=private, exist_ok=True))

    def prove_write_access(self) -> None:
        """Make sure that the token may write, which a repo that can be made or read does not show.

        Raises:
            HubError: it may not.
        """
        self.call("asking for the right to write", lambda: self.api.auth_check(self.repository, write=True))

    def refs(self) -> RemoteRefs:
        """Branches, tags and pull requests."""
        found = self.call(
            "reading its branches", lambda: self.api.list_repo_refs(self.repository, include_pull_requests=True)
        )
        return RemoteRefs(
            branches={ref.name: ref.target_commit for ref in found.branches},
            tags={ref.name: ref.target_commit for ref in found.tags},
            pull_requests={ref.ref: ref.target_commit for ref in found.pull_requests or ()},
        )

    def files_at(self, commit: str) -> RemoteRepo:
        """The files of a commit, as the Hub records them."""
        return RemoteRepo.open(HubAddress(self.repository, commit), token=True, retry=self.retry)

    def check_card(self, text: str) -> None:
        """Let the Hub check the metadata of a card, before anything is uploaded for it.

        Raises:
            HubError: it refuses them.
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
            # The errors that it names come with this status.
            if response.status_code != 400:
                hf_raise_for_status(response)
            faults = [str(error["message"]) for error in response.json().get("errors") or ()]
            if not faults:
                hf_raise_for_status(response)
            return faults

        faults = self.call("checking the card", ask)
        if faults:
            raise HubError(f"{self.place}: the Hub refuses the card: {redact('; '.join(faults))}", "Mend README.md.")
