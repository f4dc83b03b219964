"""``lensconv reproduce``."""

from __future__ import annotations

from pathlib import Path

import click

from converter.cli.options import PATH_OR_ADDRESS, output_options, pass_console
from converter.console import Console, readable_size, verdict
from converter.conversion.options import MAXIMUM_CONNECTIONS


@click.command(
    "reproduce",
    short_help="Convert the source of a release again, and compare.",
    epilog="Example: lensconv reproduce hf://OWNER/Lens-uint4",
)
@click.argument("release", type=PATH_OR_ADDRESS)
@click.argument("source", type=PATH_OR_ADDRESS, required=False)
@click.option(
    "--component",
    "components",
    metavar="NAME",
    multiple=True,
    help="Component to compare, if the release is a pipeline; repeatable.  [default: all that are quantized]",
)
@click.option(
    "--connections",
    type=click.IntRange(1, MAXIMUM_CONNECTIONS),
    default=4,
    show_default=True,
    help="Files of hf:// that are read at a time, each over one connection.",
)
@output_options
@pass_console
@click.pass_context
def command(
    context: click.Context,
    console: Console,
    release: Path | str,
    source: Path | str | None,
    components: tuple[str, ...],
    connections: int,
) -> None:
    """Find out whether RELEASE is what its source becomes, byte for byte.

    The source is converted again, and every tensor is compared; neither side is stored. The exit code is 1 if something
    differs. RELEASE and SOURCE are folders or hf://OWNER/NAME[@REVISION]. By default, the source is the repo and commit
    in the manifest of the release. Without a manifest, the recipe is inferred from SDNQ's configuration.
    """
    from rich.text import Text

    from converter.verification.reproduce import reproduce

    report = reproduce(release, source, components=components, connections=connections, reporter=console)
    lines = [verdict(f"{check.title}: {check.detail}", ok=check.ok) for check in report.checks]
    lines += [Text(f"  note  {note}") for note in report.notes]
    received = f", {readable_size(report.received_bytes)} received" if report.received_bytes else ""
    sources = ", ".join(dict.fromkeys(component.source for component in report.components))
    took = f"{report.elapsed_s:.1f} s{received}."
    if report.ok:
        lines.append(Text(f"{report.release} and {sources} agree, byte for byte. {took}", style="bold green"))
    else:
        first = next((component.differing[0] for component in report.components if component.differing), "")
        named = f" First tensor that differs: {first}." if first else ""
        lines.append(Text(f"{report.release} is not what {sources} becomes.{named} {took}", style="bold red"))
    console.result(report.to_dict(), *lines)
    context.exit(0 if report.ok else 1)
