"""Measure time and memory of work, and of its stages.

On CUDA, time is measured between two events of the stream, and memory by torch's allocator. Elsewhere, time is measured
by the clock. The resident set of the process, which includes pages of mapped files, is measured everywhere; with NVML
also the memory in use on the device, by all processes.

torch and Linux can reset peaks. The peak of the whole is the largest of its stages.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from converter.measurement.benchmark.gpu_conditions import SAMPLE_INTERVAL, GpuSampler
from converter.measurement.evidence.units import DIGITS
from converter.memory import peak_rss_bytes, rss_bytes

_CLEAR_REFS = Path("/proc/self/clear_refs")
#: Resets the peak of the resident set; see proc(5).
_RESET_PEAK = "5"
#: Seconds between two samples.
_INTERVAL = 0.02
#: Every how many samples of memory the state of a GPU is sampled.
_GPU_ROUNDS = round(SAMPLE_INTERVAL / _INTERVAL)


class Meter:
    """Measures work on a device.

    Args:
        device: where the work runs.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._is_cuda = device.type == "cuda"
        self._resets_rss = _can_reset_rss()
        self._device_memory, self._gpu = _nvml_sources(device) if self._is_cuda else (None, None)
        self._sampled: dict[str, int] = {}
        #: So that no sample from before a reset is stored after it.
        self._sampling = threading.Lock()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Sample memory for which no peak is kept, and the state of a GPU, in a thread, while the block runs."""
        sources = {} if self._device_memory is None else {"device": self._device_memory}
        if not self._resets_rss:
            sources["rss"] = rss_bytes
        stopped = threading.Event()
        if self._gpu is not None:
            self._gpu.reset()

        def sample() -> None:
            for number in itertools.count(1):
                if stopped.wait(_INTERVAL):
                    return
                if self._gpu is not None and number % _GPU_ROUNDS == 0:
                    self._gpu.sample()
                with self._sampling:
                    for name, source in sources.items():
                        self._sampled[name] = max(self._sampled.get(name, 0), source())

        sampler = threading.Thread(target=sample, name="memory sampler", daemon=True)
        is_sampled = bool(sources) or self._gpu is not None
        if is_sampled:
            sampler.start()
        try:
            yield
        finally:
            stopped.set()
            if is_sampled:
                sampler.join()

    def gpu_conditions(self) -> dict[str, Any]:
        """Return the clock of the GPU while the last block ran, and why it was slowed down; empty on a CPU."""
        return {} if self._gpu is None else self._gpu.found()

    def synchronize(self) -> None:
        """Wait until the device has done its work."""
        if self._is_cuda:
            torch.cuda.synchronize(self.device)

    def reset(self) -> None:
        """Reset all peaks."""
        if self._is_cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
        if self._resets_rss:
            _CLEAR_REFS.write_text(_RESET_PEAK)
        with self._sampling:
            self._sampled.clear()

    def peaks(self) -> dict[str, int]:
        """Return the peaks since the last reset in bytes, by kind of memory."""
        found = {"rss": peak_rss_bytes() if self._resets_rss else max(rss_bytes(), self._sampled.get("rss", 0))}
        if "device" in self._sampled:
            found["device"] = self._sampled["device"]
        if self._is_cuda:
            found["allocated"] = torch.cuda.max_memory_allocated(self.device)
            found["reserved"] = torch.cuda.max_memory_reserved(self.device)
        return found

    def now(self) -> Any:
        """Return the current moment, on the device's own clock."""
        if not self._is_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def seconds(self, start: Any, end: Any) -> float:
        """Return the seconds between two moments; the device must have reached the second one."""
        if not self._is_cuda:
            return float(end - start)
        return float(start.elapsed_time(end)) / 1000


@dataclass(frozen=True)
class _Part:
    """A stage, or a part of it between two pauses."""

    stage: str
    start: Any
    end: Any
    peaks: dict[str, int]


class Stopwatch:
    """Measures time and peak memory of consecutive stages.

    Args:
        meter: of the device.
        first: name of the first stage, which starts now.
    """

    def __init__(self, meter: Meter, first: str) -> None:
        self._meter = meter
        self._stage = first
        self._parts: list[_Part] = []
        meter.reset()
        self._start = meter.now()

    def begin(self, stage: str) -> None:
        """End the current stage and start another, unless it has started already."""
        if stage not in (self._stage, *(part.stage for part in self._parts)):
            self._end_part()
            self._stage = stage

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out what the block does: its time, and its peaks of memory."""
        self._end_part()
        try:
            yield
        finally:
            self._meter.reset()
            self._start = self._meter.now()

    def stop(self) -> dict[str, Any]:
        """End the last stage.

        Returns:
            ``time_s`` and ``peak_…_gb`` of the whole, and under ``stages`` those of each stage by its name.
        """
        self._end_part()
        self._meter.synchronize()
        stages: dict[str, list[_Part]] = {}
        for part in self._parts:
            stages.setdefault(part.stage, []).append(part)
        return {
            **self._figures(self._parts),
            "stages": {name: self._figures(parts) for name, parts in stages.items()},
        }

    def _end_part(self) -> None:
        end = self._meter.now()
        self._parts.append(_Part(self._stage, self._start, end, self._meter.peaks()))
        self._meter.reset()
        self._start = end

    def _figures(self, parts: Sequence[_Part]) -> dict[str, float]:
        seconds = sum(self._meter.seconds(part.start, part.end) for part in parts)
        kinds = sorted({kind for part in parts for kind in part.peaks})
        peaks = {kind: max(part.peaks.get(kind, 0) for part in parts) for kind in kinds}
        return {
            "time_s": round(seconds, DIGITS),
            **{f"peak_{kind}_gb": round(size / 1e9, DIGITS) for kind, size in peaks.items()},
        }


def _can_reset_rss() -> bool:
    try:
        _CLEAR_REFS.write_text(_RESET_PEAK)
    except OSError:
        # Some containers forbid it.
        return False
    return True


def _nvml_sources(device: torch.device) -> tuple[Callable[[], int] | None, GpuSampler | None]:
    """Return a function that gives the bytes in use on a device, and a sampler of its state; None without NVML."""
    nvml = load_nvml()
    if nvml is None:
        return None, None
    identity = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    with suppress(nvml.NVMLError):
        handle = nvml.nvmlDeviceGetHandleByUUID(identity)
        return lambda: int(nvml.nvmlDeviceGetMemoryInfo(handle).used), GpuSampler(nvml, handle)
    return None, None


def load_nvml() -> ModuleType | None:
    """Import and start NVIDIA's management library; None if it is not installed or does not work."""
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
