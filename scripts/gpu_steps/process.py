"""A process of a step: it calls the function of the step, and writes what that finds after each finding."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1
#: What cannot be imported from these is a fault, and no lack of the machine.
_OWN_PACKAGES = ("converter", "scripts")


@dataclass
class StepRun:
    """What a step works with and what it finds.

    Args:
        part: name of this process's part of the step.
        device: as on the command line.
        compiles: whether there is time to compile.
        work: folder for files, which steps share.
        result: file for the findings.
        seconds: from the start of the process until it should begin nothing more.
        earlier: findings of the parts of this step that ran before, by their names.
    """

    part: str
    device: str
    compiles: bool
    work: Path
    result: Path
    seconds: float
    earlier: Mapping[str, Any] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    skipped: str | None = None
    started: float = field(default_factory=time.monotonic)

    @property
    def is_small(self) -> bool:
        """Whether models are small and passes few, as on a CPU."""
        return not self.device.startswith("cuda")

    @property
    def left(self) -> float:
        """Seconds in which something more can be begun."""
        return self.started + self.seconds - time.monotonic()

    def record(self, **figures: Any) -> None:
        """Add figures, as JSON values; dictionaries are merged."""
        for name, value in figures.items():
            if isinstance(value, dict):
                value = {**self.figures.get(name, {}), **value}
            self.figures[name] = value
        self.save()

    def check(self, is_right: bool, problem: str) -> None:
        """Add a problem unless something is as it must be."""
        if not is_right:
            self.problems.append(problem)
            self.save()

    def save(self) -> None:
        """Write the findings; a process that dies leaves what it has found."""
        content = {"figures": self.figures, "problems": self.problems, "skipped": self.skipped}
        draft = self.result.with_suffix(".draft")
        draft.write_text(json.dumps(content))
        draft.replace(self.result)


def main() -> None:
    """Do the task on the command line: the function of a step, and the arguments of ``StepRun``, as JSON."""
    # When the runner is killed, the kernel kills this process, too.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    task = json.loads(sys.argv[1])
    if os.getppid() != task.pop("parent"):
        sys.exit("the runner has ended")
    module, _, function = task.pop("function").partition(":")
    run = StepRun(**{**task, "work": Path(task["work"]), "result": Path(task["result"])})
    run.save()
    try:
        _call(module, function, run)
    except ImportError as error:
        if (error.name or "").partition(".")[0] in _OWN_PACKAGES:
            raise
        run.skipped = f"cannot be imported: {error}"
    run.save()
    # A regular exit of the libraries takes seconds.
    os._exit(0)


def _call(module: str, function: str, run: StepRun) -> None:
    from converter.errors import CompilerError, LensconvError, ResourceError

    try:
        getattr(import_module(module), function)(run)
    except LensconvError as error:
        if isinstance(error, ResourceError) and not isinstance(error, CompilerError):
            run.skipped = error.with_hint
        else:
            run.problems.append(error.with_hint)


if __name__ == "__main__":
    main()
