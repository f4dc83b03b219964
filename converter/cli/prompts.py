"""``lensconv prompts``."""

from __future__ import annotations

from pathlib import Path

import click

from converter.cli.options import PATH, output_options, pass_console
from converter.console import Console, table
from converter.extras import require_extra


@click.group(
    "prompts",
    short_help="Make suites of prompts for comparing models.",
    epilog="Example: lensconv prompts import README.md --out suite.toml",
    no_args_is_help=False,
)
def command() -> None:
    """Make suites of prompts: TOML files with the images to generate and the texts that each image must show."""


@command.command(
    "import",
    short_help="Make a suite from a published model card.",
    epilog="Example: lensconv prompts import README.md --out suite.toml",
)
@click.argument("card")
@click.option("--out", "output", metavar="SUITE.toml", type=PATH, required=True, help="File to write.")
@click.option("--name", help="Name of the suite.  [default: name of the file, without .toml]")
@click.option("--overwrite", is_flag=True, help="Replace the suite if it exists.")
@output_options
@pass_console
def import_command(console: Console, /, card: str, output: Path, name: str | None, overwrite: bool) -> None:
    """Make a suite from the prompts in CARD.

    CARD is a file in Markdown or plain text, or hf://OWNER/NAME[@REVISION] for the card of a model on the Hub. Ids,
    titles, seeds and prompts are read from its table, or from its headings and the text below them. All
    texts in double quotes become required texts. Nothing is guessed: a card that contradicts itself is refused.
    """
    require_extra("measure")
    from converter.measurement.prompts.card import import_card
    from converter.measurement.prompts.fetch import read_card
    from converter.measurement.prompts.files import refuse_place, write_suite_file

    refuse_place(output, overwrite=overwrite)
    suite = import_card(read_card(card), output.stem if name is None else name, where=card)
    write_suite_file(suite.to_toml(), output)
    content = suite.to_dict()
    required = sum(len(prompt.required_text) for prompt in suite.prompts)
    rows = [[prompt.id, prompt.scenario, str(prompt.seed), str(len(prompt.required_text))] for prompt in suite.prompts]
    console.result(
        {"suite": str(output), "name": suite.name, "prompts": content["prompts"], "required_texts": required},
        table(["prompt", "scenario", "seed", "required texts"], rows, title=suite.name),
        f"{output}: {len(suite.prompts)} prompts, {required} required texts, SHA-256 {suite.sha256}.",
    )
