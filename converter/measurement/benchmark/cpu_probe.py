"""A fixed computation, whose time says how fast the CPUs are at the moment.

In a virtual machine, the host may let one CPU wait while another one works, and other machines share its caches and
its clock. Images then took up to 60 % longer for half a minute, and no counter of the system showed that. This
computation shows a part of it: over a few seconds, its time and that of images had a correlation of 0.7 to 0.9 in
three series of a minute or two. It has to be of several threads: the work of one had 0.2 to 0.9.
"""

from __future__ import annotations

import time

import torch

#: Products of a few tokens with a small weight; together they take about 25 ms, which averages out what happens within
#: milliseconds.
_PRODUCTS = 100
_TOKENS, _CHANNELS, _OUTPUTS = 64, 256, 1024


def probe_ms() -> float:
    """Return the milliseconds that the computation takes."""
    tokens, weight = torch.ones(_TOKENS, _CHANNELS), torch.ones(_CHANNELS, _OUTPUTS)
    started = time.perf_counter()
    for _ in range(_PRODUCTS):
        torch.matmul(tokens, weight)
    return 1e3 * (time.perf_counter() - started)
