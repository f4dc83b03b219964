"""A dress rehearsal of a publication, on a local Hub.

It does once what people will do, in processes that know nothing of each other: it publishes the release, opens its
page, audits the repo over the network, downloads it into an empty cache, and generates an image with the download. The
first step that fails ends the rehearsal.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from converter.checkpoint.writer import write_error
from converter.console import SILENT, Reporter, readable_size
from converter.errors import DiskError, UsageError
from converter.hub.addresses import check_repo_id
from converter.publication.options import PublishOptions
from converter.rehearsal.course import Course, Step
from converter.rehearsal.process import running_hub
from converter.rehearsal.settings import Account, HubSettings

_IMAGE_NAME = "image.png"
#: How many copies of the release a rehearsal makes: on the Hub, and in the cache.
_COPIES = 2


@dataclass(frozen=True)
class Rehearsal:
    """The result of a rehearsal."""

    repository: str
    receipt: dict[str, Any]
    """The receipt of the publication on the local Hub, as its process printed it."""
    steps: tuple[Step, ...]
    folder: Path | None
    """The folder that keeps the Hub and the image."""
    image: Path | None

    @property
    def exit_code(self) -> int:
        """The exit code of the step that failed; 0 if none did."""
        return self.steps[-1].exit_code

    def to_dict(self) -> dict[str, Any]:
        """Return what ``lensconv publish --rehearse --json`` shows."""
        return {
            "ok": self.exit_code == 0,
            "repository": self.repository,
            "receipt": self.receipt,
            "steps": [step.to_dict() for step in self.steps],
            "folder": str(self.folder) if self.folder else None,
            "image": str(self.image) if self.image else None,
        }


def rehearse(
    root: Path,
    repository: str,
    options: PublishOptions | None = None,
    *,
    keep: Path | None = None,
    reporter: Reporter = SILENT,
    quiet: bool = True,
) -> Rehearsal:
    """Publish a release on a local Hub, and use it from there as people will.

    This sends nothing to huggingface.co, and keeps what the release folder notes of a real publication.

    Args:
        root: the release folder.
        repository: ``OWNER/NAME``, as it will be on huggingface.co.
        options: how to publish.
        keep: folder that keeps the Hub, as ``hub``, and the image; by default nothing is kept.
        reporter: shows notes.
        quiet: whether the processes write nothing to stderr.

    Raises:
        UsageError: options contradict each other, or ``keep`` is in the release.
        DiskError: the disk has no space for two more copies of the release.
        LensconvError: what publishing raises. If a later step fails, the result says so.
    """
    options = options or PublishOptions()
    check_repo_id(repository)
    owner = repository.partition("/")[0]
    if options.dry_run:
        raise UsageError("--rehearse and --dry-run cannot be combined", "A rehearsal changes only its own local Hub.")
    with _working_folder(root, keep) as work:
        kept = keep or work
        with running_hub(HubSettings(kept / "hub", (Account.new(owner),))) as hub:
            reporter.note(f"the local Hub is at {hub.endpoint}")
            options = replace(options, receipt=work / "receipt.json")
            course = Course(hub, root, repository, options, work, kept / _IMAGE_NAME, reporter, quiet)
            steps = tuple(course.run())
        has_image = steps[-1].name == "generate" and not steps[-1].exit_code
        return Rehearsal(repository, course.receipt, steps, keep, course.image if keep and has_image else None)


@contextmanager
def _working_folder(root: Path, keep: Path | None) -> Iterator[Path]:
    """Make a folder that is removed at the end, on a disk with enough free space."""
    if keep is not None:
        if keep.resolve().is_relative_to(root.resolve()):
            raise UsageError(f"{keep}: is inside the release", "Choose another folder for the rehearsal.")
        try:
            keep.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(keep, error) from error
    with tempfile.TemporaryDirectory(prefix="lensconv-rehearsal-", dir=keep) as name:
        wanted = _COPIES * sum(file.stat().st_size for file in root.rglob("*") if file.is_file())
        free = shutil.disk_usage(name).free
        if free < wanted:
            raise DiskError(
                f"{Path(name).parent}: a rehearsal needs {readable_size(wanted)}, but only "
                f"{readable_size(free)} are free",
                "Free some space, or name a folder on a larger disk with --keep.",
            )
        yield Path(name)
