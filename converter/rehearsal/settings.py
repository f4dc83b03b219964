"""What a local Hub is started with: where its state lies, who may use it, and where its limits are."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from converter.errors import UsageError

#: What may be done with a token.
Role = Literal["write", "read"]

#: The account of a Hub that is started without any.
DEFAULT_NAME = "rehearsal"
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,40}[A-Za-z0-9])?")


@dataclass(frozen=True)
class Account:
    """Somebody who may use the Hub.

    Args:
        name: the namespace that is theirs.
        token: the secret that their requests carry.
        role: ``write``, or ``read`` for a token that changes nothing.
        organizations: further namespaces that they belong to.

    Raises:
        UsageError: a name or the role makes no sense.
    """

    name: str
    token: str
    role: Role = "write"
    organizations: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in (self.name, *self.organizations):
            if not _NAME.fullmatch(name) or "--" in name:
                raise UsageError(f"{name}: no name of an account", "Use letters, digits and dashes.")
        if self.role not in ("write", "read"):
            raise UsageError(f"{self.role}: no role of an account", "Write NAME:write or NAME:read.")

    @classmethod
    def new(cls, name: str, role: Role = "write", *organizations: str) -> Account:
        """An account with a fresh token."""
        # As long as a token of the Hub, and of the same letters.
        return cls(name, f"hf_{secrets.token_hex(17)}", role, organizations)

    @classmethod
    def parse(cls, text: str) -> Account:
        """An account with a fresh token from ``NAME`` or ``NAME:read``.

        Raises:
            UsageError: it makes no sense.
        """
        name, colon, role = text.partition(":")
        return cls.new(name, role if colon else "write")  # type: ignore[arg-type] # checked by the constructor


@dataclass(frozen=True)
class HubSettings:
    """How a local Hub works."""

    folder: Path
    """Where its state lies; it is made if it is not there."""
    accounts: tuple[Account, ...] = ()
    port: int = 0
    """0 for any that is free."""
    control_secret: str = ""
    """What requests to the control routes carry; empty for a Hub without such routes."""
    multipart_bytes: int = 512 * 2**20
    """Files above this size are uploaded in parts, where they go over LFS."""
    part_bytes: int = 64 * 2**20
    """Bytes of such a part."""
    page_entries: int = 1000
    """Entries of one page of a listing; the Hub's own limit."""

    def to_json(self) -> str:
        """The settings as the process of a Hub reads them. It holds secrets."""
        return json.dumps({**asdict(self), "folder": str(self.folder)})

    @classmethod
    def from_json(cls, text: str) -> HubSettings:
        """The settings from what ``to_json`` made."""
        values: Mapping[str, Any] = json.loads(text)
        accounts = tuple(
            Account(**{**account, "organizations": tuple(account["organizations"])}) for account in values["accounts"]
        )
        return cls(**{**values, "folder": Path(values["folder"]), "accounts": accounts})
