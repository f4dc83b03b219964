"""The receipt of a publication: it is printed, and kept in the release folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from converter.checkpoint.files import read_json
from converter.checkpoint.writer import replace_file
from converter.conversion.release.manifest import STATE_FOLDER
from converter.errors import InputError, LensconvError
from converter.publication.files import Difference
from converter.publication.preflight import FitRelease
from converter.publication.proof import ReadBack

#: Path of a receipt in a release.
RECEIPT_NAME = f"{STATE_FOLDER}/receipt.json"


@dataclass(frozen=True)
class Receipt:
    """What a publication did, or what it would do."""

    repository: str
    page: str
    """Web address of the repo."""
    revision: str
    """Branch, or ``refs/pr/N``."""
    commit: str | None
    """The commit that contains the release; None if nothing was done."""
    parent: str | None
    """The newest commit before it."""
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
        """Return the object that ``lensconv publish --json`` prints; sizes in bytes."""
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
            "kept": list(self.difference.kept),
            "read_back": asdict(self.read_back) if self.read_back else None,
            "advice": list(self.release.advice),
        }


def write_receipt(file: Path, receipt: Receipt) -> bool:
    """Write a receipt and the folder that contains it; return False if that is not possible."""
    with suppress(OSError, LensconvError):
        file.parent.mkdir(exist_ok=True)
        replace_file(file, (json.dumps(receipt.to_dict(), indent=2) + "\n").encode())
        return True
    return False


def is_proven(file: Path, page: str, commit: str) -> bool:
    """Return whether the receipt of an earlier run says that this commit was read back."""
    try:
        noted: Mapping[str, Any] = read_json(file)
    except InputError:
        return False
    return (noted.get("page"), noted.get("commit")) == (page, commit)
