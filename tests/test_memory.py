"""Memory of images: predictions for repos of the real size against what was published, and GPUs that are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from converter.errors import DeviceError, MemoryLimitError
from converter.measurement.benchmark.components import Allocations, component_sizes
from converter.measurement.generation.loading import load_text_encoder
from converter.measurement.generation.memory import MemoryNeed, loaded_bytes, predict_memory, require_memory
from converter.measurement.generation.options import GenerateOptions
from converter.measurement.generation.repo import open_pipeline
from converter.measurement.generation.settings import choose_settings
from tests.conftest import ROOT
from tests.published import published_metrics, published_offload
from tests.real_layout import real_repo

GPU = torch.device("cuda:0")
GUIDE = ROOT / "docs" / "generating.md"


@pytest.mark.parametrize("model", ["original", "quantized"])
def test_the_published_peaks_are_predicted(model: str, tiny_repo: Path, tmp_path: Path) -> None:
    """From headers alone, and at most 4 % above, never below."""
    repo = open_pipeline(real_repo(tiny_repo, tmp_path, quantized=model == "quantized"))
    storage = published_metrics()["models"][model]["transformer_storage_gb"]
    assert round(repo.transformer.total_bytes / 1e9, 3) == storage
    assert (len(repo.text_encoder.tensors), loaded_bytes(repo.text_encoder, 2)) == (459, 13_761_264_768)
    settings = choose_settings(repo, "x", GenerateOptions(base_resolution=1440, guidance=5.0))

    def predicted(offload: str, **others: Any) -> float:
        options = {"on_cpu": False, "unpacks": False, "keeps_encoder": True} | others
        return predict_memory(repo, settings, offload=offload, **options).device / 1e9

    published = {
        "none": published_metrics()["models"][model]["generation_peak_allocated_gb"]["max"],
        "model": published_offload()["models"][model]["warm"]["peak_allocated_gb"]["max"],
    }
    for offload, peak in published.items():
        assert peak <= predicted(offload) <= 1.04 * peak, offload
        assert f"\n| {model} | {offload} | {peak:.2f} | {predicted(offload):.2f} |\n" in GUIDE.read_text()
    # An encoder that is released takes its packed experts with it, and one that is unpacked leaves the GPU.
    assert predicted("model", keeps_encoder=False) == predicted("none", keeps_encoder=False)
    assert predicted("model", unpacks=True) == pytest.approx(41.8 + 0.3, abs=0.1)
    settings = replace(settings, guidance=1.0)
    assert published["model"] - 1 < predicted("model") < published["model"] * 1.04


def test_a_text_encoder_is_loaded_where_it_runs(tiny_repo: Path) -> None:
    """Not in the memory of the host first; torch's device without memory stands for a GPU."""
    encoder = load_text_encoder(open_pipeline(tiny_repo), torch.bfloat16, torch.device("meta"), unpacks=False)
    assert {tensor.device.type for tensor in encoder.parameters()} == {"meta"}


def test_a_gpu_without_enough_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (16_000_000_000, 80_000_000_000))
    require_memory(MemoryNeed(0, 16_000_000_000), GPU)
    reason = r"^generating takes about 16.001 GB more GPU memory, but only 16.000 GB are free$"
    with pytest.raises(MemoryLimitError, match=reason):
        require_memory(MemoryNeed(0, 16_001_000_000), GPU)

    def fail(_: torch.device) -> None:
        raise RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable\nCUDA kernel errors might be")

    monkeypatch.setattr(torch.cuda, "mem_get_info", fail)
    with pytest.raises(
        DeviceError, match=r"^cuda:0: .*: CUDA error: all CUDA-capable devices are busy or unavailable$"
    ) as caught:
        require_memory(MemoryNeed(0, 0), GPU)
    assert caught.value.hint.startswith("See with nvidia-smi whether another program uses the GPU alone")


def test_what_the_allocator_gave_is_the_memory_of_a_component(monkeypatch: pytest.MonkeyPatch) -> None:
    allocated = iter([1_000_000, 14_001_000_000, 18_301_000_000, 18_501_000_000])
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: next(allocated))
    allocations = Allocations(GPU)
    for name in ("text_encoder", "transformer", "vae"):
        allocations.note(name)
    expected = {name: {"memory_gb": size, "device_gb": size} for name, size in (("text_encoder", 14.0), ("vae", 0.2))}
    # With offloading, what the allocator gave has left the GPU again.
    models = SimpleNamespace(**{name: torch.nn.Identity() for name in allocations.sizes})
    for model in vars(models).values():
        model.device = torch.device("cpu")
    assert component_sizes(models, "model", allocations)["vae"] == {"memory_gb": 0.0, "device_gb": 0.0}
    assert component_sizes(None, "none", allocations) == expected | {
        "transformer": {"memory_gb": 4.3, "device_gb": 4.3}
    }
