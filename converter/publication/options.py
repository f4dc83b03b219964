"""What can be chosen about a publication."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

#: The branch that people see.
MAIN = "main"


@dataclass(frozen=True)
class PublishOptions:
    """How to publish; fields carry the help of their options."""

    private: bool = field(
        default=False, metadata={"help": "Make the repo private, if it has to be made; refuse one that is public."}
    )
    revision: str = field(
        default=MAIN,
        metadata={"help": "Branch to commit to; one that is not there is made from main.", "shown": True},
    )
    tag: str | None = field(default=None, metadata={"help": "Tag the commit, once it has been proven, such as v1."})
    create_pr: bool = field(
        default=False,
        metadata={"help": "Commit to a pull request instead of the branch; your open one of the same message is used."},
    )
    message: str = field(
        default="Publish the release",
        metadata={"help": "Title of the commit, and of the pull request.", "shown": True},
    )
    read_back: bool = field(
        default=False,
        metadata={"help": "Read every uploaded byte back. Otherwise of files that are too long pieces are read."},
    )
    patience: int = field(
        default=300,
        metadata={
            "help": "Seconds to go on asking a Hub that is busy or does not answer, for each thing that it is to do.",
            "kind": "count",
            "shown": True,
        },
    )
    receipt: Path | None = field(
        default=None,
        metadata={
            "help": "Where the receipt is written, and that of an earlier run is read.  "
            "[default: .lensconv/receipt.json in RELEASE]",
            "kind": "path",
        },
    )
    dry_run: bool = field(
        default=False, metadata={"help": "Check everything and say what would change; change nothing."}
    )
