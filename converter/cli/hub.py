"""``lensconv hub``."""

from __future__ import annotations

import shlex
import tempfile
from contextlib import ExitStack
from pathlib import Path

import click

from converter.cli.options import PATH, output_options, pass_console
from converter.console import LINE_LIMIT, Console
from converter.errors import printable

#: What may be done with a token, in words.
_RIGHTS = {"write": "writes", "read": "reads"}


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
@click.option("--folder", type=PATH, help="Where its repos are kept.  [default: a temporary one, gone when it ends]")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Where it listens.  [default: any free port]")
@click.option(
    "--account",
    "names",
    metavar="NAME[:read]",
    multiple=True,
    help="Somebody who may use it, with repos under their name; with :read their token changes nothing. Repeatable.  "
    "[default: rehearsal]",
)
@output_options
@pass_console
def serve_command(console: Console, /, folder: Path | None, port: int, names: tuple[str, ...]) -> None:
    """Serve a Hub on 127.0.0.1, on which huggingface_hub and all that uses it work unchanged.

    It can be used from this machine alone. Tokens are made anew at each start, and repos stay in the folder. What
    uses it takes its address and a token from the environment, as shown when it starts. A browser shows its repos with
    their cards; for private ones, sign in there with the name of an account and its token. Ctrl-C ends it.
    """
    from rich.text import Text

    from converter.rehearsal.server import serve
    from converter.rehearsal.settings import DEFAULT_NAME, Account, HubSettings

    accounts = tuple(Account.parse(name) for name in names or (DEFAULT_NAME,))
    with ExitStack() as stack:
        place = folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lensconv-hub-")))

        def ready(endpoint: str) -> None:
            variables = [
                ("HF_ENDPOINT", endpoint),
                # Downloads under the name of a real repo must not take its place in the user's cache.
                ("HF_HOME", shlex.quote(printable(str(place.resolve() / "home"), LINE_LIMIT))),
                *(("HF_TOKEN", f"{account.token}  # {account.name} {_RIGHTS[account.role]}") for account in accounts),
            ]
            console.result(
                {
                    "endpoint": endpoint,
                    "folder": str(place.resolve()),
                    "accounts": [
                        {"name": account.name, "token": account.token, "role": account.role} for account in accounts
                    ],
                },
                f"A Hub serves at {endpoint}",
                f"Its repos are in {place}{'' if folder else ', which goes when it ends'}",
                "",
                "To use it from another terminal:",
                *(Text(f"  export {name}={value}", no_wrap=True, overflow="ignore") for name, value in variables),
                "",
                "Ctrl-C ends it.",
            )

        serve(HubSettings(place, accounts, port), ready)
