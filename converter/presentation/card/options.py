"""The options of a card."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class CardOptions:
    """How to make a card; the fields contain the help of their options."""

    repo: str | None = field(
        default=None,
        metadata={
            "help": "OWNER/NAME of the release on the Hub, which the card tells people to load. Without it, the card "
            "shows the name of the folder."
        },
    )
    base_model: str | None = field(
        default=None, metadata={"help": "OWNER/NAME of the source.  [default: from the evidence]"}
    )
    base_revision: str | None = field(
        default=None, metadata={"help": "Commit of the source.  [default: from the evidence]"}
    )
    license: str | None = field(default=None, metadata={"help": "Identifier of the license on the Hub, such as mit."})
    license_name: str | None = field(
        default=None, metadata={"help": "Name of a license that the Hub does not list, such as my-license-1.0."}
    )
    license_link: str | None = field(
        default=None,
        metadata={
            "help": "Address of the text of this license, or LICENSE or LICENSE.md in the release.  [default: the file "
            "LICENSE* in the release]"
        },
    )
    prompts: str | None = field(
        default=None,
        metadata={
            "help": "NAME or FILE.toml of the suite that was measured, if the measurements do not contain its prompts."
        },
    )
    unverified: bool = field(
        default=False, metadata={"help": "Accept figures without a sha256 of the weights; the card says so."}
    )
    adopt: bool = field(
        default=False, metadata={"help": "Keep the existing README.md, check it, and list it in the manifest."}
    )
    template: Path | None = field(
        default=None, metadata={"help": "Jinja template to use instead of the built-in one.", "kind": "path"}
    )
    languages: tuple[str, ...] = ()
    """ISO codes of the languages of prompts and texts; by default English."""
    tags: tuple[str, ...] = ()
    """Tags in addition to those of every card."""
