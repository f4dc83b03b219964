"""Ask a worker process what machine it runs on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from converter.errors import DependencyError
from converter.measurement.benchmark.job import PROBED, Job
from converter.measurement.benchmark.worker_process import WorkerProcess, raise_if_aborted

#: Seconds in which a worker has to describe the machine; it imports SDNQ, which may compile its first function.
_PROBING = 900.0


def probe_machine(device: str, tick: Callable[[], None], timeout: float = _PROBING) -> dict[str, Any]:
    """Describe the machine and the versions that figures depend on, as a worker sees them.

    This process imports neither SDNQ nor diffusers for it, and takes no memory of an accelerator.

    Args:
        device: as in ``GenerateOptions``.
        tick: called while waiting.
        timeout: maximum seconds of the worker.

    Raises:
        UsageError: the name is not that of a device.
        DeviceError: this machine does not have it, or it cannot be used.
        DependencyError: a worker cannot start.
    """
    job = Job(repo="", states={}, offload="none", device=device, dtype="bfloat16", tasks=[], probe=True)
    reason = "it reported nothing"
    with WorkerProcess(job, timeout, tick) as worker:
        for event in worker.events():
            if event["event"] == PROBED:
                environment: dict[str, Any] = event["environment"]
                return environment
            raise_if_aborted(event)
            reason = event.get("reason", reason)
    raise DependencyError(f"a worker process cannot start: {reason}", "Check the installation of torch and diffusers.")
