"""Addresses of models on the Hub: ``hf://OWNER/NAME``, with an optional ``@REVISION``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from converter.errors import UsageError

SCHEME = "hf://"

#: OWNER/NAME by the rules of huggingface_hub.utils.validate_repo_id, with owners as the Hub names them.
_REPO_ID = re.compile(r"([A-Za-z0-9](?:[\w.-]{0,94}\w)?/)?\w(?:[\w.-]{0,94}\w)?(?<!\.git)", re.ASCII)
_REVISION = re.compile(r"(?!.*(\.\.|//))[A-Za-z0-9][A-Za-z0-9._/-]{0,254}")


@dataclass(frozen=True, slots=True)
class HubAddress:
    """A model repo on the Hub, at a revision of it or at its main branch."""

    repo_id: str
    """``OWNER/NAME``."""
    revision: str | None = None
    """A branch, a tag or a commit; None means the main branch."""

    def __str__(self) -> str:
        """The address as people write it."""
        return f"{SCHEME}{self.repo_id}" + (f"@{self.revision}" if self.revision else "")


def is_repo_id(text: str, *, with_owner: bool = True) -> bool:
    """Whether the Hub could have a repo of that name.

    Args:
        text: the name.
        with_owner: whether it must be OWNER/NAME; names without an owner are of old models.
    """
    match = _REPO_ID.fullmatch(text)
    return match is not None and (match[1] is not None or not with_owner) and "--" not in text and ".." not in text


def check_repo_id(text: str) -> None:
    """Refuse what is not OWNER/NAME.

    Raises:
        UsageError: it is something else, such as an address.
    """
    if not is_repo_id(text):
        raise UsageError(f"{text}: is not a repository name", "Write OWNER/NAME; --revision gives a branch.")


def is_address(text: str) -> bool:
    """Whether a text is meant as an address on the Hub, even if it is malformed."""
    return text.lower().startswith(SCHEME)


def parse_address(text: str) -> HubAddress:
    """Parse an address.

    Raises:
        UsageError: it is malformed.
    """
    repo_id, at, revision = text.removeprefix(SCHEME).partition("@")
    if not text.startswith(SCHEME) or not is_repo_id(repo_id) or (at and not _REVISION.fullmatch(revision)):
        raise UsageError(
            f"{text}: not the address of a model on the Hub", "Write hf://OWNER/NAME or hf://OWNER/NAME@REVISION."
        )
    return HubAddress(repo_id, revision or None)
