"""The memory that this process has used, and how much more it may use."""

from __future__ import annotations

import re
import resource
from collections.abc import Iterator
from pathlib import Path

_STATUS = Path("/proc/self/status")
_MEMINFO = Path("/proc/meminfo")
_OWN_CGROUP = Path("/proc/self/cgroup")
_CGROUPS = Path("/sys/fs/cgroup")


def peak_rss_bytes() -> int:
    """The most memory that this process has used so far, in bytes.

    ``getrusage`` would return the peak of the process that started this one, if it was higher: Linux inherits it.
    """
    return _kibibytes(_STATUS, "VmHWM")


def rss_bytes() -> int:
    """The memory that this process uses now, in bytes; pages of mapped files count."""
    return _kibibytes(_STATUS, "VmRSS")


def free_memory_bytes() -> int:
    """How much more memory this process can use, in bytes, within the limits of machine, control groups and ulimit."""
    free = [_kibibytes(_MEMINFO, "MemAvailable"), *_left_by_cgroups()]
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        free.append(limit - _kibibytes(_STATUS, "VmSize"))
    return max(0, min(free))


def _kibibytes(file: Path, field: str) -> int:
    (kibibytes,) = re.findall(rf"^{field}:\s*(\d+) kB$", file.read_text(), flags=re.MULTILINE)
    return int(kibibytes) * 1024


def _left_by_cgroups() -> Iterator[int]:
    """The free memory of each control group of this process; pages of files count as free, as they can be dropped."""
    for line in _OWN_CGROUP.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            files = "memory.max", "memory.current", "file"
            folder = _CGROUPS
        elif controllers == "memory":
            files = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache"
            folder = _CGROUPS / "memory"
        else:
            continue
        # Inside a container the path may be the host's; then the root of the mounted groups is our own group.
        own = folder / path.lstrip("/")
        for group in (own, *own.parents):
            if not group.is_relative_to(folder):
                break
            left = _left_by(group, *files)
            if left is not None:
                yield left


def _left_by(group: Path, limit_file: str, usage_file: str, cache_field: str) -> int | None:
    try:
        limit = (group / limit_file).read_text().strip()
        usage = int((group / usage_file).read_text())
        cached = re.search(rf"^{cache_field} (\d+)$", (group / "memory.stat").read_text(), flags=re.MULTILINE)
    except OSError:
        return None
    return int(limit) - usage + int(cached[1] if cached else 0) if limit.isdigit() else None
