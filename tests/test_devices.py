"""Conversions on a device: the CPU by another name, which computes as CUDA does where that matters."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import jsonschema
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from converter import ConvertOptions, Recipe, convert, plan
from converter.conversion.kernels import fused, on_device
from converter.conversion.kernels.devices import Device, device_failure, opened_device
from converter.conversion.kernels.host import HOST
from converter.conversion.kernels.sdnq import QuantizedParts, quantize_with_sdnq
from converter.conversion.kernels.selfcheck import device_agrees, sample_weights
from converter.errors import DeviceError, MemoryLimitError, OutputError
from converter.presentation.card.make_card import make_card
from converter.schemas import load_schema
from tests.conftest import Lensconv, names_in, snapshot
from tests.cuda_arithmetic import CudaArithmetic, cuda_arithmetic
from tests.reference import FURTHER_RECIPES
from tests.reporters import Notes
from tests.test_kernels import options
from tests.tiny_models import WEIGHTS, save_model

ON_DEVICE = ConvertOptions(device="cpu:0", jobs=2)


@pytest.fixture(scope="module")
def hostile_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Lens with scales that CUDA's division misses, heavy tails, both zeros, and constant groups."""
    source = save_model(tmp_path_factory.mktemp("hostile") / "lens", "LensTransformer2DModel")
    generator = np.random.default_rng(0)
    tensors = load_file(source / WEIGHTS)
    for tensor in tensors.values():
        if tensor.ndim == 2:
            tensor[:, ::3] = torch.from_numpy(generator.standard_t(1.2, tensor[:, ::3].shape).astype(np.float32))
            tensor[::5, ::64], tensor[::5, 1::64] = 4384, -11
            tensor[2::5] = tensor[2::5].clamp(min=0) * torch.from_numpy(generator.choice([-1.0, 1.0], 1).astype("f4"))
            tensor[3::5] = tensor[3::5, :1]
    save_file(tensors, source / WEIGHTS, metadata={"format": "pt"})
    return source


@pytest.mark.parametrize(
    "divide",
    [
        lambda x: x / 15,
        lambda x: x.div(15),
        lambda x: x.clone().div_(15),
        lambda x: torch.true_divide(x, 15),
        lambda x: x.clone().__itruediv__(15),
        lambda x: x / torch.tensor(15.0),
    ],
)
def test_the_oracle_divides_as_cuda_does(divide: Any) -> None:
    spans = torch.tensor([4395.0, -4395.0])
    assert divide(spans).tolist() == [293, -293]
    with CudaArithmetic():
        assert divide(spans).tolist() == [293.0000305175781, -293.0000305175781]
        assert (spans / torch.full_like(spans, 15)).tolist() == [293, -293]


@pytest.mark.parametrize("from_float32", [True, False])
@pytest.mark.parametrize("dequantize_fp32", [True, False])
def test_sdnqs_own_functions_give_other_bytes_on_cuda(dequantize_fp32: bool, from_float32: bool) -> None:
    """So a conversion that runs them on a device does not give the CPU's bytes, and the check before it notices."""

    def scales(numbers: np.ndarray[Any, Any]) -> bytes:
        result = quantize_with_sdnq(
            np.ascontiguousarray(numbers, dtype=np.float32).reshape(-1).view(np.uint8),
            "F32",
            numbers.shape,
            options(dequantize_fp32=dequantize_fp32),
            from_float32=from_float32,
            device=HOST.torch_device,
        )
        return result.bytes_of("scale").tobytes()

    vector = np.zeros((4, 128))
    vector[:, ::64], vector[:, 1::64] = 4384, -11
    tails = np.random.default_rng(0).standard_t(1.2, (4096, 1024))
    # In bfloat16, hardly any scale of numbers that were not rounded lies between two others.
    for numbers in (vector,) if from_float32 and not dequantize_fp32 else (vector, tails):
        expected = scales(numbers)
        with CudaArithmetic():
            assert scales(numbers) != expected


@pytest.mark.parametrize("quantize_from", ["bfloat16", "float32"])
@pytest.mark.parametrize("recipe", ["lens-uint4-static", "sdnq-uint4"])
def test_a_device_gives_the_bytes_of_the_cpu(
    recipe: str, quantize_from: str, hostile_source: Path, tmp_path: Path
) -> None:
    for device in ("cpu", "cpu:0"):
        with cuda_arithmetic():
            convert(
                hostile_source,
                tmp_path / device,
                recipe,
                ConvertOptions(device=device, jobs=2, quantize_from=quantize_from, memory=4_000_000),
            )
    assert snapshot(tmp_path / "cpu:0") == snapshot(tmp_path / "cpu")


def test_numbers_that_are_not_finite_are_quantized_on_the_cpu(hostile_source: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_bytes((hostile_source / "config.json").read_bytes())
    tensors = load_file(hostile_source / WEIGHTS)
    weights = [tensor for name, tensor in tensors.items() if name.endswith("to_out.0.weight")]
    weights[0][0, 0], weights[0][1, 0], weights[1][9, 9] = torch.nan, -torch.inf, 3.4e38
    save_file(tensors, source / WEIGHTS, metadata={"format": "pt"})
    reports = []
    for device in ("cpu", "cpu:0"):
        with cuda_arithmetic():
            chosen = ConvertOptions(device=device, allow_nonfinite=True)
            reports.append(convert(source, tmp_path / device, options=chosen))
    assert sum(reports[0].nonfinite.values()) == 3
    assert reports[0].nonfinite == reports[1].nonfinite
    assert snapshot(tmp_path / "cpu:0") == snapshot(tmp_path / "cpu")


@pytest.mark.parametrize("recipe", [{"weights_dtype": "int8"}, FURTHER_RECIPES["dynamic"]])
def test_a_release_names_the_device_on_which_sdnq_worked(
    recipe: dict[str, Any], hostile_source: Path, tmp_path: Path, lensconv: Lensconv
) -> None:
    for device in ("cpu", "cpu:0"):
        with cuda_arithmetic():
            convert(hostile_source, tmp_path / device, Recipe("x", recipe), ConvertOptions(device=device))
    weights = [(tmp_path / device / WEIGHTS).read_bytes() for device in ("cpu", "cpu:0")]
    assert weights[0] != weights[1]
    manifests = [json.loads((tmp_path / x / "lensconv_manifest.json").read_text()) for x in ("cpu", "cpu:0")]
    assert [manifest["components"][0].get("device") for manifest in manifests] == [None, "cpu:0"]
    for manifest in manifests:
        jsonschema.validate(manifest, load_schema("manifest"))
    assert lensconv("verify", tmp_path / "cpu:0").code == 0
    cards = [make_card(tmp_path / device).card.read_text() for device in ("cpu", "cpu:0")]
    assert ["| Quantized on | cpu:0 |" in card for card in cards] == [False, True]
    manifests[1]["components"][0]["device"] = 3
    (tmp_path / "cpu:0/lensconv_manifest.json").write_text(json.dumps(manifests[1]))
    checks = lensconv("verify", tmp_path / "cpu:0", "--json").result["checks"]
    assert ["device" in check["detail"] for check in checks if not check["ok"]] == [True]


def test_a_device_that_decided_is_named_although_it_kept_everything(lens_source: Path, tmp_path: Path) -> None:
    kept = {**FURTHER_RECIPES["dynamic"], "weights_dtype": "float16_e5m11fnu", "dynamic_loss_threshold": 1e-30}
    convert(lens_source, tmp_path / "out", Recipe("x", kept), ON_DEVICE)
    manifest = json.loads((tmp_path / "out/lensconv_manifest.json").read_text())
    assert (manifest["components"][0]["recipe"]["quantized"], manifest["components"][0]["device"]) == ({}, "cpu:0")


def test_a_kernel_that_differs_on_the_device_is_not_used(
    lens_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Device(torch.device("cpu:0"), "cpu:0")
    assert all(device_agrees(device, round_weights=round_weights) for round_weights in (True, False))

    def sdnqs_own(source: torch.Tensor, *, round_weights: bool, round_scales: bool) -> Any:
        with CudaArithmetic():
            result: QuantizedParts = quantize_with_sdnq(
                source.numpy().view(np.uint8),
                "F32",
                (source.numel() // 128, 128),
                options(dequantize_fp32=not round_scales),
                from_float32=not round_weights,
                device=HOST.torch_device,
            )
        return result.parts, torch.tensor(True)

    right = on_device.quantize_uint4

    def wrong_for_float32(source: torch.Tensor, **choices: bool) -> Any:
        return (right if choices["round_weights"] or choices["round_scales"] else sdnqs_own)(source, **choices)

    monkeypatch.setattr(on_device, "quantize_uint4", wrong_for_float32)
    assert [device_agrees(device, round_weights=round_weights) for round_weights in (True, False)] == [True, False]
    convert(lens_source, tmp_path / "float32", options=replace(ON_DEVICE, quantize_from="float32"))
    manifest = json.loads((tmp_path / "float32/lensconv_manifest.json").read_text())
    assert manifest["components"][0]["device"] == "cpu:0"
    monkeypatch.setattr(on_device, "quantize_uint4", sdnqs_own)
    assert not any(device_agrees(device, round_weights=round_weights) for round_weights in (True, False))
    convert(lens_source, tmp_path / "out", options=ON_DEVICE)
    assert json.loads((tmp_path / "out/lensconv_manifest.json").read_text())["components"][0]["device"] == "cpu:0"


def test_the_sample_shows_a_division_by_a_reciprocal_in_both_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that is right except for this is noticed whatever the dtype of its scales."""
    monkeypatch.setattr(torch, "full_like", lambda _, value: torch.tensor(float(value)))
    bits = sample_weights().reshape(-1)
    for round_scales in (True, False):
        choices: dict[str, Any] = {"round_weights": True, "round_scales": round_scales}
        expected, _ = fused.quantize_uint4(bits, **choices)
        with CudaArithmetic():
            found, _ = on_device.quantize_uint4(torch.from_numpy(bits.view(np.float32)), **choices)
        assert np.array_equal(bits, sample_weights().reshape(-1))
        scales = found["scale"].view(torch.uint8).numpy().reshape(-1)
        assert not np.array_equal(scales, expected["scale"].view(np.uint8))


def failing(error: Exception, calls: int) -> Any:
    """``Device.download`` that fails after so many calls."""
    download, left = Device.download, calls

    def called(self: Device, source: torch.Tensor, target: torch.Tensor) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise error
        download(self, source, target)

    return called


def test_a_device_that_fails_is_one_line_and_the_next_run_goes_on(
    lens_source: Path, lens_output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes, lost = Notes(), torch.AcceleratorError("CUDA error: unspecified launch failure\nSearch for it")
    with monkeypatch.context() as patch:
        patch.setattr(Device, "download", failing(lost, 60))
        with pytest.raises(DeviceError) as caught:
            convert(lens_source, tmp_path / "out", options=ON_DEVICE, reporter=notes)
    assert f"{WEIGHTS}: tensor transformer_blocks" in caught.value.message
    assert caught.value.message.endswith("device cpu:0 failed: CUDA error: unspecified launch failure")
    assert caught.value.hint == "Run the command again; if the device fails again, use --device cpu."
    assert "the same command continues" in notes.texts[-1]
    assert convert(lens_source, tmp_path / "out", options=ON_DEVICE).resumed_tensors
    assert snapshot(tmp_path / "out") == snapshot(lens_output)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried"),
        torch.AcceleratorError("CUDA error: out of memory"),
    ],
)
def test_a_device_with_too_little_memory_names_the_tensor(
    error: Exception, lens_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Device, "download", failing(error, 20))
    with pytest.raises(MemoryLimitError, match=f"{WEIGHTS}: tensor .*weight: device cpu:0 does not have enough memory"):
        convert(lens_source, tmp_path / "out", options=ON_DEVICE)
    assert not names_in(tmp_path)


def test_memory_for_copies_that_cannot_be_pinned_is_one_line(
    lens_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is taken before the kernel is called, and for tensors that are kept, too."""
    buffer = Device.buffer

    def called(self: Device, size: int) -> Any:
        if threading.current_thread() is not threading.main_thread():
            raise torch.AcceleratorError("CUDA error: out of memory")
        return buffer(self, size)

    monkeypatch.setattr(Device, "buffer", called)
    with pytest.raises(MemoryLimitError, match=r"device cpu:0 does not have enough memory"):
        convert(lens_source, tmp_path / "out", options=ON_DEVICE)
    assert not names_in(tmp_path)


def test_a_device_that_fails_when_a_thread_begins_to_use_it_is_one_line(
    lens_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeCuda(monkeypatch)

    def fail(_: torch.device) -> NoReturn:
        raise torch.AcceleratorError("CUDA error: unspecified launch failure\nSearch for it")

    monkeypatch.setattr(torch.cuda, "Stream", fail)
    with pytest.raises(DeviceError, match=r"device cuda:1 failed: CUDA error: unspecified launch failure$"):
        convert(lens_source, tmp_path / "out", options=ConvertOptions(device="cuda:1"))
    assert not names_in(tmp_path)


def test_what_is_not_the_devices_fault_is_not_blamed_on_it() -> None:
    assert device_failure(RuntimeError("shapes differ"), "x", HOST.torch_device) is None


class FakeCuda:
    """The few functions of ``torch.cuda`` that have no equal on the CPU; notes what each thread asks for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.streams: dict[str, tuple[torch.device, object]] = {}
        self.devices: dict[str, torch.device] = {}
        self.waits: list[str] = []
        self.pinned = 0
        self._empty = torch.empty
        for name, value in (
            ("device", lambda device: self._noting(device=device)),
            ("stream", lambda stream: self._noting(stream=stream)),
            ("Stream", lambda device: (device, object())),
            ("current_stream", self._current_stream),
            ("current_device", lambda: 1),
            ("get_device_name", lambda device: f"Card {device.index}"),
        ):
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(torch, "empty", self._empty_on_cpu)
        monkeypatch.setattr(Device, "upload", lambda _, source: source)

    def _empty_on_cpu(self, *sizes: Any, pin_memory: bool | None = None, **options: Any) -> torch.Tensor:
        self.pinned += bool(pin_memory)
        if str(options.get("device")).startswith("cuda"):
            options["device"] = HOST.torch_device
        return self._empty(*sizes, **options)

    @contextmanager
    def _noting(self, *, device: torch.device | None = None, stream: Any = None) -> Iterator[None]:
        if device is None:
            self.streams[threading.current_thread().name] = stream
        else:
            self.devices[threading.current_thread().name] = device
        yield

    def _current_stream(self, device: torch.device) -> SimpleNamespace:
        thread = threading.current_thread().name
        assert self.streams[thread][0] == device
        return SimpleNamespace(synchronize=lambda: self.waits.append(thread))


@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_every_thread_uses_the_device_with_a_stream_and_pinned_buffers_of_its_own(
    name: str, lens_source: Path, lens_output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = FakeCuda(monkeypatch)
    convert(lens_source, tmp_path / "out", options=ConvertOptions(device=name, jobs=3))
    assert snapshot(tmp_path / "out") == snapshot(lens_output)
    threads = {thread for thread in cuda.streams if thread.startswith("worker")}
    assert len(threads) == 3
    assert {cuda.devices[thread] for thread in threads} == {torch.device("cuda:1")}
    assert {device for device, _ in cuda.streams.values()} == {torch.device("cuda:1")}
    assert len({id(stream) for _, stream in cuda.streams.values()}) == 4
    pieces = sum(name.endswith(".scale") for name in load_file(lens_output / WEIGHTS))
    assert sum(thread in threads for thread in cuda.waits) == pieces
    assert cuda.pinned


def test_cards_are_told_apart_by_the_journal(
    lens_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeCuda(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(Device, "download", failing(torch.AcceleratorError("lost"), 30))
        with pytest.raises(DeviceError):
            convert(lens_source, tmp_path / "out", options=ConvertOptions(device="cuda:1"))
    for device in ("cuda:0", "cpu", "cpu:0"):
        with pytest.raises(OutputError, match=r"differs from this one in: device$"):
            convert(lens_source, tmp_path / "out", options=ConvertOptions(device=device))
    assert convert(lens_source, tmp_path / "out", options=ConvertOptions(device="cuda")).resumed_tensors


@pytest.mark.parametrize("name", ["nonsense", "cuda:-1", "cuda:99", "meta", "xla", "privateuseone", ""])
def test_a_device_that_does_not_exist(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    with pytest.raises(DeviceError, match=rf"^device {name}: .{{1,250}}$") as caught, opened_device(name):
        pass
    assert ("CUDA_VISIBLE_DEVICES='3'" in caught.value.message) == name.startswith("cuda")


def test_the_plan_of_a_device_counts_torch_in_both_processes(lens_source: Path) -> None:
    peaks = [plan(lens_source, options=ConvertOptions(device=x, jobs=1)).peak_memory_bytes for x in ("cpu", "cpu:0")]
    assert peaks[1] - peaks[0] == 300_000_000
