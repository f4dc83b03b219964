"""Tables of cases: what a function is given and what comes of it, kept in files, several cases to a line."""

from __future__ import annotations

import json
from collections.abc import Callable

from tests.expected import EXPECTED, check_expected

#: Characters after which a line ends.
_WIDTH = 600


def check_cases(name: str, outcome: Callable[..., object]) -> None:
    """Call a function with each case of a file; the last value of a case is what came of it."""
    lines = [""]
    for line in (EXPECTED / name).read_text("utf-8").rstrip("\n").split("\n"):
        for *arguments, _ in json.loads(line):
            case = json.dumps([*arguments, outcome(*arguments)], ensure_ascii=False)
            if len(lines[-1]) + len(case) > _WIDTH:
                lines.append("")
            lines[-1] += f", {case}" if lines[-1] else case
    check_expected(name, "".join(f"[{line}]\n" for line in lines))
