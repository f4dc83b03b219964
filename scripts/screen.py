"""Show in the README what plan, convert and verify print: run them on a tiny model, and replace the text there."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: The screen is between these lines of the README.
BEGIN, END = "<!-- screen: begin -->", "<!-- screen: end -->"
COMMANDS = (
    "lensconv synth Lens --preset tiny",
    "lensconv plan Lens",
    "lensconv convert Lens Lens-uint4",
    "lensconv verify Lens-uint4",
)
#: Characters of a line.
WIDTH = "100"
#: Files that the table of ``convert`` shows, and checks of ``verify``; the others are left out.
_SHOWN_ROWS = 3


def main() -> None:
    """Run the commands, print what they print, and put it into the README."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": WIDTH, "TERM": "dumb"}
    with tempfile.TemporaryDirectory() as folder:

        def run(words: Sequence[str]) -> str:
            program = [sys.executable, "-m", "converter", *words]
            done = subprocess.run(program, cwd=folder, env=environment, capture_output=True, text=True, check=True)
            return done.stderr

        shown = screen(run)
    print(shown, end="")
    readme = ROOT / "README.md"
    before, _, rest = readme.read_text().partition(BEGIN)
    readme.write_text(f"{before}{BEGIN}\n{shown}{END}{rest.partition(END)[2]}")


def screen(run: Callable[[Sequence[str]], str]) -> str:
    """Return a block of Markdown with the commands and what they print.

    Args:
        run: runs a command, given as the words after ``lensconv``, and returns what it prints for people.
    """
    lines = ["```text"]
    for command in COMMANDS:
        printed = run(command.split()[1:])
        lines += [f"$ {command}", *_shortened([line.rstrip() for line in printed.splitlines() if line.strip()])]
    return "\n".join([*lines, "```\n"])


def _shortened(lines: list[str]) -> list[str]:
    """Leave out all but the first rows of a table of files, and all but the first checks."""
    shown = lines
    for row in (r" [0-9a-f]{16}$", r"^  ok +"):
        rows = [line for line in shown if re.search(row, line)]
        left_out = rows[_SHOWN_ROWS:]
        shown = [line for line in shown if line not in left_out]
        if left_out:
            shown.insert(shown.index(rows[_SHOWN_ROWS - 1]) + 1, "  …")
    return shown


if __name__ == "__main__":
    main()
