"""What else happened on the machine during a session, and whether that disturbed it.

A session is judged by other programs, the host, swapping, the GPU's state and the time of a fixed computation, never by
its own times: to leave out a time because it is long would make the rest look more certain than it is. What was not
measured is None, not zero.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from converter.measurement.evidence.units import DIGITS

#: Seconds of the shortest session whose CPU time is judged: the system counts it in hundredths of a second.
_SHORTEST = 0.5
#: CPU time of other programs that does not count, in CPUs: the first, and the second more for each CPU. An idle
#: desktop takes about half of that.
_OTHER_CPU, _OTHER_CPU_EACH = 0.1, 0.02
#: CPU time that the host may take, in CPUs.
_STEAL = 0.05
#: Memory that may be swapped in a second, in 10^6 bytes.
_SWAPPED_MB = 1.0
#: A session whose GPU, or CPU, runs slower than this share of the median is disturbed.
_CLOCK_SHARE = 0.95
#: What slows a GPU down from outside. Its power cap, its settings, and being idle belong to the machine or the model.
_DISTURBING = {
    "hw_slowdown": "the hardware slowed the GPU down",
    "hw_power_brake_slowdown": "the power supply slowed the GPU down",
    "hw_thermal_slowdown": "heat slowed the GPU down (hardware)",
    "sw_thermal_slowdown": "heat slowed the GPU down (driver)",
}


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
    cpu_probe_ms: float | None = None
    """Mean time of a fixed computation before and after each image, where the CPU generates it."""
    gpu_clock_mhz: float | None = None
    """Mean clock of the GPU's multiprocessors."""
    gpu_throttle_reasons: Sequence[str] | None = None
    """Names of the reasons for which NVML says that the GPU was slowed down."""

    def to_dict(self) -> dict[str, Any]:
        """Return it as in files of measurements."""
        return asdict(self)


def session_conditions(rows: Sequence[Mapping[str, Any]]) -> Conditions | None:
    """Add up the ``conditions`` of the images of a session; None if no image has them.

    Args:
        rows: of the journal.
    """
    parts = [row["conditions"] for row in rows if "conditions" in row]
    if not parts:
        return None
    seconds = sum(part["seconds"] for part in parts)

    def added(name: str) -> Any:
        values = [part.get(name) for part in parts]
        return None if None in values else sum(values)

    def per_second(name: str) -> float | None:
        total = added(name)
        return None if total is None or seconds < _SHORTEST else round(max(0.0, total / seconds), DIGITS)

    swapped, probes = added("swapped_mb"), added("cpu_probe_ms")
    clocks = [(clock, part["seconds"]) for part in parts if (clock := part.get("gpu_clock_mhz")) is not None]
    reasons = [found for part in parts if (found := part.get("gpu_throttle_reasons")) is not None]
    watched = sum(weight for _, weight in clocks)
    return Conditions(
        seconds=round(seconds, DIGITS),
        cpus=parts[-1].get("cpus"),
        other_cpu=per_second("other_cpu_s"),
        steal=per_second("steal_s"),
        swapped_mb=None if swapped is None else round(swapped, DIGITS),
        throttled=added("throttled"),
        cpu_probe_ms=None if probes is None else round(probes / len(parts), DIGITS),
        gpu_clock_mhz=round(sum(clock * weight for clock, weight in clocks) / watched, 1) if watched else None,
        gpu_throttle_reasons=sorted({reason for found in reasons for reason in found}) if reasons else None,
    )


def disturbances(session: Conditions | None, others: Sequence[Conditions]) -> list[str]:
    """Return the reasons for which a session counts as disturbed, in plain words.

    Args:
        session: its conditions; None if it has no times.
        others: all sessions of the same model and mode when they were first measured.
    """
    if session is None:
        return []
    reasons = []
    cpus = session.cpus or 1
    if (session.other_cpu or 0) > _OTHER_CPU + _OTHER_CPU_EACH * cpus:
        reasons.append(f"other programs used {session.other_cpu:.2f} of {cpus} CPUs")
    if (session.steal or 0) > _STEAL:
        reasons.append(f"the host took {session.steal:.2f} of {cpus} CPUs")
    if (session.swapped_mb or 0) > _SWAPPED_MB * session.seconds:
        reasons.append(f"{session.swapped_mb:.0f} MB of memory were swapped in {session.seconds:.0f} s")
    reasons += [text for name, text in _DISTURBING.items() if name in (session.gpu_throttle_reasons or ())]
    clock, usual = session.gpu_clock_mhz, _median([other.gpu_clock_mhz for other in others])
    if clock is not None and usual is not None and clock < _CLOCK_SHARE * usual:
        reasons.append(f"the GPU's clock was {clock:.0f} MHz, and usually {usual:.0f} MHz")
    probe, usual = session.cpu_probe_ms, _median([other.cpu_probe_ms for other in others])
    if probe is not None and usual is not None and probe * _CLOCK_SHARE > usual:
        reasons.append(f"the CPU was slow: a fixed computation took {probe:.1f} ms, and usually {usual:.1f} ms")
    return reasons


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
