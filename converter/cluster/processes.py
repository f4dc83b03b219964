"""Processes of this machine, by what they were started with."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PROCESSES = Path("/proc")


@dataclass(frozen=True)
class Process:
    """A process, which no later one with the same number equals."""

    number: int
    started: str
    """When it was started, in ticks of the system since its start; see proc(5)."""

    def kill(self) -> None:
        """End it, if it has not ended yet."""
        with suppress(OSError):
            if read_process(self.number)[1] == self:
                os.kill(self.number, signal.SIGKILL)


def processes_with(text: str) -> Iterator[Process]:
    """Yield the processes whose command line contains a text, and those that they started, as far as these live."""
    children: dict[int, list[Process]] = {}
    found = []
    for folder in _PROCESSES.glob("[0-9]*"):
        # It may have ended meanwhile.
        with suppress(OSError):
            parent, process = read_process(int(folder.name))
            children.setdefault(parent, []).append(process)
            if process.number != os.getpid() and text.encode() in (folder / "cmdline").read_bytes():
                found.append(process)
    seen = set[Process]()
    while found:
        process = found.pop()
        if process not in seen:
            seen.add(process)
            yield process
            found += children.get(process.number, [])


def read_process(number: int) -> tuple[int, Process]:
    """Return the number of the parent of a process, and itself.

    Raises:
        OSError: it has ended.
    """
    # Its name, in parentheses, may contain anything.
    fields = (_PROCESSES / str(number) / "stat").read_text(errors="replace").rpartition(")")[2].split()
    return int(fields[1]), Process(number, fields[19])
