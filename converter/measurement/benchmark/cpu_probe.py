"""A fixed computation, whose time says how fast the CPUs are at the moment.

Other virtual machines on the same host share its caches and its clock. They made images take up to 60 % longer for
half a minute, and no counter of the system showed that. This computation did: its time and that of images, averaged
over 12 s, had a correlation of 0.97, since both consist of many small operations of torch.
"""

from __future__ import annotations

import time

import torch

#: Additions of a few numbers; these take about 20 ms, which averages out what happens within milliseconds.
_OPERATIONS = 20_000


def probe_ms() -> float:
    """Return the milliseconds that the computation takes."""
    numbers = torch.ones(64)
    started = time.perf_counter()
    for _ in range(_OPERATIONS):
        torch.add(numbers, numbers)
    return 1e3 * (time.perf_counter() - started)
