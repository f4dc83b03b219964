"""What else happens on a machine while an image is generated: other programs, a host that takes CPU time, swapping.

A session is judged by these only, never by its own times: to drop a time because it is long would make the rest look
more certain than it is. What a machine does not tell is None, not zero.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from converter.measurement.evidence.units import DIGITS

#: A session whose GPU runs slower than this share of the median clock is disturbed.
_CLOCK_SHARE = 0.95


@dataclass(frozen=True)
class Conditions:
    """What else happened while the timed images of a session were generated; None was not measured."""

    seconds: float
    """The time that was watched."""
    cpus: int | None = None
    """How many CPUs the process may use; the next two are about these."""
    other_cpu: float | None = None
    """CPUs that other programs used, on average."""
    steal: float | None = None
    """CPUs that the host of a virtual machine took, on average."""
    swapped_mb: float | None = None
    """Memory that was moved to and from the swap space, in 10^6 bytes."""
    throttled: int | None = None
    """Periods in which a CPU limit of the control group stopped its processes."""
    gpu_clock_mhz: float | None = None
    """Mean clock of the GPU's multiprocessors."""
    gpu_throttle_reasons: Sequence[str] | None = None
    """Names of the reasons for which NVML says that the GPU was slowed down."""

    def to_dict(self) -> dict[str, Any]:
        """Return it as in files of measurements."""
        return asdict(self)


def session_conditions(rows: Sequence[Mapping[str, Any]]) -> Conditions:
    """Add up the ``conditions`` of the images of a session.

    Args:
        rows: of the journal.
    """
    parts = [row["conditions"] for row in rows if "conditions" in row]
    return Conditions(round(sum(part["seconds"] for part in parts), DIGITS))


def disturbances(session: Conditions | None, clocks: Sequence[float | None]) -> list[str]:
    """Return the reasons for which a session counts as disturbed.

    Args:
        session: its conditions; None if it has no times.
        clocks: of the GPU in all sessions of the same model and mode when they were first measured.
    """
    if session is None or session.gpu_clock_mhz is None:
        return []
    median = statistics.median(clock for clock in clocks if clock is not None)
    if session.gpu_clock_mhz >= _CLOCK_SHARE * median:
        return []
    return [f"the GPU's clock was {session.gpu_clock_mhz:.0f} MHz, and {median:.0f} MHz in the median session"]
