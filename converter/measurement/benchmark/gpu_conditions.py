"""The clock of a GPU, and why it is slowed down, as NVIDIA's management library (NVML) says while work runs."""

from __future__ import annotations

import statistics
from contextlib import suppress
from types import ModuleType
from typing import Any

#: Seconds between two samples: each one asks the driver twice.
SAMPLE_INTERVAL = 0.25
#: Names of the bits with which NVML says why clocks are low, from nvml.h (nvmlClocksEventReasons).
REASONS = {
    0x1: "gpu_idle",
    0x2: "applications_clocks_setting",
    0x4: "sw_power_cap",
    0x8: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal_slowdown",
    0x40: "hw_thermal_slowdown",
    0x80: "hw_power_brake_slowdown",
    0x100: "display_clock_setting",
}
#: The function has another name in older versions of the library.
_REASON_FUNCTIONS = ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons")


class GpuSampler:
    """Collects samples of one GPU.

    Args:
        nvml: the library, which was started.
        handle: of the GPU.
    """

    def __init__(self, nvml: ModuleType, handle: Any) -> None:
        self._nvml = nvml
        self._handle = handle
        self._reasons_of = next((getattr(nvml, name) for name in _REASON_FUNCTIONS if hasattr(nvml, name)), None)
        self.reset()

    def reset(self) -> None:
        """Forget all samples."""
        self._clocks: list[int] = []
        self._reasons: set[str] | None = None

    def sample(self) -> None:
        """Take one sample; what the GPU does not tell is left out."""
        with suppress(self._nvml.NVMLError):
            self._clocks.append(self._nvml.nvmlDeviceGetClockInfo(self._handle, self._nvml.NVML_CLOCK_SM))
        if self._reasons_of is not None:
            with suppress(self._nvml.NVMLError):
                bits = self._reasons_of(self._handle)
                found = {name for bit, name in REASONS.items() if bits & bit}
                self._reasons = found | (self._reasons or set())

    def found(self) -> dict[str, Any]:
        """Return the mean clock, and all reasons, as rows of the journal have them; None was not measured."""
        return {
            "gpu_clock_mhz": round(statistics.fmean(self._clocks), 1) if self._clocks else None,
            "gpu_throttle_reasons": None if self._reasons is None else sorted(self._reasons),
        }
