"""The options of a publication."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

#: The branch that people see.
MAIN = "main"


@dataclass(frozen=True)
class PublishOptions:
    """How to publish. Each field contains the help of its command-line option."""

    private: bool = field(
        default=False, metadata={"help": "Create the repo as private, if it does not exist; refuse a public one."}
    )
    revision: str = field(default=MAIN, metadata={"help": "Branch to commit to; a new branch is made from main."})
    tag: str | None = field(
        default=None, metadata={"help": "Name of a tag for the commit, such as v1; it is set after the checks."}
    )
    create_pr: bool = field(
        default=False,
        metadata={"help": "Commit to your open pull request whose title is --message, or open a new one."},
    )
    message: str = field(
        default="Publish the release", metadata={"help": "Title of the commit and of the pull request."}
    )
    read_back: bool = field(
        default=False, metadata={"help": "Read every uploaded byte back. By default, large files are sampled."}
    )
    patience: int = field(
        default=300,
        metadata={
            "help": "Time limit in seconds for each request and its retries when the Hub does not answer.",
            "kind": "count",
        },
    )
    receipt: Path | None = field(
        default=None,
        metadata={
            "help": "JSON file that records what was published and checked; a later run reads it and skips checks that "
            "are done.  [default: .lensconv/receipt.json in RELEASE]",
            "kind": "path",
        },
    )
    prune: bool = field(
        default=False,
        metadata={
            "help": "Delete all files of the branch that are not of this release, except .gitattributes. By default, "
            "only files of a former release are deleted."
        },
    )
    dry_run: bool = field(
        default=False, metadata={"help": "Check everything and show what would change; change nothing."}
    )
