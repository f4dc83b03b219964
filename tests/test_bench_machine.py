"""What a benchmark finds out about the machine: its parts, times, peaks of memory, and what images will need."""

from __future__ import annotations

import mmap
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from converter._version import __version__
from converter.errors import DependencyError, DeviceError
from converter.measurement.benchmark import machine
from converter.measurement.benchmark.bench import note_environment
from converter.measurement.benchmark.machine import describe_machine
from converter.measurement.benchmark.machine_probe import probe_machine
from converter.measurement.benchmark.meter import Meter, Stopwatch
from converter.measurement.generation.memory import predict_memory
from converter.measurement.generation.options import OFFLOADS, GenerateOptions
from converter.measurement.generation.repo import open_pipeline
from converter.measurement.generation.settings import choose_settings
from converter.memory import _MEMINFO, _kibibytes
from tests.benches import LIMIT
from tests.conftest import edit_json, time_limit
from tests.expected import check_expected
from tests.generations import change_tensors, packed
from tests.reporters import Notes

#: What is known of a GPU only.
GPU_ONLY = ("cuda", "driver", "cudnn", "triton", "compute_capability", "gpu_memory_gb")


def test_a_worker_describes_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = describe_machine("cpu")
    names = ("torch", "sdnq", "diffusers", "transformers", "safetensors", "accelerate")
    size = {"cpu_cores": len(os.sched_getaffinity(0)), "threads": torch.get_num_threads()}
    size["memory_gb"] = round(_kibibytes(_MEMINFO, "MemTotal") / 1e9, 1)
    system = {"platform": f"{os.uname().sysname} {os.uname().machine}", "python": platform.python_version()}
    device = {"hardware": here["hardware"], "device": "cpu", **dict.fromkeys(GPU_ONLY)}
    device |= {"int8_kernel": "torch", "sdnq_compiles": False, "sdnq_environment": {"SDNQ_USE_TORCH_COMPILE": "0"}}
    device |= {"mxfp4": "unpacked", "waiting_threads": "OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=1000"}
    assert here == {**device, **size, **system, "lensconv": __version__, **{name: version(name) for name in names}}
    # The cores that this process may use count, as in a container.
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    cores = describe_machine("cpu")["cpu_cores"]
    os.sched_setaffinity(0, allowed)
    assert cores == 1
    with time_limit(LIMIT):
        # What a worker lacks is said as it is, with its hint.
        (tmp_path / "sdnq.py").write_text("import absent")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        with pytest.raises(DependencyError, match=r"No module named 'absent'$") as caught:
            probe_machine("cpu", lambda: None)
        assert caught.value.hint == "pip install --upgrade absent"
        monkeypatch.delenv("PYTHONPATH")
        with pytest.raises(DependencyError, match=r"cannot start: was stopped: no progress for 0\.01 s"):
            probe_machine("cpu", lambda: None, 0.01)
        if not torch.cuda.is_available():
            with pytest.raises(DeviceError, match="sees no CUDA GPU"):
                probe_machine("cuda", lambda: None)


def test_what_the_machine_calls_its_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without NVIDIA's library, with one that fails, and with one that works."""
    file = tmp_path / "file"
    for name in ("_PROCESSORS", "_DRIVER"):
        monkeypatch.setattr(machine, name, file)
    broken = SimpleNamespace(NVMLError=OSError, nvmlInit=lambda: file.read_text("ascii"))
    working = SimpleNamespace(NVMLError=OSError, nvmlInit=lambda: None, nvmlSystemGetDriverVersion=lambda: "570.1")
    found = []
    for library, text in (
        (None, "x\nmodel name\t: Some CPU \nmodel name: Other"),
        (None, "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat"),
        (broken, None),
        (working, None),
    ):
        monkeypatch.setitem(sys.modules, "pynvml", library)
        file.write_text(text) if text else file.unlink(missing_ok=True)
        found.append((machine._processor(), machine._driver()))
    unnamed = f"CPU {os.uname().machine}"
    assert found == [("CPU Some CPU", None), (unnamed, "535.104.05"), (unnamed, None), (unnamed, "570.1")]


def test_what_is_known_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of which this machine needs none, except for what torch says of it."""
    properties = SimpleNamespace(major=9, minor=0, total_memory=85_029_158_912)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    for number, cudnn in ((91002, "9.10.2"), (8902, "8.9.2"), (None, None)):
        monkeypatch.setattr(torch.backends.cudnn, "version", lambda found=number: found)
        known = machine._describe_gpu(torch.device("cuda:0"))
        assert tuple(known) == GPU_ONLY
        assert [known[name] for name in ("cuda", "cudnn", "compute_capability", "gpu_memory_gb")] == [
            *("12.8", cudnn, "9.0", 85.0)
        ]
    notes = []
    for kernel, compiles in (("triton", True), ("torch", True), ("none", False)):
        note_environment({"cuda": "12.8", "int8_kernel": kernel, "sdnq_compiles": compiles}, said := Notes())
        notes.append([text.partition(",")[0] for text in said.texts])
    slow = ["quantized layers multiply dequantized weights", "SDNQ does not compile its functions"]
    assert notes == [[], ["quantized layers multiply with torch"], slow]
    note_environment({"cuda": None, "mxfp4": "unpacked"}, said := Notes())
    assert said.texts[0].startswith("the MXFP4 text encoder cannot stay packed here, and is unpacked")
    has_triton = find_spec("triton") is not None
    assert (known["triton"] is not None) == has_triton


def test_sdnq_may_compile_on_a_gpu_where_experts_stay_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, SDNQ may not, and experts do not."""
    asked = []
    monkeypatch.setattr(machine, "load_library", lambda _, compiles=False: asked.append(compiles))
    monkeypatch.setattr(machine, "choose_device", torch.device)
    monkeypatch.setattr(machine, "find_int8_kernel", lambda _: SimpleNamespace(name="torch"))
    monkeypatch.setattr(machine, "_describe_gpu", lambda _: {})
    monkeypatch.setattr(machine, "use_device", lambda _: None)
    monkeypatch.setattr(machine, "unpacking_reason", lambda: "")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "A GPU")
    found = [describe_machine(name) for name in ("cuda:0", "cpu")]
    assert asked == [True, False]
    assert [each["mxfp4"] for each in found] == ["packed", "unpacked"]
    assert found[0]["hardware"] == "A GPU"


@contextmanager
def grown_memory() -> Iterator[None]:
    """0.2 GB are resident during the block. A freed array could stay in the heap, or come from it."""
    with mmap.mmap(-1, 200_000_000, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as pages:
        pages[::4096] = bytes(len(pages[::4096]))
        yield


def test_a_stopwatch_gives_times_and_peaks_of_stages() -> None:
    meter = Meter(torch.device("cpu"))
    with meter.watching():
        watch = Stopwatch(meter, "first")
        time.sleep(0.05)
        watch.begin("second")
        with grown_memory():
            pass
        watch.begin("second")
        watch.begin("third")
        figures = watch.stop()
    stages = figures["stages"]
    assert list(stages) == ["first", "second", "third"]
    assert stages["first"]["time_s"] >= 0.05
    assert sum(stage["time_s"] for stage in stages.values()) == pytest.approx(figures["time_s"], abs=0.002)
    grown = stages["second"]["peak_rss_gb"] - stages["first"]["peak_rss_gb"]
    assert grown == pytest.approx(0.2, abs=0.02)
    assert stages["second"] == {key: round(figure, 3) for key, figure in stages["second"].items()}
    # The peak of a stage does not count for the next one.
    assert stages["third"]["peak_rss_gb"] < stages["second"]["peak_rss_gb"] - 0.15
    assert figures["peak_rss_gb"] == stages["second"]["peak_rss_gb"]


def test_a_stopwatch_leaves_out_what_is_done_while_it_is_paused() -> None:
    meter = Meter(torch.device("cpu"))
    with meter.watching():
        watch = Stopwatch(meter, "load")
        started = time.perf_counter()
        time.sleep(0.03)
        with watch.paused(), grown_memory():
            time.sleep(0.3)
        time.sleep(0.03)
        figures = watch.stop()
        taken = time.perf_counter() - started
    assert list(figures["stages"]) == ["load"]
    assert 0.06 <= figures["time_s"] <= taken - 0.3
    assert figures.pop("stages")["load"] == figures
    before = Stopwatch(meter, "now").stop()["peak_rss_gb"]
    assert figures["peak_rss_gb"] == pytest.approx(before, abs=0.05)


def test_peaks_are_sampled_where_they_cannot_be_reset(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("converter.measurement.benchmark.meter._CLEAR_REFS", tmp_path)
    meter = Meter(torch.device("cpu"))
    with meter.watching():
        watch = Stopwatch(meter, "first")
        with grown_memory():
            time.sleep(0.2)
        time.sleep(0.1)
        watch.begin("second")
        stages = watch.stop()["stages"]
    assert stages["first"]["peak_rss_gb"] - stages["second"]["peak_rss_gb"] == pytest.approx(0.2, abs=0.03)


def test_the_memory_that_images_are_predicted_to_need(tiny_repo: Path, tmp_path: Path) -> None:
    """In every way to load a pipeline, also one with a large text encoder in MXFP4 and a thin autoencoder."""
    large = packed(tiny_repo, tmp_path)
    more = {"large.weight": torch.zeros(15_000_000, dtype=torch.bfloat16)}
    change_tensors(large / "text_encoder" / "model.safetensors", lambda tensors: tensors.update(more))
    lines = []
    for folder, channels, options in (
        (tiny_repo, None, GenerateOptions()),
        (tiny_repo, None, GenerateOptions(base_resolution=1024, dtype="float32")),
        (large, [], GenerateOptions(height=64, width=128)),
        (large, ["1"], GenerateOptions(height=64, width=128)),
        (large, [1], GenerateOptions(height=1600, width=3200)),
        (large, [1], GenerateOptions(height=1600, width=3200, guidance=1.0)),
    ):
        if channels is not None:
            edit_json(folder / "vae" / "config.json", block_out_channels=channels)
        repo = open_pipeline(folder)
        settings = choose_settings(repo, "x", options)
        lines.append(
            f"{folder.name} {channels} {settings.height}x{settings.width} {settings.dtype} {settings.guidance}"
        )
        for offload, on_cpu in (*((offload, False) for offload in OFFLOADS), ("none", True)):
            needs = [
                predict_memory(repo, settings, offload=offload, on_cpu=on_cpu, unpacks=unpacks, **others)
                for unpacks in (False, True)[: 1 + repo.has_packed_text_encoder]
                for others in ({}, {"encodes": False}, {"keeps_encoder": True})
            ]
            shown = " ".join(f"{need.host}/{need.device}" for need in needs)
            lines.append(f" {'cpu' if on_cpu else offload}: {shown}")
    check_expected("memory.txt", "\n".join(lines))
