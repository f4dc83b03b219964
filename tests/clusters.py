"""What tests with clusters share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import psutil  # type: ignore[import-untyped]

from converter.cluster.processes import Process, read_process


def descendants() -> Iterator[Process]:
    """Yield the processes that this one started, directly or not, as far as their parents live."""
    for child in psutil.Process().children(recursive=True):
        with suppress(OSError):
            yield read_process(child.pid)[1]
