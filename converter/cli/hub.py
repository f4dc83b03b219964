"""``lensconv hub``."""

from __future__ import annotations

import shlex
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from converter.cli.options import PATH, output_options, pass_console
from converter.console import LINE_LIMIT, Console
from converter.errors import printable

if TYPE_CHECKING:
    from rich.text import Text

#: What may be done with a token, in words.
_RIGHTS = {"write": "who can read and write", "read": "who can only read"}


@click.group(
    "hub",
    short_help="Run a local Hub for rehearsals of a release.",
    epilog="Example: lensconv hub serve --folder hub",
    no_args_is_help=False,
)
def command() -> None:
    """Run a local Hub that speaks the protocol of huggingface.co, for rehearsals of a release."""


@command.command(
    "serve",
    short_help="Serve a local Hub until Ctrl-C.",
    epilog="Example: lensconv hub serve --folder hub --port 8321 --account alice --account bob:read",
)
@click.option("--folder", type=PATH, help="Folder for the repos.  [default: a temporary folder, removed at the end]")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Port to serve on.  [default: any free port]")
@click.option(
    "--account",
    "names",
    metavar="NAME[:read]",
    multiple=True,
    help="Add a user, who owns the repos under this name; with :read, the user's token can only read. Repeatable.  "
    "[default: rehearsal]",
)
@output_options
@pass_console
def serve_command(console: Console, /, folder: Path | None, port: int, names: tuple[str, ...]) -> None:
    """Serve a local Hub on 127.0.0.1. Programs that use huggingface_hub work with it without changes.

    It serves model repos, to programs on this machine only. Repos are kept in the folder; each start makes new tokens.
    The command prints the environment variables with the address and a token that other programs need. A browser shows
    a repo with its card and files at /OWNER/NAME; for a private repo, sign in with the name of an account and its
    token. Ctrl-C stops it.
    """
    from converter.rehearsal.server import serve
    from converter.rehearsal.settings import DEFAULT_NAME, Account, HubSettings

    accounts = tuple(Account.parse(name) for name in names or (DEFAULT_NAME,))
    with ExitStack() as stack:
        root = folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lensconv-hub-")))

        def ready(endpoint: str) -> None:
            # Downloads under the name of a real repo must not replace it in the user's cache.
            home = shlex.quote(printable(str(root.resolve() / "home"), LINE_LIMIT))
            tokens = [
                _export("HF_TOKEN", f"{account.token}  # as {account.name}, {_RIGHTS[account.role]}")
                for account in accounts
            ]
            console.result(
                {
                    "endpoint": endpoint,
                    "folder": str(root.resolve()),
                    "accounts": [
                        {"name": account.name, "token": account.token, "role": account.role} for account in accounts
                    ],
                },
                f"The local Hub is running at {endpoint}",
                f"Its repos are in {root}{'' if folder else ', which is removed at the end'}",
                f"A browser shows a repo at {endpoint}/OWNER/NAME",
                "",
                "To use it from another terminal:",
                _export("HF_ENDPOINT", endpoint),
                _export("HF_HOME", home),
                *(["and one of these:"] if len(accounts) > 1 else []),
                *tokens,
                "",
                "Ctrl-C stops it.",
            )

        serve(HubSettings(root, accounts, port), ready)


def _export(name: str, value: str) -> Text:
    """A line for a shell, which may be copied and therefore is not wrapped."""
    from rich.text import Text

    return Text(f"  export {name}={value}", no_wrap=True)
