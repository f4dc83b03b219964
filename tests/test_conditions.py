"""What else happens on a machine: read from recorded and real counters, added up, and judged."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from converter.measurement.benchmark import counters, meter
from converter.measurement.benchmark.conditions import Conditions, disturbances, session_conditions
from converter.measurement.benchmark.counters import Counters, read_counters
from converter.measurement.benchmark.gpu_conditions import GpuSampler
from tests.conftest import run_python

#: Of CPUs 0 and 1: user nice system idle iowait irq softirq steal guest, in hundredths of a second.
BEFORE = "cpu  9 9 9 9\ncpu0 100 10 20 1000 5 1 2 3 50 0\ncpu1 200 0 30 900 0 0 0 4 0 0\nintr 1 2\n"
AFTER = "cpu  9 9 9 9\ncpu0 180 20 30 1001 9 2 3 5 70 0\ncpu1 260 0 40 950 0 0 0 4 0 0\nintr 1 2\n"
MEMORY = "pgpgin 7\npswpin {}\npswpout 2\npswp 1\n"


def process(folder: Path, number: int, session: int, *times: int) -> None:
    (folder / str(number)).mkdir(exist_ok=True)
    fields = ["S", 1, 1, session, *([0] * 7), *times, 20, 0, 1]
    (folder / str(number) / "stat").write_text(f"{number} (a (bad) name) {' '.join(map(str, fields))}\n")


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A /proc of two CPUs, with this session, its parent and another program, and the control groups /a and /a/b."""
    monkeypatch.setattr(counters, "_PROC", tmp_path)
    monkeypatch.setattr(counters, "_CGROUPS", tmp_path / "groups")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    for name in ("self", "groups/a/b"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "self" / "cgroup").write_text("9:cpu:/old\n0::/a/b\n")
    write(tmp_path, BEFORE, 3, 5, 0)
    return tmp_path


def write(system: Path, stat: str, swapped: int, throttled: int, ticks: int) -> None:
    """Write a state; this session's two processes and its parent have worked so many ticks, others much."""
    (system / "stat").write_text(stat)
    (system / "vmstat").write_text(MEMORY.format(swapped))
    (system / "groups" / "a" / "cpu.stat").write_text(f"usage_usec 77\nnr_throttled {throttled}\n")
    (system / "groups" / "a" / "b" / "cpu.stat").write_text("usage_usec 77\nnr_throttled 1\nbroken\n")
    session = os.getsid(0)
    process(system, 11, session, 10 + ticks, 1, 4, 0)
    process(system, 12, session, 0, 0, 0, ticks)
    process(system, os.getppid(), 1, ticks, 0, 9 * ticks, 0)
    process(system, 14, 1, 99 * ticks, 0, 0, 0)
    (system / "15").mkdir(exist_ok=True)


def test_the_time_of_others_is_what_the_cpus_worked_less_our_own(system: Path) -> None:
    before = read_counters()
    write(system, AFTER, 250 * 10**6 // os.sysconf("SC_PAGE_SIZE") + 3, 7, 20)
    found = read_counters().since(before)
    assert found.pop("seconds") < 5
    # The CPUs worked 1.72 s, the two processes and the parent 0.6 s of that; guests are a part of the users' time.
    assert found == {
        "cpus": 2,
        "other_cpu_s": 1.12,
        "steal_s": 0.02,
        "swapped_mb": pytest.approx(250, 1e-3),
        "throttled": 2,
    }


@pytest.mark.parametrize(
    ("file", "content", "unknown"),
    [
        ("stat", None, {"other_cpu_s", "steal_s"}),
        ("stat", "cpu0 0 0 0 0 0 0 0 0 0 0\ncpu1 0 0 0 0 0 0 0 0 0 0\n", {"other_cpu_s", "steal_s"}),
        ("stat", "cpu0 1 2 3 4\ncpu1 1 2 3 4\n", {"other_cpu_s", "steal_s"}),
        ("stat", "cpu0 1 2 3 4 5 6 7 8\n", {"other_cpu_s", "steal_s"}),
        ("stat", BEFORE.replace("900", "nine"), {"other_cpu_s", "steal_s"}),
        # In some containers it stands still.
        ("stat", BEFORE, {"other_cpu_s", "steal_s"}),
        ("11/stat", None, {"other_cpu_s"}),
        ("vmstat", None, {"swapped_mb"}),
        ("vmstat", "pgpgin 3\n", {"swapped_mb"}),
        ("self/cgroup", None, {"throttled"}),
        ("self/cgroup", "9:cpu:/a/b\n", {"throttled"}),
        ("self/cgroup", "0::/../../a\n", {"throttled"}),
        ("groups/a/b/cpu.stat", None, set()),
    ],
)
def test_what_cannot_be_read_is_unknown(file: str, content: str | None, unknown: set[str], system: Path) -> None:
    before = read_counters()
    write(system, AFTER, 3, 5, 20)
    if file == "11/stat":
        (system / "12" / "stat").unlink()
    (system / file).unlink() if content is None else (system / file).write_text(content)
    found = read_counters().since(before)
    assert {key for key, value in found.items() if value is None} == unknown


def test_counters_of_other_cpus_are_not_compared(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = read_counters()
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    write(system, AFTER, 3, 5, 20)
    found = read_counters().since(before)
    assert (found["cpus"], found["other_cpu_s"], found["steal_s"]) == (1, None, None)


#: Prints the reasons while a program of another session is busy, and the CPU time that one of this session took: as its
#: system counted it, and as it was seen here.
WATCHING = """
import json, os, subprocess, sys, time
from converter.measurement.benchmark import counters
from converter.measurement.benchmark.conditions import disturbances, session_conditions
busy = [sys.executable, "-c", "while True: pass"]
with subprocess.Popen(busy, start_new_session=True) as other:
    before = counters.read_counters()
    time.sleep(0.8)
    found = session_conditions([{"conditions": counters.read_counters().since(before)}])
    other.kill()
with subprocess.Popen(busy) as own:
    before_s = counters._own_seconds()
    time.sleep(0.3)
    seen_s = counters._own_seconds() - before_s
    own.kill()
    worked_s = os.wait4(own.pid, 0)[2].ru_utime
    own.returncode = 0
print(json.dumps([disturbances(found, []), worked_s, seen_s]))
"""


def test_a_busy_program_is_seen_and_our_own_processes_are_not() -> None:
    """On any machine: it gets its share of the CPUs, or others take it. In a session without the other tests."""
    done = run_python(WATCHING, start_new_session=True)
    assert done.returncode == 0, done.stderr
    reasons, worked_s, seen_s = json.loads(done.stdout)
    assert [text for text in reasons if text.startswith("other programs used")]
    assert worked_s > 0.02
    assert seen_s >= worked_s / 3


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([], None),
        ([{}], None),
        # Small negative times are due to the clock; they count, so that the sum is right, which is never negative.
        ([{"other_cpu_s": -0.01}, {"other_cpu_s": 0.11}], {"other_cpu": 0.05}),
        ([{"other_cpu_s": -0.01, "steal_s": 0.2}], {"other_cpu": 0.0, "steal": 0.2}),
        ([{"other_cpu_s": 1.0}, {"other_cpu_s": None}], {}),
        (
            [{"seconds": 0.4, "other_cpu_s": 0.4, "steal_s": 0.0, "swapped_mb": 5.0}],
            {"seconds": 0.4, "swapped_mb": 5.0},
        ),
        (
            [{"swapped_mb": 1.5, "throttled": 2}, {"swapped_mb": 2.0, "throttled": 1}],
            {"swapped_mb": 3.5, "throttled": 3},
        ),
        ([{"gpu_clock_mhz": 1500}, {"seconds": 3.0, "gpu_clock_mhz": 1900}], {"gpu_clock_mhz": 1800.0}),
        ([{"cpu_probe_ms": 20.0}, {"seconds": 3.0, "cpu_probe_ms": 22.0}], {"cpu_probe_ms": 21.0}),
        ([{"cpu_probe_ms": 20.0}, {"cpu_probe_ms": None}], {}),
        # A short image may have no sample.
        ([{"gpu_clock_mhz": 1500}, {"gpu_clock_mhz": None}], {"gpu_clock_mhz": 1500.0}),
        (
            [{"gpu_throttle_reasons": ["b", "a"]}, {"gpu_throttle_reasons": ["b"]}, {"gpu_throttle_reasons": None}],
            {"gpu_throttle_reasons": ["a", "b"]},
        ),
    ],
)
def test_conditions_of_images_are_added_up(parts: list[dict[str, Any]], expected: dict[str, Any] | None) -> None:
    rows = [{"conditions": {"seconds": 1.0, "cpus": 2, **part}} if part else {} for part in parts]
    found = session_conditions(rows)
    if expected is None:
        assert found is None
        return
    total = sum(part.get("seconds", 1.0) for part in parts)
    assert found == Conditions(**{"seconds": total, "cpus": 2, **expected})
    assert set(found.to_dict()) == set(Conditions.__dataclass_fields__)


#: Sessions with a clock, a time of the fixed computation, both or neither; the usual ones are 1500 MHz and 20 ms.
OTHERS = [
    Conditions(10.0, 2, gpu_clock_mhz=clock, cpu_probe_ms=probe)
    for clock, probe in ((1500.0, 20.0), (None, 29.0), (1500.0, None), (1400.0, 19.0))
]


@pytest.mark.parametrize(
    ("changes", "reasons"),
    [
        ({}, []),
        ({"other_cpu": 0.14, "steal": 0.05, "swapped_mb": 10.0, "gpu_clock_mhz": 1425.0, "cpu_probe_ms": 21.0}, []),
        ({"other_cpu": 0.15}, ["other programs used 0.15 of 2 CPUs"]),
        ({"other_cpu": 1.3, "cpus": 64}, []),
        ({"other_cpu": 1.4, "cpus": 64}, ["other programs used 1.40 of 64 CPUs"]),
        ({"steal": 0.06}, ["the host took 0.06 of 2 CPUs"]),
        ({"swapped_mb": 10.5}, ["10 MB of memory were swapped in 10 s"]),
        # These belong to the machine or to the model.
        ({"throttled": 50, "gpu_throttle_reasons": ["gpu_idle", "sw_power_cap", "applications_clocks_setting"]}, []),
        ({"gpu_throttle_reasons": ["hw_thermal_slowdown"]}, ["heat slowed the GPU down (hardware)"]),
        ({"gpu_clock_mhz": 1424.0}, ["the GPU's clock was 1424 MHz, and usually 1500 MHz"]),
        ({"cpu_probe_ms": 21.1}, ["the CPU was slow: a fixed computation took 21.1 ms, and usually 20.0 ms"]),
    ],
)
def test_what_disturbs_a_session(changes: dict[str, Any], reasons: list[str]) -> None:
    assert disturbances(replace(Conditions(10.0, 2), **changes), OTHERS) == reasons


def test_a_long_time_alone_disturbs_nothing() -> None:
    assert disturbances(Conditions(1e6, 2), []) == []
    assert disturbances(None, OTHERS) == []


class Failing(Exception):
    """What NVML raises."""


def fake_nvml(**functions: Any) -> Any:
    return SimpleNamespace(NVMLError=Failing, NVML_CLOCK_SM=1, nvmlInit=lambda: None, **functions)


def fails(*_: object) -> int:
    raise Failing


def test_a_gpu_is_sampled() -> None:
    clocks, bits = iter([1500, 1600]), iter([0x4, 0x21])
    now = "nvmlDeviceGetCurrentClocksEventReasons"
    before = "nvmlDeviceGetCurrentClocksThrottleReasons"
    sampler = GpuSampler(fake_nvml(nvmlDeviceGetClockInfo=lambda *_: next(clocks), **{before: lambda _: next(bits)}), 0)
    assert sampler.found() == {"gpu_clock_mhz": None, "gpu_throttle_reasons": None}
    sampler.sample()
    sampler.sample()
    assert sampler.found() == {
        "gpu_clock_mhz": 1550.0,
        "gpu_throttle_reasons": ["gpu_idle", "sw_power_cap", "sw_thermal_slowdown"],
    }
    sampler.reset()
    assert sampler.found() == {"gpu_clock_mhz": None, "gpu_throttle_reasons": None}
    # A GPU that tells nothing, and one that is never slowed down.
    for functions, reasons in (({"nvmlDeviceGetClockInfo": fails, now: fails}, None), ({now: lambda _: 0}, [])):
        sampler = GpuSampler(fake_nvml(**{"nvmlDeviceGetClockInfo": fails, **functions}), 0)
        sampler.sample()
        assert sampler.found() == {"gpu_clock_mhz": None, "gpu_throttle_reasons": reasons}
    sampler = GpuSampler(fake_nvml(nvmlDeviceGetClockInfo=fails), 0)
    sampler.sample()
    assert sampler.found()["gpu_throttle_reasons"] is None


def test_the_meter_samples_a_gpu_while_work_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = fake_nvml(
        nvmlDeviceGetHandleByUUID=lambda name: name,
        nvmlDeviceGetMemoryInfo=lambda _: SimpleNamespace(used=1),
        nvmlDeviceGetClockInfo=lambda *_: 1500,
    )
    monkeypatch.setattr(meter, "load_nvml", lambda: nvml)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="1"))
    monkeypatch.setattr(meter, "_GPU_ROUNDS", 1)
    found = meter.Meter(torch.device("cuda"))
    with found.watching():
        time.sleep(0.2)
    assert found.gpu_conditions() == {"gpu_clock_mhz": 1500.0, "gpu_throttle_reasons": None}
    with found.watching():
        pass
    assert found.gpu_conditions()["gpu_clock_mhz"] is None
    monkeypatch.setattr(meter, "load_nvml", lambda: fake_nvml(nvmlDeviceGetHandleByUUID=fails))
    assert meter.Meter(torch.device("cuda")).gpu_conditions() == {}
    assert meter.Meter(torch.device("cpu")).gpu_conditions() == {}


def test_what_no_counter_says_is_unknown() -> None:
    zero = Counters(0.0, frozenset({0}), None, None, None, None, None)
    assert zero.since(zero) == {
        **dict.fromkeys(("other_cpu_s", "steal_s", "swapped_mb", "throttled")),
        "seconds": 0.0,
        "cpus": 1,
    }


def test_names_and_counters_of_control_groups_may_be_any_bytes(system: Path) -> None:
    (system / "self" / "cgroup").write_bytes(b"0::/\xff\n")
    assert read_counters().throttled is None
    (system / "self" / "cgroup").write_bytes(b"0::/a\n")
    (system / "groups" / "a" / "cpu.stat").write_bytes(b"nr_throttled \xff\n")
    assert read_counters().throttled is None
