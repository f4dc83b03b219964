"""A text encoder in MXFP4 stays packed only where its kernel is on this machine, and nobody asks the Hub for it."""

from __future__ import annotations

import gc
import logging
import sys
import weakref
from http.server import BaseHTTPRequestHandler
from logging.handlers import BufferingHandler
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from huggingface_hub import snapshot_download
from transformers.integrations import hub_kernels
from transformers.integrations.mxfp4 import Mxfp4GptOssMLP
from transformers.quantizers import quantizer_mxfp4

from converter.lens import LensGptOssEncoder
from converter.measurement.benchmark.components import Allocations, component_sizes
from converter.measurement.generation.loading import encoder_unpacking, load_text_encoder
from converter.measurement.generation.memory import loaded_bytes
from converter.measurement.generation.repo import open_pipeline
from converter.models.lens.mxfp4 import kernel_from_cache, packed_tensors, unpacking_reason
from tests.faults import raising
from tests.generations import packed
from tests.lens.prompts import notices
from tests.serving import Quiet, serving

KERNEL = "kernels-community/gpt-oss-triton-kernels"
COMMIT = "c" * 40


class Kept(SimpleNamespace):
    """What takes options and keeps them, as the classes of the kernel do."""


def wrap(tensor: torch.Tensor, **_: Any) -> Any:
    return Kept(storage=Kept(data=tensor))


def default_layout(**_: Any) -> tuple[None, dict[str, Any]]:
    return None, {}


#: The parts of the kernel that loading needs; it leaves packed numbers in their order.
LOADED_KERNEL = SimpleNamespace(
    tensor=SimpleNamespace(FP4=None, convert_layout=lambda tensor, _: tensor, wrap_torch_tensor=wrap),
    tensor_details=SimpleNamespace(
        layout=SimpleNamespace(StridedLayout=None, make_default_matmul_mxfp4_w_layout=default_layout)
    ),
    matmul_ogs=SimpleNamespace(PrecisionConfig=Kept, FlexCtx=Kept, InFlexData=Kept),
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A machine with a GPU, Triton and a package kernels that looks for kernels as the real one does.

    Gives the kernel's folder in the cache, and the paths that the Hub was asked for.
    """
    asked: list[str] = []

    class Hub(Quiet, BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        def do_HEAD(self) -> None:
            self.do_GET()

    with serving(Hub) as url:

        def get_kernel(name: str, *, version: int, **_: Any) -> Any:
            snapshot_download(
                name,
                repo_type="kernel",
                revision=f"v{version}",
                cache_dir=tmp_path,
                endpoint=url,
                local_files_only=huggingface_hub.constants.HF_HUB_OFFLINE,
            )
            return LOADED_KERNEL

        def has_kernel(name: str, *, version: int) -> bool:
            try:
                return bool(get_kernel(name, version=version))
            except FileNotFoundError as error:
                # The real one returns False only if no build is for this machine.
                raise ValueError(str(error)) from error

        monkeypatch.setitem(sys.modules, "kernels", SimpleNamespace(has_kernel=has_kernel))
        monkeypatch.setattr(hub_kernels, "get_kernel_hub", get_kernel, raising=False)
        for module in (hub_kernels, quantizer_mxfp4):
            monkeypatch.setattr(module, "is_kernels_available", lambda: True)
        monkeypatch.setattr(quantizer_mxfp4, "is_triton_available", lambda *_: True)
        monkeypatch.setattr(quantizer_mxfp4, "get_current_accelerator", lambda: torch.device("cuda"))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
        yield tmp_path / f"kernels--{KERNEL.replace('/', '--')}", asked


@pytest.mark.parametrize("is_cached", [False, True])
def test_the_kernel_is_only_taken_from_the_cache(
    cache: Any,
    is_cached: bool,
    tiny_repo: Path,
    tmp_path: Path,
    log: BufferingHandler,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without it the encoder is unpacked; with it, packed experts count as memory of the encoder."""
    repo = open_pipeline(packed(tiny_repo, tmp_path))
    folder = repo.text_encoder.folder
    kernel, asked = cache
    if is_cached:
        (kernel / "refs").mkdir(parents=True)
        (kernel / "refs" / "v1").write_text(COMMIT)
        (kernel / "snapshots" / COMMIT / "build").mkdir(parents=True)
    encoder = LensGptOssEncoder.from_pretrained(folder, dtype=torch.bfloat16)
    loaded = load_text_encoder(repo, torch.bfloat16, torch.device("cpu"), unpacks=not is_cached)
    assert isinstance(loaded.model.layers[0].mlp, Mxfp4GptOssMLP) == is_cached
    # Who releases the encoder releases its packed experts.
    held = [weakref.ref(tensor) for tensor in packed_tensors(loaded)]
    assert len(held) == (4 * encoder.config.num_hidden_layers if is_cached else 0)
    del loaded
    gc.collect()
    assert not any(tensor() is not None for tensor in held)
    assert asked == []
    assert isinstance(encoder.model.layers[0].mlp, Mxfp4GptOssMLP) == is_cached
    said = " ".join(notices(log))
    assert ("its kernel is not in the local cache; to get it, run `hf download " in said) != is_cached
    assert huggingface_hub.constants.HF_HUB_OFFLINE is False
    assert logging.getLogger("kernels").level == logging.NOTSET
    # Other kernels are the affair of who asks for them.
    with kernel_from_cache(), pytest.raises(OSError, match="404"):
        hub_kernels.get_kernel("kernels-community/other", version=1)
    # Commands say so, too; and where an image is made on the CPU, the GPU of the machine has no part in it.
    ways = (("none", "cuda"), ("model", "cuda"), ("sequential", "cuda"), ("none", "cpu"))
    reasons = [encoder_unpacking(repo, offload, torch.device(device)) for offload, device in ways]
    assert [not reason for reason in reasons] == [is_cached, is_cached, False, False]
    pipeline = SimpleNamespace(text_encoder=encoder, transformer=torch.nn.Linear(1, 1), vae=torch.nn.Linear(1, 1))
    for model in (pipeline.transformer, pipeline.vae):
        model.device = torch.device("cpu")
    found = component_sizes(pipeline, "model", Allocations(torch.device("cpu")))["text_encoder"]
    expected = loaded_bytes(repo.text_encoder, 2, unpacks=not is_cached)
    assert found == {"memory_gb": round(expected / 1e9, 3), "device_gb": 0.0}
    # A kernel that the package cannot look for is not there.
    for error in (OSError, ValueError, RuntimeError):
        monkeypatch.setattr(sys.modules["kernels"], "has_kernel", raising(error()))
        assert unpacking_reason().startswith("its kernel is not in the local cache")
