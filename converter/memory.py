"""The memory that this process has used, and how much more it may use."""

from __future__ import annotations

import ctypes
import re
import resource
from collections.abc import Iterator
from pathlib import Path

from converter.console import readable_size
from converter.errors import MemoryLimitError

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
    return _lowest()[0]


def limit_text() -> str:
    """What sets the lowest limit on memory, for the end of a message; empty if that is the machine itself."""
    _, limit = _lowest()
    return f" ({limit})" if limit else ""


def require_free_memory(needed: int, what: str) -> None:
    """Refuse work that cannot fit, because the system would kill this process without a word.

    Args:
        needed: bytes without which it has been seen to fail.
        what: the work, as the beginning of a sentence.

    Raises:
        MemoryLimitError: there is less, even with what can be swapped out.
    """
    free = free_memory_bytes()
    if free + _kibibytes(_MEMINFO, "SwapFree") < needed:
        reason = f"{what} takes at least {readable_size(needed)} of memory, but only {readable_size(free)} are free"
        raise MemoryLimitError(reason + limit_text(), "Raise the limit, or close other programs.")


def return_free_memory() -> None:
    """Give back to the system what this process has freed; glibc keeps tens of megabytes for later."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _lowest() -> tuple[int, str]:
    """The free memory, and what limits it, in words; empty if that is the machine itself."""
    found = [(_kibibytes(_MEMINFO, "MemAvailable"), ""), *_left_by_cgroups()]
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        found.append((limit - _kibibytes(_STATUS, "VmSize"), f"ulimit -v allows {readable_size(limit)}"))
    free, text = min(found)
    return max(0, free), text


def _kibibytes(file: Path, field: str) -> int:
    (kibibytes,) = re.findall(rf"^{field}:\s*(\d+) kB$", file.read_text(), flags=re.MULTILINE)
    return int(kibibytes) * 1024


def _left_by_cgroups() -> Iterator[tuple[int, str]]:
    """The free memory of each control group of this process, and its limit in words.

    Pages of files count as free, as they can be dropped.
    """
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


def _left_by(group: Path, limit_file: str, usage_file: str, cache_field: str) -> tuple[int, str] | None:
    try:
        limit = (group / limit_file).read_text().strip()
        usage = int((group / usage_file).read_text())
        cached = re.search(rf"^{cache_field} (\d+)$", (group / "memory.stat").read_text(), flags=re.MULTILINE)
    except OSError:
        return None
    if not limit.isdigit():
        return None
    text = f"{group / limit_file} allows {readable_size(int(limit))}"
    return int(limit) - usage + int(cached[1] if cached else 0), text
