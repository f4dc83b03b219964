"""Devices by name, and what is said of those that cannot be used; the functions of CUDA that matter are replaced."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import pytest
import torch

from converter.errors import LensconvError
from converter.measurement.generation.devices import choose_device, use_device
from tests.faults import raising


def test_devices_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is not one of a device, a hidden GPU, one whose driver is too old, and one that does not exist."""
    old = "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver."
    none, hidden = "No CUDA GPUs are available", "; only GPUs in CUDA_VISIBLE_DEVICES='{}' are visible"

    unknown = "CUDA unknown error, e.g. after a change of CUDA_VISIBLE_DEVICES"
    for has_gpu, visible, name, error, said in (
        (False, None, "cuda:1000", none, "must be auto, cpu, cuda, or cuda:0, cuda:1 …"),
        (False, None, "cpu:0", none, "must be auto, cpu, cuda, or cuda:0, cuda:1 …"),
        (False, None, "cuda", none, f"sees no CUDA GPU on this machine: {none}"),
        (False, None, "cuda", old, "sees no CUDA GPU on this machine: " + old.partition(". ")[0]),
        (False, "", "cuda:1", none, f"sees no CUDA GPU on this machine: {none}{hidden.format('')}"),
        (False, None, "cuda", f"{unknown}. Setting the devices to be zero.", unknown),
        (True, None, "cuda:2", "", "this machine has 2 GPUs, counted from 0"),
        (True, "3,7", "cuda:2", "", f"this machine has 2 GPUs, counted from 0{hidden.format('3,7')}"),
    ):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        monkeypatch.setattr(torch.cuda, "init", raising(RuntimeError(error)))
        monkeypatch.setattr(torch.cuda, "is_available", lambda answer=has_gpu: answer)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        with pytest.raises(LensconvError) as caught:
            choose_device(name)
        assert caught.value.message.endswith(said)
        assert caught.value.exit_code == (2 if "must" in said else 3)
        # What is hidden does not come back with another driver.
        assert (caught.value.hint == "Use --device cpu, or set CUDA_VISIBLE_DEVICES to others.") == (visible == "")
        assert choose_device("auto") == torch.device("cuda:0" if has_gpu else "cpu")
    assert choose_device("cuda:1") == torch.device("cuda:1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(LensconvError, match="this machine has 1 GPU, counted from 0"):
        choose_device("cuda:1")
    # What torch warns of, its error says; but where a GPU is asked for only if there is one, nothing else says it.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: warnings.warn(old, stacklevel=1))
    with pytest.raises(LensconvError, match="sees no CUDA GPU"):
        choose_device("cuda")
    with pytest.warns(UserWarning, match="too old"):
        assert choose_device("auto") == torch.device("cpu")


def test_a_device_is_the_current_one_while_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or an error says in a line why it cannot be; nothing of CUDA is needed for a CPU."""
    chosen, tried = list[torch.device](), list[torch.device]()
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch, "zeros", lambda _, device: SimpleNamespace(item=lambda: tried.append(device)))
    for name in ("cpu", "cuda:1"):
        use_device(torch.device(name))
    # Work is tried on it, too, since a device that is chosen may still refuse it.
    assert chosen == tried == [torch.device("cuda:1")]
    busy = "CUDA error: CUDA-capable device(s) is/are busy or unavailable\nCUDA kernel errors might be reported later."
    full = "CUDA out of memory. Tried to allocate 2.00 MiB. GPU 1 has a total capacity of 79.10 GiB."
    for error, kind, said in (
        (RuntimeError(busy), "DeviceError", f"cannot be used: {busy.splitlines()[0]}"),
        (RuntimeError("CUDA error: out of memory\nmore"), "MemoryLimitError", "used up: CUDA error: out of memory"),
        (torch.OutOfMemoryError(full), "MemoryLimitError", "its memory is used up: CUDA out of memory"),
        (AssertionError(), "DeviceError", "cannot be used: AssertionError"),
        (torch.cuda.DeferredCudaCallError("a call failed\n\nmore"), "DeviceError", "cannot be used: a call failed"),
    ):
        monkeypatch.setattr(torch.cuda, "set_device", raising(error))
        with pytest.raises(LensconvError) as caught:
            use_device(torch.device("cuda:1"))
        found = (type(caught.value).__name__, caught.value.exit_code, caught.value.message)
        assert found[:2] == (kind, 3)
        assert found[2].startswith("--device cuda:1: ")
        assert found[2].endswith(said)
        other = ", or use another device" if kind == "DeviceError" else ""
        assert caught.value.hint == f"End other programs that use it{other}."
