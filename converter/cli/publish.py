"""``lensconv publish``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from converter.cli.options import PATH, dataclass_options, output_options, pass_console
from converter.console import Console, readable_size, verdict
from converter.errors import ResourceError, UsageError
from converter.publication.options import PublishOptions

if TYPE_CHECKING:
    from rich.console import RenderableType

    from converter.publication.receipt import Receipt
    from converter.rehearsal.rehearse import Rehearsal


@click.command(
    "publish",
    short_help="Publish a release in one verified commit.",
    epilog="Example: lensconv publish Lens-uint4 OWNER/Lens-uint4 --private --tag v1",
)
@click.argument("release", type=PATH)
@click.argument("repository", metavar="OWNER/NAME")
@dataclass_options(PublishOptions)
@click.option(
    "--rehearse",
    is_flag=True,
    help="Publish to a local Hub instead, check the repo there, download it and generate an image with it; a pipeline "
    "that makes no image of a prompt is only loaded.",
)
@click.option(
    "--keep",
    metavar="DIR",
    type=PATH,
    help="Keep the image and the Hub of the rehearsal in DIR; show it with `lensconv hub serve --folder DIR/hub`, with "
    "--account OWNER for a private repo.",
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
    """Publish the folder RELEASE, which `lensconv convert` wrote, on the Hub as OWNER/NAME, in one verified commit.

    All files that the manifest lists are published, and the folder must not contain others. Only .gitattributes, files
    in .lensconv, .git and .cache/huggingface, and files that programs make by themselves, such as .DS_Store, are
    ignored.

    In the repo, files of a former release that this one does not have are deleted; other files are kept. If weights
    there could be loaded instead of the release's, or settings and code together with them, the command asks at a
    terminal whether to delete them; without a terminal, it stops. `--dry-run --json` lists what would be deleted
    and kept.

    The folder is examined before the first request; files above 1 GiB are hashed during the upload. After the commit,
    checksums and the bytes that the Hub serves are compared with the release, and only then the commit is tagged. If
    the command was stopped, run it again: it continues, and it does nothing if everything is published.
    """
    if rehearse:
        from converter.rehearsal.rehearse import rehearse as run_rehearsal

        rehearsal = run_rehearsal(
            release, repository, PublishOptions(**options), keep=keep, reporter=console, quiet=console.quiet
        )
        console.result(rehearsal.to_dict(), *_render_rehearsal(rehearsal))
        context.exit(rehearsal.exit_code)
    if keep is not None:
        raise UsageError("--keep needs --rehearse")
    from converter.publication.publish import publish

    receipt = publish(release, repository, PublishOptions(**options), reporter=console)
    console.result(receipt.to_dict(), *_render(receipt))


def _render(receipt: Receipt) -> list[str]:
    files = f"{len(receipt.release.files)} files, {readable_size(receipt.release.bytes)}"
    if receipt.dry_run:
        return [f"Ready to publish: {files}. Nothing was changed."]
    what = "Published" if receipt.is_changed else "Published already"
    lines = [f"{what}: {receipt.page} contains {files}, at commit {receipt.commit}."]
    if receipt.read_back is not None:
        lines.append(f"All checksums agree; {readable_size(receipt.read_back.bytes)} were read back and are equal.")
    if receipt.pull_request is not None:
        lines.append(f"Pull request {receipt.pull_request}: {receipt.page}/discussions/{receipt.pull_request}")
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
        lack = "This machine lacks memory, disk, a device or a package; see above."
        parts.append(Text(f"Not rehearsed: the step {failed} and later. {lack}", style="bold red"))
    elif rehearsal.exit_code:
        parts.append(Text(f"Do not publish this yet: {failed} failed.", style="bold red"))
    else:
        parts.append(Text("Rehearsed: published, opened, checked, downloaded and used.", style="bold green"))
    if rehearsal.folder is not None:
        # Only the owner may see a private repo.
        account = f" --account {rehearsal.repository.partition('/')[0]}" if rehearsal.receipt["private"] else ""
        parts.append(f"To look at it: lensconv hub serve --folder {rehearsal.folder / 'hub'}{account}")
    if rehearsal.image is not None:
        parts.append(f"The image: {rehearsal.image}")
    return parts
