"""``lensconv publish``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from converter.cli.options import PATH, dataclass_options, output_options, pass_console
from converter.console import Console, readable_size
from converter.errors import printable
from converter.publishing.options import PublishOptions

if TYPE_CHECKING:
    from converter.publishing.receipt import Receipt


@click.command(
    "publish",
    short_help="Put a release on the Hub, wholly and proven.",
    epilog="Example: lensconv publish Lens-uint4 OWNER/Lens-uint4 --private --tag v1",
)
@click.argument("release", type=PATH)
@click.argument("repository", metavar="OWNER/NAME")
@dataclass_options(
    PublishOptions,
    "private",
    "revision",
    "tag",
    "create_pr",
    "message",
    "read_back",
    "patience",
    "receipt",
    "dry_run",
)
@output_options
@pass_console
def command(console: Console, /, release: Path, repository: str, **options: Any) -> None:
    """Put the folder RELEASE on the Hub as OWNER/NAME: all of it in one commit, or nothing.

    What its manifest lists is published, and the folder must hold nothing else. It is examined before the first
    request; the commit is held against it, by checksums and by the bytes that the Hub serves, before it is tagged. The
    same command goes on where an earlier one was stopped, and does nothing where there is nothing to do.
    """
    from converter.publishing.run import publish

    receipt = publish(release, repository, PublishOptions(**options), progress=console.progress, note=console.note)
    console.result(receipt.to_dict(), *_render(receipt))


def _render(receipt: Receipt) -> list[str]:
    files = f"{len(receipt.release.files)} files, {readable_size(receipt.release.bytes)}"
    if receipt.dry_run:
        return [f"Fit to be published: {files}. Nothing was changed."]
    what = "Published" if receipt.is_changed else "There already"
    lines = [f"{what}: {printable(receipt.page)} holds {files}, at commit {receipt.commit}."]
    if receipt.read_back is not None:
        lines.append(
            f"All checksums agree; {readable_size(receipt.read_back.bytes)} were read back and are the same bytes."
        )
    if receipt.pull_request is not None:
        lines.append(
            f"Pull request {receipt.pull_request}: {printable(receipt.page)}/discussions/{receipt.pull_request}"
        )
    if receipt.tag:
        lines.append(f"Tagged {receipt.tag}.")
    return lines
