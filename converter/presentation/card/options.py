"""What can be chosen about a card."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class CardOptions:
    """How to make a card; fields carry the help of their options."""

    repo: str | None = field(
        default=None, metadata={"help": "OWNER/NAME that people will load it by.  [default: name of the folder]"}
    )
    base_model: str | None = field(
        default=None, metadata={"help": "OWNER/NAME of the source.  [default: what the evidence names]"}
    )
    base_revision: str | None = field(
        default=None, metadata={"help": "Commit of the source.  [default: what the evidence names]"}
    )
    license: str | None = field(default=None, metadata={"help": "Identifier of the license, as the Hub has them: mit."})
    prompts: str | None = field(
        default=None,
        metadata={
            "help": "NAME or FILE.toml of the suite that was drawn, where the measurements do not tell its prompts."
        },
    )
    unverified: bool = field(
        default=False, metadata={"help": "Take figures that carry no sha256 of the weights; the card says so."}
    )
    adopt: bool = field(
        default=False, metadata={"help": "Keep the README.md that is there, check it, and list it in the manifest."}
    )
    template: Path | None = field(
        default=None, metadata={"help": "Jinja template to use in place of the built-in one.", "kind": "path"}
    )
    languages: tuple[str, ...] = ()
    """Of prompts and texts, by their ISO codes; English where there are none."""
    tags: tuple[str, ...] = ()
    """More than those that every card has."""
