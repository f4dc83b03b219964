"""``lensconv verify``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from converter.cli.components import list_components
from converter.cli.options import (
    PATH_OR_ADDRESS,
    adapter_option,
    output_options,
    pass_console,
    refuse_nonfinite,
)
from converter.console import Console, readable_size, table, verdict
from converter.conversion.adapters.choice import AdapterChoice
from converter.errors import printable

if TYPE_CHECKING:
    from rich.console import RenderableType

    from converter.verification.report import FamilyFootprint, VerifiedComponent, VerifyReport


@click.command(
    "verify",
    short_help="Check a quantized checkpoint.",
    epilog="Example: lensconv verify Lens-uint4 --against Lens/transformer --checksums",
)
@click.argument("checkpoint", type=PATH_OR_ADDRESS)
@click.option(
    "--against",
    metavar="SOURCE|RELEASE",
    type=PATH_OR_ADDRESS,
    help="Compare every weight with SOURCE, the checkpoint it was made from, a path or hf://OWNER/NAME[@REVISION]; if "
    "CHECKPOINT is on the Hub, compare every file of RELEASE, a folder on this machine.",
)
@adapter_option("LoRA adapter that was added to SOURCE before it was quantized, as for `convert`; needs --against.")
@click.option(
    "--recipe",
    metavar="NAME|FILE",
    help="Check that it is the result of this recipe.",
)
@click.option("--checksums", is_flag=True, help="Compare the sha256 of every file with the manifest; not for hf://.")
@click.option(
    "--load",
    is_flag=True,
    help="Load it with SDNQ and with diffusers or transformers, and compare the parameters; not for hf://.",
)
@click.option(
    "--fail-under-sqnr",
    metavar="DB",
    type=float,
    callback=refuse_nonfinite,
    help="Fail if the signal-to-quantization-noise ratio of a weight is below DB decibels; needs --against, not for "
    "hf://.",
)
@click.option(
    "--component",
    "components",
    metavar="NAME",
    multiple=True,
    help="Component to check, if the path is a pipeline repo; repeatable.  [default: all that are quantized]",
)
@click.option(
    "--variant",
    metavar="NAME",
    help="Variant of the weights in SOURCE that was converted, such as fp16; needs --against, not for hf://.",
)
@output_options
@pass_console
@click.pass_context
def command(
    context: click.Context,
    console: Console,
    checkpoint: Path | str,
    against: Path | str | None,
    recipe: str | None,
    checksums: bool,
    load: bool,
    fail_under_sqnr: float | None,
    components: tuple[str, ...],
    variant: str | None,
    adapters: tuple[AdapterChoice, ...],
) -> None:
    """Check whether CHECKPOINT is a sound SDNQ checkpoint, made by lensconv or by another tool.

    Without options, only headers and small files are read. The exit code is 1 if a check fails. CHECKPOINT is a
    component folder, a pipeline repo, one .safetensors file, or hf://OWNER/NAME[@REVISION]. In a pipeline repo, the
    weight files of the other components must be complete, too. A repo on the Hub is not downloaded: headers and small
    files are read, and the files that its manifest lists are compared with the Hub's records, by sha256 where the Hub
    has it and otherwise by size.
    """
    from converter.verification.verify import verify

    report = verify(
        checkpoint,
        components=components,
        against=against,
        variant=variant,
        recipe=recipe,
        checksums=checksums,
        load=load,
        fail_under_sqnr=fail_under_sqnr,
        adapters=adapters,
        reporter=console,
    )
    console.result(report.to_dict(), *_render(report))
    context.exit(0 if report.ok else 1)


def _render(report: VerifyReport) -> list[RenderableType]:
    from rich.text import Text

    dtypes = sorted(report.bytes_by_dtype)
    rows = []
    several = len(report.components) > 1
    for component in report.components:
        if several:
            rows.append(_row(component.name, component, component.total_bytes, dtypes))
        for family in component.families:
            rows.append(_row(f"  {family.name}" if several else family.name, family, family.bytes, dtypes))
    rows.append(_row("all", report, report.total_bytes, dtypes))
    classes = ", ".join(printable(component.class_name) or "unknown class" for component in report.components)
    title = f"{classes}, {report.parameters:,} parameters"
    parts: list[RenderableType] = [
        table(["family", "tensors", "quantized", *dtypes, "total"], rows, title=title, folds=several)
    ]
    if report.hub:
        read = f"{readable_size(report.hub['received_bytes'])} of {readable_size(report.hub['bytes'])} read"
        parts.append(Text(f"{report.hub['place']}: {read}"))
    if report.other_components:
        listed = f"Other components: {list_components(report.other_components)}."
        parts += [Text(listed), Text(f"Whole pipeline: {readable_size(report.whole_bytes)}.")]
    # Of copies alone, there is nothing to show.
    if report.fidelity.get("families"):
        parts += render_fidelity(report.fidelity)
    for check in report.checks:
        parts.append(verdict(f"{check.title}: {check.detail}", ok=check.ok))
    parts += [Text(f"  note  {note}") for note in report.notes]
    failed = [check.title for check in report.checks if not check.ok]
    if failed:
        parts.append(Text(f"Not sound. Failed: {', '.join(failed)}.", style="bold red"))
    else:
        parts.append(Text(f"Sound: all {len(report.checks)} checks passed.", style="bold green"))
    return parts


def _row(
    name: str, figures: FamilyFootprint | VerifiedComponent | VerifyReport, size: int, dtypes: Sequence[str]
) -> list[str]:
    """The row of a family, of a component or of everything."""
    by_dtype = figures.bytes_by_dtype
    sizes = [readable_size(by_dtype[dtype]) if dtype in by_dtype else "" for dtype in dtypes]
    return [name, str(figures.tensors), str(figures.quantized_modules or ""), *sizes, readable_size(size)]


def render_fidelity(fidelity: Mapping[str, Any]) -> list[RenderableType]:
    """How far weights are from their source: a table of families, and one of the worst modules."""

    def number(value: float | None, digits: int) -> str:
        return "" if value is None else f"{value:.{digits}f}"

    families = [
        [
            entry["name"],
            str(entry["modules"]),
            number(entry["sqnr_db"], 2),
            number(entry["sqnr_db_min"], 2),
            number(entry["cosine_min"], 6),
        ]
        for entry in fidelity["families"]
    ]
    worst = [
        [
            printable(entry["name"]),
            number(entry["sqnr_db"], 2),
            number(entry["max_error_steps"], 3),
            number(entry["cosine"], 6),
        ]
        for entry in fidelity["worst"]
    ]
    return [
        table(["against the source", "modules", "SQNR dB", "lowest dB", "lowest cosine"], families),
        table(["worst modules", "SQNR dB", "max error (quant. steps)", "cosine"], worst),
    ]
