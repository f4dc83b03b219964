"""The settings of a local Hub: its folder, its accounts and its limits."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from converter.errors import UsageError

#: What a token may do.
Role = Literal["write", "read"]

#: The account of a Hub that is started without any.
DEFAULT_NAME = "rehearsal"
#: First parts of addresses that belong to the Hub itself.
RESERVED_NAMES = ("api", "buckets", "collections", "datasets", "kernels", "papers", "spaces")
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,40}[A-Za-z0-9])?")


@dataclass(frozen=True)
class Account:
    """A user of the Hub.

    Args:
        name: the user's own namespace.
        token: the secret that the user's requests carry.
        role: ``write``, or ``read`` for a token that changes nothing.
        organizations: further namespaces of the user.

    Raises:
        UsageError: a name or the role is not a valid one.
    """

    name: str
    token: str
    role: Role = "write"
    organizations: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in (self.name, *self.organizations):
            if not _NAME.fullmatch(name) or "--" in name or name.lower() in RESERVED_NAMES:
                hint = f"Use letters, digits and dashes, and not one of {', '.join(RESERVED_NAMES)}."
                raise UsageError(f"{name}: not a valid name of an account", hint)
        if self.role not in ("write", "read"):
            raise UsageError(f"{self.role}: not a role of an account", "Write NAME, NAME:read or NAME:write.")

    def belongs_to(self, namespace: str) -> bool:
        """Whether the user owns the repos of a namespace."""
        return namespace == self.name or namespace in self.organizations

    @classmethod
    def new(cls, name: str, role: Role = "write", *organizations: str) -> Account:
        """Make an account with a fresh token."""
        # It has the length and the letters of a token of huggingface.co.
        return cls(name, f"hf_{secrets.token_hex(17)}", role, organizations)

    @classmethod
    def parse(cls, text: str) -> Account:
        """Make an account with a fresh token from ``NAME`` or ``NAME:read``.

        Raises:
            UsageError: a name or the role is not a valid one.
        """
        name, colon, role = text.partition(":")
        return cls.new(name, role if colon else "write")  # type: ignore[arg-type] # checked by the constructor


@dataclass(frozen=True)
class HubSettings:
    """How a local Hub works."""

    folder: Path
    """The folder of its repos; it is made if it does not exist."""
    accounts: tuple[Account, ...] = ()
    port: int = 0
    """Port to serve on; 0 for any free port."""
    multipart_bytes: int = 512 * 2**20
    """Larger files are uploaded in parts, if they come over LFS."""
    part_bytes: int = 64 * 2**20
    """Bytes of such a part."""
    page_entries: int = 1000
    """Entries of one page of a listing; the limit of huggingface.co."""

    def to_json(self) -> str:
        """Write the settings for the process of a Hub. They contain secrets."""
        return json.dumps({**asdict(self), "folder": str(self.folder)})

    @classmethod
    def from_json(cls, text: str) -> HubSettings:
        """Read what ``to_json`` wrote."""
        values: Mapping[str, Any] = json.loads(text)
        accounts = tuple(
            Account(**{**account, "organizations": tuple(account["organizations"])}) for account in values["accounts"]
        )
        return cls(**{**values, "folder": Path(values["folder"]), "accounts": accounts})
