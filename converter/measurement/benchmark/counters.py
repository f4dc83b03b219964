"""Counters of the system, read before and after an image: time of the CPUs and of our processes, swapping, throttling.

What cannot be read, or is hidden in a container, is None.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from converter.measurement.evidence.units import DIGITS

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")
#: Columns of /proc/stat with the time in which a CPU worked for programs or for the kernel: user, nice, system, irq,
#: softirq; the time of virtual machines is part of the first two. See proc_stat(5).
_BUSY = (0, 1, 2, 5, 6)
_STEAL = 7
#: Fields of /proc/PID/stat from the third one on: the session, and the CPU time of the process and of its children that
#: have ended. See proc_pid_stat(5).
_SESSION = 3
_OWN_TIMES, _ALL_TIMES = slice(11, 13), slice(11, 15)


@dataclass(frozen=True)
class Counters:
    """Counters since the system started."""

    moment: float
    """Seconds from any start."""
    cpus: frozenset[int]
    """The CPUs that this process may use."""
    total_s: float | None
    """All time of these CPUs that the system has counted."""
    other_s: float | None
    """Their time for others than the processes of this session and their parent."""
    steal_s: float | None
    """Their time that the host of this virtual machine took."""
    swapped_mb: float | None
    throttled: int | None

    def since(self, before: Counters) -> dict[str, Any]:
        """Return what happened since, as rows of the journal have it.

        The time of other programs is not negative in the long run, but may be in a short one: the system counts in
        hundredths of a second.
        """
        counted = None not in (self.total_s, before.total_s) and self.cpus == before.cpus
        # In some containers, the counters of CPUs stand still.
        counted = counted and _change(before.total_s, self.total_s, DIGITS) != 0
        return {
            "seconds": round(self.moment - before.moment, DIGITS),
            "cpus": len(self.cpus),
            "other_cpu_s": _change(before.other_s, self.other_s, DIGITS) if counted else None,
            "steal_s": _change(before.steal_s, self.steal_s, DIGITS) if counted else None,
            "swapped_mb": _change(before.swapped_mb, self.swapped_mb, DIGITS),
            "throttled": _change(before.throttled, self.throttled),
        }


def read_counters() -> Counters:
    """Read the counters."""
    cpus = frozenset(os.sched_getaffinity(0))
    times = _cpu_times(cpus)
    own = _own_seconds()
    total, busy, steal = times or (None, None, None)
    return Counters(
        moment=time.monotonic(),
        cpus=cpus,
        total_s=total,
        other_s=None if busy is None or own is None else busy - own,
        steal_s=steal,
        swapped_mb=_swapped_mb(),
        throttled=_throttled(),
    )


def _change(before: float | None, after: float | None, digits: int | None = None) -> float | None:
    return None if before is None or after is None else round(after - before, digits)


def _cpu_times(cpus: frozenset[int]) -> tuple[float, float, float] | None:
    """All, busy and stolen seconds of CPUs; None if one of them is not listed, or if nothing was counted."""
    found: dict[str, list[int]] = {}
    with suppress(OSError, ValueError):
        lines = (line.split() for line in (_PROC / "stat").read_text().splitlines())
        found = {name: list(map(int, values)) for name, *values in lines if name.startswith("cpu")}
    rows = [found.get(f"cpu{number}", []) for number in cpus]
    if any(len(row) <= _STEAL for row in rows) or not any(map(any, rows)):
        return None
    ticks = os.sysconf("SC_CLK_TCK")
    total = sum(sum(row[: _STEAL + 1]) for row in rows)
    busy = sum(row[column] for row in rows for column in _BUSY)
    return total / ticks, busy / ticks, sum(row[_STEAL] for row in rows) / ticks


def _own_seconds() -> float | None:
    """CPU time of all processes of this session, and of the parent, which reads what they say; None without /proc."""
    session, parent = os.getsid(0), os.getppid()
    ticks, found = 0, False
    for folder in _PROC.glob("[0-9]*"):
        # Processes may end at any moment.
        with suppress(OSError, ValueError, IndexError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[_SESSION]) == session:
                ticks += sum(map(int, fields[_ALL_TIMES]))
                found = True
            elif folder.name == str(parent):
                ticks += sum(map(int, fields[_OWN_TIMES]))
    return ticks / os.sysconf("SC_CLK_TCK") if found else None


def _swapped_mb() -> float | None:
    """Memory that was moved to and from the swap space, in 10^6 bytes."""
    with suppress(OSError, ValueError):
        lines = (line.split() for line in (_PROC / "vmstat").read_text().splitlines())
        pages = [int(value) for name, value in lines if name in ("pswpin", "pswpout")]
        if pages:
            return sum(pages) * os.sysconf("SC_PAGE_SIZE") / 1e6
    return None


def _throttled() -> int | None:
    """Periods in which CPU limits stopped the control group of this process, or one that it is in; version 2 only."""
    counts = [
        int(value)
        for folder in _cgroup_folders()
        for name, value in _pairs(folder / "cpu.stat")
        if name == "nr_throttled"
    ]
    return sum(counts) if counts else None


def _cgroup_folders() -> Iterator[Path]:
    # The name of a control group may be any bytes.
    with suppress(OSError, ValueError):
        for line in (_PROC / "self" / "cgroup").read_text().splitlines():
            if line.startswith("0::/") and ".." not in PurePosixPath(line[4:]).parts:
                folder = _CGROUPS / line[4:]
                yield from (folder, *(parent for parent in folder.parents if parent.is_relative_to(_CGROUPS)))


def _pairs(file: Path) -> Iterator[tuple[str, str]]:
    with suppress(OSError, ValueError):
        for line in file.read_text().splitlines():
            name, _, value = line.partition(" ")
            if value.isdecimal():
                yield name, value
