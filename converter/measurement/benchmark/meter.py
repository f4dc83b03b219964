"""Time and memory of a piece of work, and of the stages inside it.

On CUDA, time is that between two events of the stream, and memory that of torch's allocator. Elsewhere, time is that of
the clock. The memory of the process (its resident set, which counts pages of mapped files) is measured everywhere, and
with NVML the memory that is in use on the device, by all processes.

Peaks can be reset, by torch and by Linux; one of a whole is the largest of its stages.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import torch

from converter.measurement.evidence.units import DIGITS
from converter.memory import peak_rss_bytes, rss_bytes

_CLEAR_REFS = Path("/proc/self/clear_refs")
#: What resets the peak of the resident set; proc(5).
_RESET_PEAK = "5"
#: Seconds between two looks, where nobody keeps a peak.
_INTERVAL = 0.02


class Meter:
    """Measures work on a device.

    Args:
        device: where the work runs.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._is_cuda = device.type == "cuda"
        self._resets_rss = _can_reset_rss()
        self._device_memory = _nvml_memory(device) if self._is_cuda else None
        self._sampled: dict[str, int] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look at what keeps no peak of its own, for as long as the block runs."""
        sources = {} if self._device_memory is None else {"device": self._device_memory}
        if not self._resets_rss:
            sources["rss"] = rss_bytes
        with _Sampler(sources, self._sampled):
            yield

    def synchronize(self) -> None:
        """Wait for what was asked of the device."""
        if self._is_cuda:
            torch.cuda.synchronize(self.device)

    def reset(self) -> None:
        """Let peaks begin anew."""
        if self._is_cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
        if self._resets_rss:
            _CLEAR_REFS.write_text(_RESET_PEAK)
        self._sampled.clear()

    def peaks(self) -> dict[str, int]:
        """Bytes at most since the last reset, by what was measured."""
        found = {"rss": peak_rss_bytes() if self._resets_rss else max(rss_bytes(), self._sampled.get("rss", 0))}
        if "device" in self._sampled:
            found["device"] = self._sampled["device"]
        if self._is_cuda:
            found["allocated"] = torch.cuda.max_memory_allocated(self.device)
            found["reserved"] = torch.cuda.max_memory_reserved(self.device)
        return found

    def now(self) -> Any:
        """A moment, on the device's own time."""
        if not self._is_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def seconds(self, start: Any, end: Any) -> float:
        """Between two moments; the device must have come to the second one."""
        if not self._is_cuda:
            return float(end - start)
        return float(start.elapsed_time(end)) / 1000


class Stopwatch:
    """Time and peak memory of stages that follow each other.

    Args:
        meter: of the device.
        first: name of the first stage, which begins now.
    """

    def __init__(self, meter: Meter, first: str) -> None:
        self._meter = meter
        self._names = [first]
        self._peaks: list[dict[str, int]] = []
        meter.reset()
        self._moments = [meter.now()]

    def begin(self, stage: str) -> None:
        """End the current stage and begin another, if it has not begun yet."""
        if stage not in self._names:
            self._end_stage()
            self._names.append(stage)

    def stop(self) -> dict[str, Any]:
        """End the last stage.

        Returns:
            ``time_s`` and ``peak_…_gb`` of the whole, and under ``stages`` those of each stage by its name.
        """
        self._end_stage()
        self._meter.synchronize()
        pairs = zip(self._moments, self._moments[1:], strict=False)
        times = [self._meter.seconds(*pair) for pair in pairs]
        names = {name for peaks in self._peaks for name in peaks}
        whole = {name: max(peaks.get(name, 0) for peaks in self._peaks) for name in names}
        return {
            **_figures(self._meter.seconds(self._moments[0], self._moments[-1]), whole),
            "stages": {
                name: _figures(seconds, peaks)
                for name, seconds, peaks in zip(self._names, times, self._peaks, strict=True)
            },
        }

    def _end_stage(self) -> None:
        self._moments.append(self._meter.now())
        self._peaks.append(self._meter.peaks())
        self._meter.reset()


def _figures(seconds: float, peaks: dict[str, int]) -> dict[str, float]:
    return {
        "time_s": round(seconds, DIGITS),
        **{f"peak_{name}_gb": round(size / 1e9, DIGITS) for name, size in sorted(peaks.items())},
    }


def _can_reset_rss() -> bool:
    try:
        _CLEAR_REFS.write_text(_RESET_PEAK)
    except OSError:
        # Some containers forbid it.
        return False
    return True


def _nvml_memory(device: torch.device) -> Any:
    """A function that gives the bytes in use on a device; None without NVML."""
    nvml = load_nvml()
    if nvml is None:
        return None
    identity = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    with suppress(nvml.NVMLError):
        handle = nvml.nvmlDeviceGetHandleByUUID(identity)
        return lambda: int(nvml.nvmlDeviceGetMemoryInfo(handle).used)
    return None


def load_nvml() -> ModuleType | None:
    """NVIDIA's management library, started; None where it is not there."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    library: ModuleType = pynvml
    return library


class _Sampler:
    """Looks at figures again and again in a thread, and keeps the largest.

    Args:
        sources: functions that give bytes, by name.
        largest: where they go; emptied by others.
    """

    def __init__(self, sources: dict[str, Any], largest: dict[str, int]) -> None:
        self._sources = sources
        self._largest = largest
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory sampler", daemon=True) if sources else None

    def _run(self) -> None:
        while not self._stopped.wait(_INTERVAL):
            for name, source in self._sources.items():
                self._largest[name] = max(self._largest.get(name, 0), source())

    def __enter__(self) -> None:
        if self._thread is not None:
            self._thread.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()
