"""Kernels for products of int8 matrices, as a GPU would run them, and the rows that they are given."""

from __future__ import annotations

import contextvars
import copy
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from logging.handlers import BufferingHandler
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from converter.errors import DeviceError
from converter.lens import LensTransformer2DModel
from converter.libraries import load_library
from converter.measurement.generation.generate import image_metadata
from converter.measurement.generation.loading import load_pipeline
from converter.measurement.generation.options import GenerateOptions
from converter.measurement.generation.repo import open_pipeline
from converter.measurement.generation.settings import choose_settings
from converter.models import int8_kernels
from converter.models.int8_kernels import (
    Int8Kernel,
    find_int8_kernel,
    int8_kernel_of,
    try_int8_kernels,
)
from converter.models.lens import int8_chain, transformer
from converter.models.lens.int8_chain import enable_int8_chain
from converter.models.sdnq_layers import multiplies_quantized, quantized_layers
from tests.faults import raising
from tests.lens.int8_chains import SMALL, make, quantize
from tests.lens.models import run
from tests.lens.prompts import notices
from tests.lens.test_adapters import set_matmul, tiny_inputs, unquantized

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
#: As Triton says it.
NO_ALLOCATOR = "Kernel requires a runtime memory allocation, but no allocator was set. Use triton.set_allocator …"
TORCH_FAILS = RuntimeError("self.size(0) needs to be greater than 16")
Kernel = Callable[..., torch.Tensor]


class TritonError(Exception):
    """What Triton's own errors are derived from; no subclass of another one."""


class StandIn(ModuleType):
    """Triton's allocator, which holds for the context in which it is set."""

    def __init__(self) -> None:
        super().__init__("triton")
        self.allocator: contextvars.ContextVar[Any] = contextvars.ContextVar("allocator", default=None)
        self.set_allocator = self.allocator.set


@pytest.fixture
def triton(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    module, errors = StandIn(), ModuleType("triton.errors")
    errors.TritonError = TritonError  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "triton", module)
    monkeypatch.setitem(sys.modules, "triton.errors", errors)
    return module


@pytest.fixture
def sdnq(triton: StandIn, monkeypatch: pytest.MonkeyPatch) -> Any:
    """SDNQ's choice of kernels on a CPU, made as on a GPU; its Triton kernel needs an allocator, and is right."""
    wrappers: Any = load_library("sdnq.kernel_wrappers")

    def scaled_product(*operands: Any, **options: Any) -> torch.Tensor:
        return (wrappers.sdnq_scaled_mm or wrappers.int_scaled_mm_torch)(*operands, **options)

    def needs_an_allocator(*operands: Any, **options: Any) -> torch.Tensor:
        if triton.allocator.get() is None:
            raise RuntimeError(NO_ALLOCATOR)
        return wrappers.int_scaled_mm_torch(*operands, **options)

    monkeypatch.setattr("sdnq.layers.linear.linear_int8.int_scaled_mm_func", scaled_product)
    monkeypatch.setattr(wrappers, "sdnq_scaled_mm", needs_an_allocator)
    monkeypatch.setattr(wrappers, "sdnq_triton_mm", needs_an_allocator)
    monkeypatch.setattr(int8_kernels, "_found", {})
    return wrappers


@pytest.fixture
def on_gpu(sdnq: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models take their input as one on a GPU, where products have been tried."""
    assert sdnq.sdnq_scaled_mm is not None
    monkeypatch.setattr(int8_kernels, "try_int8_kernels", lambda _: try_int8_kernels(CPU))
    prepare = int8_kernels.prepare_int8_kernel
    monkeypatch.setattr(transformer, "prepare_int8_kernel", lambda model, _: prepare(model, GPU))


@pytest.fixture
def model(lens_output: Path) -> Any:
    return LensTransformer2DModel.from_pretrained(lens_output)


def filled(value: float) -> Kernel:
    def fill(a: torch.Tensor, b: torch.Tensor, *_: Any, out_dtype: torch.dtype, **__: Any) -> torch.Tensor:
        return torch.full((len(a), b.shape[1]), value, dtype=out_dtype)

    return fill


def without_bias(a: torch.Tensor, b: torch.Tensor, *scales: torch.Tensor, bias: Any, **options: Any) -> torch.Tensor:
    result: torch.Tensor = load_library("sdnq.kernel_wrappers").int_scaled_mm_torch(a, b, *scales, **options)
    return result if bias.ndim == 1 else result + bias


def somewhat_wrong(*operands: torch.Tensor, **options: Any) -> torch.Tensor:
    result: torch.Tensor = load_library("sdnq.kernel_wrappers").int_scaled_mm_torch(*operands, **options)
    return 1.05 * result


@pytest.mark.parametrize(
    ("kernel", "reason"),
    [
        (None, "has no Triton kernel in this process"),
        (raising(RuntimeError(f"{NO_ALLOCATOR}\nmore")), f"(RuntimeError: {NO_ALLOCATOR})"),
        (raising(TritonError("PTXAS error: Internal")), "(TritonError: PTXAS error: Internal)"),
        (raising(TritonError()), "(TritonError)"),
        (raising(FileNotFoundError(2, "No such file or directory", "gcc")), "(FileNotFoundError: [Errno 2] No such"),
        (raising(subprocess.CalledProcessError(1, ["gcc"])), "(CalledProcessError: Command"),
        (raising(ImportError("libcuda.so")), "(ImportError: libcuda.so)"),
        (raising(AssertionError("Matrix A must be contiguous")), "(AssertionError: Matrix A must"),
        (filled(0.0), "(its results are wrong)"),
        (filled(float("nan")), "(its results are wrong)"),
        (without_bias, "(its results are wrong)"),
        (somewhat_wrong, "(its results are wrong)"),
    ],
)
def test_a_kernel_that_fails(kernel: Kernel | None, reason: str, sdnq: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """SDNQ does not call it again, and multiplies by torch; if that fails, too, there is none."""
    monkeypatch.setattr(sdnq, "sdnq_scaled_mm", kernel)
    monkeypatch.setattr(sdnq, "sdnq_triton_mm", kernel)
    found = try_int8_kernels(CPU)
    assert found.name == "torch"
    assert reason in found.reason
    assert sdnq.sdnq_scaled_mm is sdnq.sdnq_triton_mm is None
    monkeypatch.setattr(sdnq, "int_mm_torch", raising(TORCH_FAILS))
    found = try_int8_kernels(CPU)
    assert found.name == "none"
    assert found.reason.endswith(
        "torch._int_mm does not, either (RuntimeError: self.size(0) needs to be greater than 16)"
    )


def test_a_kernel_that_works(sdnq: Any) -> None:
    """It needs the allocator, which is set for it."""
    kernel = sdnq.sdnq_scaled_mm
    assert try_int8_kernels(CPU) == Int8Kernel("triton")
    assert sdnq.sdnq_scaled_mm is sdnq.sdnq_triton_mm is kernel


def test_what_is_no_fault_of_the_kernel(sdnq: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that is used up, a GPU that is lost, and an interrupt."""
    for error in (torch.OutOfMemoryError("CUDA out of memory"), KeyboardInterrupt()):
        monkeypatch.setattr(sdnq, "sdnq_scaled_mm", raising(error))
        with pytest.raises(type(error)):
            try_int8_kernels(CPU)
    lost = RuntimeError("CUDA error: an illegal memory access was encountered")
    monkeypatch.setattr(sdnq, "sdnq_scaled_mm", raising(lost))
    monkeypatch.setattr(torch, "ones", raising(lost))
    with pytest.raises(DeviceError, match="does not work any more after a product") as refusal:
        try_int8_kernels(CPU)
    assert "SDNQ_USE_TRITON_MM=0" in str(refusal.value.hint)
    assert sdnq.sdnq_scaled_mm is not None


def test_kernels_are_tried_once_on_each_gpu(monkeypatch: pytest.MonkeyPatch, log: BufferingHandler) -> None:
    """Also when threads ask at the same time; what is not the best one is said once."""
    tried = []

    def trial(device: torch.device) -> Int8Kernel:
        tried.append(device)
        return Int8Kernel("torch", "the other failed") if device == GPU else Int8Kernel("triton")

    monkeypatch.setattr(int8_kernels, "_found", {})
    monkeypatch.setattr(int8_kernels, "try_int8_kernels", trial)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    threads = [threading.Thread(target=find_int8_kernel, args=(torch.device("cuda"),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert find_int8_kernel(GPU) == Int8Kernel("torch", "the other failed")
    assert find_int8_kernel(torch.device("cuda:1")) == Int8Kernel("triton")
    assert tried == [GPU, torch.device("cuda:1")]
    assert notices(log) == ["cuda:0: quantized layers multiply with torch: the other failed"]


def test_on_a_cpu_nothing_is_tried(sdnq: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("current_device", "is_available", "init"):
        monkeypatch.setattr(torch.cuda, name, raising(AssertionError()))
    monkeypatch.setattr(int8_kernels, "try_int8_kernels", raising(AssertionError()))
    assert find_int8_kernel(CPU) == Int8Kernel("torch")
    monkeypatch.setattr(sdnq, "openvino_int_mm", print)
    assert find_int8_kernel(CPU) == Int8Kernel("openvino")


def in_a_thread(function: Callable[[], Any]) -> Any:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join()
    return results[0]


@pytest.mark.usefixtures("on_gpu")
def test_every_thread_has_the_allocator(model: Any, triton: StandIn) -> None:
    """Whoever calls the model, and however it was loaded or copied."""
    later = copy.deepcopy(model)
    expected = run(model, tiny_inputs())
    assert torch.equal(run(later, tiny_inputs()), expected)
    # The kernel is known already when the second one runs.
    assert int8_kernel_of(model) == int8_kernel_of(later) == Int8Kernel("triton")
    ways: list[Callable[..., Any]] = [in_a_thread, contextvars.Context().run]
    for other in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):  # noqa: S301
        for way in ways:
            assert torch.equal(way(partial(run, other, tiny_inputs())), expected)
    assert contextvars.Context().run(triton.allocator.get) is None
    assert triton.allocator.get() is int8_kernels.allocate_scratch
    with FakeTensorMode():
        memory = int8_kernels.allocate_scratch(1024, 128, 0)
        assert (memory.device.type, memory.nbytes) == ("cuda", 1024)


@pytest.mark.usefixtures("on_gpu")
def test_the_gpu_of_the_input_is_the_current_one(model: Any, sdnq: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a kernel is tried, in the forward pass, and while the int8 chain is checked."""
    within, kernel = [], sdnq.sdnq_scaled_mm

    @contextmanager
    def device_of(tensor: torch.Tensor) -> Iterator[None]:
        within.append(tensor.device)
        yield
        within.pop()

    def within_it(*operands: Any, **options: Any) -> torch.Tensor:
        assert within == [CPU]
        result: torch.Tensor = kernel(*operands, **options)
        return result

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    monkeypatch.setattr(sdnq, "sdnq_scaled_mm", within_it)
    run(model, tiny_inputs())
    assert int8_kernel_of(model) == Int8Kernel("triton")
    monkeypatch.setattr(int8_chain, "_find_obstacle", lambda *_: None)
    monkeypatch.setattr(int8_chain, "_compare", lambda *_: [str(within)])
    assert enable_int8_chain(model, CPU) == str([CPU])


@pytest.mark.usefixtures("on_gpu")
def test_models_without_products_of_integers_have_no_kernel(model: Any) -> None:
    set_matmul(model, False)
    for other in (model, unquantized(model)):
        run(other, tiny_inputs())
        assert int8_kernel_of(other) is None
    floats = quantize(make(**SMALL), quantized_matmul_dtype="float8_e4m3fn")
    assert all(map(multiplies_quantized, quantized_layers(floats)))
    int8_kernels.prepare_int8_kernel(floats, GPU)
    assert int8_kernel_of(floats) is None
    assert int8_kernels._found == {}


@pytest.mark.usefixtures("on_gpu")
def test_dequantized_products(model: Any, sdnq: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no kernel works, also after users ask SDNQ for quantized products; what is saved stays the same."""
    model.save_pretrained(tmp_path / "before")
    set_matmul(model, False)
    expected = run(model, tiny_inputs())
    set_matmul(model, True)
    monkeypatch.setattr(sdnq, "sdnq_scaled_mm", raising(RuntimeError(NO_ALLOCATOR)))
    monkeypatch.setattr(sdnq, "int_mm_torch", raising(TORCH_FAILS))
    run(model, tiny_inputs())
    model.save_pretrained(tmp_path / "after")
    for file in (tmp_path / "before").iterdir():
        assert (tmp_path / "after" / file.name).read_bytes() == file.read_bytes()
    for _ in range(2):
        assert torch.equal(run(model, tiny_inputs()), expected)
        assert not any(map(multiplies_quantized, quantized_layers(model)))
        assert torch.equal(run(copy.deepcopy(model), tiny_inputs()), expected)
        set_matmul(model, False)
        set_matmul(model, True)


@pytest.mark.parametrize(("kernel", "dtype"), [(Int8Kernel("torch"), "int8"), (Int8Kernel("none", "why"), None)])
def test_a_pipeline_says_what_runs(
    kernel: Int8Kernel, dtype: str | None, tiny_release: Path, tiny_repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("converter.measurement.generation.loading.find_int8_kernel", lambda _: kernel)
    for folder, found in ((tiny_release, kernel), (tiny_repo, None)):
        repo = open_pipeline(folder)
        pipeline = load_pipeline(repo, torch.float32, CPU, "none")
        assert int8_kernel_of(pipeline.transformer) == found
        metadata = image_metadata(choose_settings(repo, "sea", GenerateOptions()), CPU, repo, pipeline)
        assert (metadata["quantization"] or {}).get("quantized_matmul") == (dtype if found else None)


@pytest.mark.usefixtures("on_gpu")
def test_the_int8_chain_has_an_allocator_in_any_thread(
    triton: StandIn, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread has loaded the model, and this one asks for the chain before it runs it."""
    found: list[Any] = []
    prepare = int8_kernels.prepare_int8_kernel
    monkeypatch.setattr(int8_chain, "prepare_int8_kernel", lambda model, _: prepare(model, GPU))
    monkeypatch.setattr(int8_chain, "_find_obstacle", lambda *_: None)
    monkeypatch.setattr(int8_chain, "_disagreement", lambda *_: found.append(triton.allocator.get()))
    contextvars.Context().run(enable_int8_chain, model, CPU)
    assert found == [int8_kernels.allocate_scratch]
