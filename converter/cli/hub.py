"""``lensconv hub``."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path

import click

from converter.cli.options import PATH, output_options, pass_console
from converter.console import Console


@click.group(
    "hub",
    short_help="A Hub on this machine, to rehearse a release on.",
    epilog="Example: lensconv hub serve --folder hub",
    no_args_is_help=False,
)
def command() -> None:
    """A Hub on this machine that speaks the protocol of huggingface.co, to rehearse a release on."""


@command.command(
    "serve",
    short_help="Serve a Hub on 127.0.0.1 until Ctrl-C.",
    epilog="Example: lensconv hub serve --folder hub --port 8321 --account alice --account bob:read",
)
@click.option("--folder", type=PATH, help="Where its repos are kept.  [default: a folder that is removed at the end]")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Where it listens.  [default: any free port]")
@click.option(
    "--account",
    "names",
    metavar="NAME[:read]",
    multiple=True,
    help="Somebody who may use it; with :read their token changes nothing. Repeatable.  [default: rehearsal]",
)
@output_options
@pass_console
def serve_command(console: Console, /, folder: Path | None, port: int, names: tuple[str, ...]) -> None:
    """Serve a Hub on 127.0.0.1, on which huggingface_hub and all that uses it work unchanged.

    Tokens are made anew at each start. Repos stay in the folder. With --json one object says where it is and who may
    use it, as soon as it serves. Its pages are for a browser. Ctrl-C ends it.
    """
    from converter.rehearsal.server import serve
    from converter.rehearsal.settings import DEFAULT_NAME, Account, HubSettings

    accounts = tuple(Account.parse(name) for name in names or (DEFAULT_NAME,))
    with ExitStack() as stack:
        place = folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lensconv-hub-")))

        def ready(endpoint: str) -> None:
            console.result(
                {
                    "endpoint": endpoint,
                    "folder": str(place.resolve()),
                    "accounts": [
                        {"name": account.name, "token": account.token, "role": account.role} for account in accounts
                    ],
                },
                f"A Hub is at {endpoint}, in {place}. Ctrl-C ends it. To use it, set:",
                f"  HF_ENDPOINT={endpoint}",
                *(f"  HF_TOKEN={account.token}  ({account.name}, {account.role})" for account in accounts),
            )

        serve(HubSettings(place, accounts, port), ready)
