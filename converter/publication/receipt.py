"""What was published, as a value: printed, and noted in the release folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter.checkpoint.source import read_json
from converter.checkpoint.writer import replace_file
from converter.conversion.release.manifest import STATE_FOLDER
from converter.errors import InputError, LensconvError
from converter.publication.difference import Difference
from converter.publication.preflight import FitRelease
from converter.publication.proof import ReadBack

#: Name of a receipt in a release.
RECEIPT_NAME = "receipt.json"


@dataclass(frozen=True)
class Receipt:
    """A publication, proven; or what one would do."""

    repository: str
    page: str
    """Address of the repo."""
    revision: str
    """Branch, or ``refs/pr/N``."""
    commit: str | None
    """What holds the release; None where nothing was done."""
    parent: str | None
    """The newest commit before."""
    tag: str | None
    pull_request: int | None
    private: bool
    release: FitRelease
    difference: Difference
    """What had to change."""
    read_back: ReadBack | None
    dry_run: bool = False

    @property
    def is_changed(self) -> bool:
        """Whether a commit was made."""
        return not self.dry_run and bool(self.difference)

    def to_dict(self) -> dict[str, Any]:
        """As ``lensconv publish --json`` shows it; sizes in bytes."""
        return {
            "format": "lensconv-receipt",
            "format_version": 1,
            "dry_run": self.dry_run,
            "repository": self.repository,
            "page": self.page,
            "revision": self.revision,
            "commit": self.commit,
            "parent": self.parent,
            "changed": self.is_changed,
            "tag": self.tag,
            "pull_request": self.pull_request,
            "private": self.private,
            "manifest_sha256": self.release.manifest_sha256,
            "files": [{"name": file.name, "bytes": file.bytes, "sha256": file.sha256} for file in self.release.files],
            "total_bytes": self.release.bytes,
            "added": [file.name for file in self.difference.added],
            "added_bytes": self.difference.added_bytes,
            "deleted": list(self.difference.deleted),
            "read_back": self.read_back.to_dict() if self.read_back else None,
            "advice": list(self.release.advice),
        }


def receipt_file(root: Path) -> Path:
    """Where the receipt of a release lies, unless it is wanted elsewhere."""
    return root / STATE_FOLDER / RECEIPT_NAME


def write_receipt(file: Path, receipt: Receipt) -> bool:
    """Write a receipt, and the folder that it lies in; False where that cannot be written to."""
    with suppress(OSError, LensconvError):
        file.parent.mkdir(exist_ok=True)
        replace_file(file, (json.dumps(receipt.to_dict(), indent=2) + "\n").encode())
        return True
    return False


def is_proven(file: Path, page: str, commit: str) -> bool:
    """Whether an earlier run, whose receipt this is, has read a release back from this commit."""
    try:
        noted: Mapping[str, Any] = read_json(file)
    except InputError:
        return False
    return (noted.get("page"), noted.get("commit")) == (page, commit)
