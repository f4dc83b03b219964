"""``lensconv card``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from converter.cli.options import PATH, dataclass_options, output_options, pass_console
from converter.console import Console
from converter.errors import printable
from converter.presentation.card.options import CardOptions


@click.command(
    "card",
    short_help="Make the model card of a release.",
    epilog="Example: lensconv card Lens-uint4 --evidence evidence --repo OWNER/Lens-uint4 --license mit",
)
@click.argument("release", type=PATH)
@click.option(
    "--evidence", metavar="DIR", type=PATH, help="What `bench`, `grid` and `charts` made.  [default: RELEASE]"
)
@dataclass_options(
    CardOptions, "repo", "base_model", "base_revision", "license", "prompts", "unverified", "template", "adopt"
)
@click.option("--language", "languages", metavar="CODE", multiple=True, help="Repeatable.  [default: en]")
@click.option("--tag", "tags", metavar="TAG", multiple=True, help="A tag more for the Hub. Repeatable.")
@click.option("--preview", metavar="FILE", type=PATH, help="Write the card as a page, as the Hub would show it, too.")
@output_options
@pass_console
def command(console: Console, /, release: Path, evidence: Path | None, preview: Path | None, **options: Any) -> None:
    """Make the README.md of the folder RELEASE from what was measured, and bring that into the release.

    Figures belong to the release by the sha256 of its weights, or are refused. What was not measured is left out.
    Everything that comes in is listed in the manifest, so that `publish` takes it along.
    """
    from converter.presentation.card.make_card import make_card
    from converter.presentation.card.preview import write_preview

    report = make_card(release, evidence, CardOptions(**options))
    for warning in report.warnings:
        console.warn(warning)
    if preview is not None:
        write_preview(release, preview)
    lines = [f"{printable(str(report.card))} and {len(report.files) - 1} files with it are listed in the manifest."]
    lines += [f"Left out: {section}, as {reason}." for section, reason in report.left_out.items()]
    if preview is not None:
        lines.append(f"As a page: {printable(str(preview))}")
    shown = None if preview is None else str(preview)
    console.result({**report.to_dict(), "preview": shown}, *lines)
