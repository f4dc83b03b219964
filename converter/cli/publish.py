"""``lensconv publish``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from converter.cli.options import PATH, dataclass_options, output_options, pass_console
from converter.console import Console, readable_size, verdict
from converter.errors import ResourceError, UsageError, printable
from converter.publication.options import PublishOptions

if TYPE_CHECKING:
    from rich.console import RenderableType

    from converter.publication.receipt import Receipt
    from converter.rehearsal.rehearse import Rehearsal


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
@click.option(
    "--rehearse",
    is_flag=True,
    help="Publish on a Hub of this machine instead, audit the repo, download it and draw an image with it.",
)
@click.option(
    "--keep",
    metavar="DIR",
    type=PATH,
    help="Keep the image of the rehearsal in DIR, and its Hub, for `lensconv hub serve --folder DIR/hub`.",
)
@output_options
@pass_console
@click.pass_context
def command(
    context: click.Context,
    console: Console,
    /,
    release: Path,
    repository: str,
    rehearse: bool,
    keep: Path | None,
    **options: Any,
) -> None:
    """Put the folder RELEASE on the Hub as OWNER/NAME: all of it in one commit, or nothing.

    What its manifest lists is published, and the folder must hold nothing else. It is examined before the first
    request (files above 1 GiB that were never hashed: as they are sent); the commit is held against it, by checksums
    and by the bytes that the Hub serves, before it is tagged. The same command goes on where an earlier one was
    stopped, and does nothing where there is nothing to do.
    """
    if rehearse:
        from converter.rehearsal.rehearse import rehearse as run_rehearsal

        rehearsal = run_rehearsal(
            release, repository, PublishOptions(**options), keep=keep, reporter=console, quiet=console.quiet
        )
        console.result(rehearsal.to_dict(), *_render_rehearsal(rehearsal))
        context.exit(rehearsal.exit_code)
    if keep is not None:
        raise UsageError("--keep goes with --rehearse only")
    from converter.publication.publish import publish

    receipt = publish(release, repository, PublishOptions(**options), reporter=console)
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


def _render_rehearsal(rehearsal: Rehearsal) -> list[RenderableType]:
    from rich.text import Text

    parts = [
        verdict(f"{step.name}, {step.elapsed_s:.1f} s: {step.detail}", ok=not step.exit_code)
        for step in rehearsal.steps
    ]
    failed = rehearsal.steps[-1].name
    if rehearsal.exit_code == ResourceError.exit_code:
        parts.append(Text(f"Rehearsed up to {failed}, for which this machine lacks something.", style="bold red"))
    elif rehearsal.exit_code:
        parts.append(Text(f"Not fit for the world: {failed} failed.", style="bold red"))
    else:
        parts.append(Text("Rehearsed: published, looked at, audited, downloaded and used.", style="bold green"))
    if rehearsal.folder is not None:
        # Private repos are shown to their owner alone.
        account = f" --account {rehearsal.repository.partition('/')[0]}" if rehearsal.receipt["private"] else ""
        parts.append(f"To look at it: lensconv hub serve --folder {printable(str(rehearsal.folder / 'hub'))}{account}")
    if rehearsal.image is not None:
        parts.append(f"The image: {printable(str(rehearsal.image))}")
    return parts
