"""A dress rehearsal of a publication, on a Hub of this machine.

What people will do is done once, by processes that know nothing of each other: the release is published, its page is
opened, the repo is audited from afar, downloaded into an empty cache, and an image is drawn from the download. The
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
from converter.hub.addresses import parse_address
from converter.publication.options import PublishOptions
from converter.rehearsal.course import Course, Step
from converter.rehearsal.process import running_hub
from converter.rehearsal.settings import Account, HubSettings

_IMAGE_NAME = "image.png"
#: How often the release lies on the disk besides: on the Hub, and in the cache.
_COPIES = 2


@dataclass(frozen=True)
class Rehearsal:
    """How a rehearsal went."""

    repository: str
    receipt: dict[str, Any]
    """Of the publication on the local Hub, as its process told it."""
    steps: tuple[Step, ...]
    folder: Path | None
    """Where the Hub and the image were kept."""
    image: Path | None

    @property
    def exit_code(self) -> int:
        """Of what went wrong; 0 where nothing did."""
        return self.steps[-1].exit_code

    def to_dict(self) -> dict[str, Any]:
        """As ``lensconv publish --rehearse --json`` shows it."""
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
    """Publish a release on a Hub of this machine, and use it from there as people will.

    The world's Hub is asked nothing, and what the release folder notes of a real publication is left as it is.

    Args:
        root: the release folder.
        repository: ``OWNER/NAME``, as it is to be on the world's Hub.
        options: how to publish.
        keep: folder that keeps the Hub, as ``hub``, and the image; by default nothing is kept.
        reporter: shows notes.
        quiet: whether the processes say nothing on stderr.

    Raises:
        UsageError: what was asked for makes no sense.
        DiskError: the release would not fit on the disk twice more.
        LensconvError: what publishing raises. Where a later step fails, the report tells.
    """
    options = options or PublishOptions()
    owner = parse_address(f"hf://{repository}").repo_id.partition("/")[0]
    if options.dry_run:
        raise UsageError("--rehearse goes without --dry-run", "A rehearsal changes nothing but a Hub of its own.")
    with _working_folder(root, keep) as work:
        kept = keep or work
        with running_hub(HubSettings(kept / "hub", (Account.new(owner),))) as hub:
            reporter.note(f"a Hub of this machine is at {hub.endpoint}")
            options = replace(options, receipt=work / "receipt.json")
            course = Course(hub, root, repository, options, work, kept / _IMAGE_NAME, reporter, quiet)
            steps = tuple(course.take())
        drawn = steps[-1].name == "generate" and not steps[-1].exit_code
        return Rehearsal(repository, course.receipt, steps, keep, course.image if keep and drawn else None)


@contextmanager
def _working_folder(root: Path, keep: Path | None) -> Iterator[Path]:
    """A folder that is removed at the end, on a disk that has room for what a rehearsal takes."""
    if keep is not None:
        if keep.resolve().is_relative_to(root.resolve()):
            raise UsageError(f"{keep}: lies in the release", "Keep the rehearsal elsewhere.")
        try:
            keep.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(keep, error) from error
    with tempfile.TemporaryDirectory(prefix="lensconv-rehearsal-", dir=keep) as name:
        wanted = _COPIES * sum(file.stat().st_size for file in root.rglob("*") if file.is_file())
        free = shutil.disk_usage(name).free
        if free < wanted:
            raise DiskError(
                f"{Path(name).parent}: a rehearsal takes {readable_size(wanted)}, and {readable_size(free)} are free",
                "Free some space, or name a folder on a larger disk with --keep.",
            )
        yield Path(name)
