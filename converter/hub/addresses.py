"""Addresses of models on the Hub: ``hf://OWNER/NAME``, with an optional ``@REVISION``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from converter.errors import UsageError

SCHEME = "hf://"

# What huggingface_hub.utils.validate_repo_id allows, for names with an owner.
_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_ADDRESS = re.compile(rf"hf://(?P<repo>{_PART}/{_PART})(?:@(?P<revision>[A-Za-z0-9][A-Za-z0-9._/-]{{0,254}}))?")


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


def is_address(text: str) -> bool:
    """Whether a text is meant as an address on the Hub, even if it is malformed."""
    return text.lower().startswith(SCHEME)


def parse_address(text: str) -> HubAddress:
    """Parse an address.

    Raises:
        UsageError: it is malformed.
    """
    match = _ADDRESS.fullmatch(text)
    if (
        match is None
        or any(double in text[len(SCHEME) :] for double in ("..", "//"))
        or "--" in match["repo"]
        or match["repo"].endswith(".git")
    ):
        raise UsageError(
            f"{text}: not the address of a model on the Hub", "Write hf://OWNER/NAME or hf://OWNER/NAME@REVISION."
        )
    return HubAddress(match["repo"], match["revision"])
