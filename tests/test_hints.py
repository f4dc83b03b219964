"""Messages name commands and options that exist."""

from __future__ import annotations

import ast
import re

import click

from converter.cli.main import cli
from tests.conftest import ROOT


def options_of(command: click.Command) -> set[str]:
    """All options of a command and of the commands below it."""
    found = {option for parameter in command.params for option in parameter.opts}
    if isinstance(command, click.Group):
        context = click.Context(command)
        below = [command.get_command(context, name) for name in command.list_commands(context)]
        found = found.union(*(options_of(other) for other in below if other is not None))
    return found


def test_options_in_messages_exist() -> None:
    seen = 0
    for file in sorted((ROOT / "converter").rglob("*.py")):
        nodes = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Constant)]
        for name, rest in re.findall(r"lensconv ([a-z]+)([^`\n,]*)", "\n".join(str(node.value) for node in nodes)):
            command = cli.get_command(click.Context(cli), name)
            named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", rest)) if command is not None else set()
            assert command is None or named <= options_of(command) | {"--help"}, f"{file}: lensconv {name}{rest}"
            seen += len(named)
    assert seen > 20
