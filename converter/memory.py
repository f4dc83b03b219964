"""How much memory this process has held."""

from __future__ import annotations

import re
from pathlib import Path

_STATUS = Path("/proc/self/status")


def peak_rss_bytes() -> int:
    """The most memory that this process has held so far, in bytes.

    ``getrusage`` would give that of the process that started this one, if it was larger: Linux hands it on.
    """
    (kibibytes,) = re.findall(r"^VmHWM:\s*(\d+) kB$", _STATUS.read_text(), flags=re.MULTILINE)
    return int(kibibytes) * 1024
