"""``lensconv card``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from converter.cli.options import PATH, dataclass_options, output_options, pass_console
from converter.console import Console
from converter.extras import require_extra
from converter.presentation.card.options import CardOptions


@click.command(
    "card",
    short_help="Make the model card of a release.",
    epilog="Example: lensconv card Lens-uint4 --evidence evidence --repo OWNER/Lens-uint4 --license mit",
)
@click.argument("release", type=PATH)
@click.option(
    "--evidence",
    metavar="DIR",
    type=PATH,
    help="Folder with the files of `bench`, `grid` and `charts`.  [default: RELEASE]",
)
@dataclass_options(
    CardOptions,
    *("repo", "base_model", "base_revision", "license", "license_name", "license_link"),
    *("prompts", "unverified", "template", "adopt"),
)
@click.option(
    "--language",
    "languages",
    metavar="CODE",
    multiple=True,
    help="ISO code of the language of the prompts, such as en. Repeatable.  [default: en]",
)
@click.option("--tag", "tags", metavar="TAG", multiple=True, help="Additional tag in the card's metadata. Repeatable.")
@click.option(
    "--preview", metavar="FILE", type=PATH, help="Also write the card as an HTML page, as the Hub would show it."
)
@output_options
@pass_console
def command(console: Console, /, release: Path, evidence: Path | None, preview: Path | None, **options: Any) -> None:
    """Make the model card README.md of the folder RELEASE from its measurements, and add both to the release.

    RELEASE is the folder that `lensconv convert` wrote. Figures are accepted only if they were measured on weights with
    the sha256 of the release's weights. The card leaves out what was not measured. All files that are added are listed
    in the manifest, so that `publish` uploads them.
    """
    require_extra("measure")
    from converter.presentation.card.make_card import make_card
    from converter.presentation.card.preview import write_preview

    report = make_card(release, evidence, CardOptions(**options))
    for warning in report.warnings:
        console.warn(warning)
    if preview is not None:
        write_preview(release, preview)
    lines = [f"{report.card} and {len(report.files) - 1} more files are listed in the manifest."]
    lines += [f"Left out: {section}, because {reason}." for section, reason in report.left_out.items()]
    if preview is not None:
        lines.append(f"HTML page: {preview}")
    console.result({**report.to_dict(), "preview": None if preview is None else str(preview)}, *lines)
