"""How much memory an image needs, predicted from headers before anything is loaded."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from math import prod

import torch

from converter.checkpoint.dtypes import WEIGHT_DTYPES
from converter.checkpoint.source import Checkpoint
from converter.console import readable_size
from converter.errors import DeviceError, MemoryLimitError, first_line
from converter.measurement.generation.repo import PipelineRepo
from converter.measurement.generation.settings import Settings
from converter.memory import free_memory_bytes, limit_text

#: Bytes of a number, by the dtype of the computation.
DTYPE_BYTES = {"bfloat16": 2, "float32": 4}
#: Memory for decoding an image, in bytes per pixel, with bfloat16 and the real autoencoder: the published run at
#: 1440x1440 on an H100 allocated 22.342 GB after loading and 27.462 GB at most (benchmark_metrics.json).
_DECODING_BYTES = (27.462e9 - 22.342e9) / 1440**2
#: Channels of the real autoencoder at full size; fewer take less.
_DECODING_CHANNELS = 128
#: How many tensors as wide as a token a block needs at the same time, with a margin. In bfloat16 it needs 13 (counted
#: on meta tensors at 1440x1440); the published run of the original with offloading needed 17. Int8 products and their
#: int32 sums need more, and so does float32.
_LIVE_WIDTHS = 24
#: Memory of libraries and buffers, in addition to the weights.
OVERHEAD_BYTES = 300_000_000
#: The part of it that the libraries have taken when ``require_memory`` is called. A tiny repo, of which 310 MB are
#: predicted, then needs 100 MB more on a CPU, by control groups of falling limits.
_LOADED_BYTES = 200_000_000
#: Maximum number of text tokens.
_TEXT_TOKENS = 415
#: What to do if the memory does not suffice, in `generate` and in `bench`.
LESS_MEMORY = "Use --dtype bfloat16, --offload model (bench: --mode offload), a smaller image or a quantized repo."


@dataclass(frozen=True)
class MemoryNeed:
    """Peak memory in bytes."""

    host: int
    device: int
    """Memory on the accelerator; 0 without one."""
    weights_only: bool = False
    """Whether only the weights were counted, so that it is more."""

    def with_host(self, size: int) -> MemoryNeed:
        """The same with so many bytes more on the host."""
        return replace(self, host=self.host + size)


def predict_memory(
    repo: PipelineRepo,
    settings: Settings,
    *,
    offload: str,
    on_cpu: bool,
    unpacks: bool,
    encodes: bool = True,
    keeps_encoder: bool = False,
) -> MemoryNeed:
    """Predict the peak memory of generating an image.

    What a kernel takes while it puts packed experts into its own order is not known for all cards, and not predicted:
    the published run on an H100 allocated 12.582 GB while it loaded them, and 10.152 GB of it stayed.

    Args:
        repo: what is loaded.
        settings: image size and dtype.
        offload: as in ``GenerateOptions``.
        on_cpu: whether the machine has no accelerator.
        unpacks: whether an MXFP4 text encoder is unpacked.
        encodes: whether the text encoder is needed at all.
        keeps_encoder: whether all components stay loaded, as in a pipeline of diffusers; by default, the text encoder
            is released before the others are loaded, and its packed experts with it.
    """
    size = DTYPE_BYTES[settings.dtype]
    encoder = loaded_bytes(repo.text_encoder, size, unpacks=unpacks) if encodes else 0
    packed = _packed_bytes(repo.text_encoder) if encodes and not unpacks else 0
    transformer, vae = loaded_bytes(repo.transformer, size), loaded_bytes(repo.vae, size)
    denoising, decoding = _denoising_bytes(repo, settings, size), _decoding_bytes(repo, settings, size)
    kept, stays = (encoder, packed) if keeps_encoder else (0, 0)
    together = kept + transformer + vae + max(denoising, decoding)
    if on_cpu:
        return MemoryNeed(max(encoder, together) + OVERHEAD_BYTES, 0)
    off_device = max(encoder, kept - stays + transformer + vae)
    host, device = {
        "none": (max(encoder, transformer, vae), max(encoder, together)),
        # Packed experts never leave the accelerator; all else goes there only when it is used.
        "model": (off_device, max(encoder, stays + max(transformer + denoising, vae + decoding))),
        "sequential": (
            off_device,
            max(
                _largest_module(repo.text_encoder, size, unpacks=unpacks) if encodes else 0,
                _largest_module(repo.transformer, size) + denoising,
                _largest_module(repo.vae, size) + decoding,
            ),
        ),
    }[offload]
    return MemoryNeed(host + OVERHEAD_BYTES, device + OVERHEAD_BYTES)


def loaded_bytes(checkpoint: Checkpoint, size: int, *, unpacks: bool = False) -> int:
    """Return the bytes of a component once it is loaded.

    Args:
        checkpoint: its headers.
        size: bytes of a number in the dtype of the computation.
        unpacks: whether numbers in MXFP4 are unpacked to that dtype.
    """
    return sum(_module_bytes(checkpoint, size, unpacks=unpacks).values())


def require_memory(need: MemoryNeed, device: torch.device) -> None:
    """Refuse to load what does not fit.

    Args:
        need: as predicted.
        device: where images are generated.

    Raises:
        MemoryLimitError: the host's memory or the accelerator's does not suffice.
        DeviceError: the accelerator does not answer.
    """
    device_free = _free_device_bytes(device) if device.type == "cuda" else 0
    for where, wanted, free, limit in (
        ("memory", need.host - _LOADED_BYTES, free_memory_bytes(), limit_text()),
        ("GPU memory", need.device, device_free, ""),
    ):
        if wanted > free:
            size = f"{'at least' if need.weights_only else 'about'} {readable_size(wanted)}"
            reason = f"generating takes {size} more {where}, but only {readable_size(free)} are free"
            raise MemoryLimitError(reason + limit, f"Close other programs. {LESS_MEMORY}")


def _free_device_bytes(device: torch.device) -> int:
    """Free memory of a GPU. Asking for it is the first work that the GPU gets."""
    try:
        return int(torch.cuda.mem_get_info(device)[0])
    except RuntimeError as error:
        raise DeviceError(
            f"{device}: does not say how much memory is free: {first_line(error)}",
            "See with nvidia-smi whether another program uses the GPU alone, or whether it is lost.",
        ) from error


def _denoising_bytes(repo: PipelineRepo, settings: Settings, size: int) -> int:
    """Bytes of the transformer's activations."""
    rows, columns = settings.grid
    samples = 1 if settings.guidance == 1 else 2
    width = repo.transformer.tensors["img_in.weight"].entry.shape[0]
    return samples * (rows * columns + _TEXT_TOKENS) * width * _LIVE_WIDTHS * size


def _decoding_bytes(repo: PipelineRepo, settings: Settings, size: int) -> int:
    """Bytes of the autoencoder's activations."""
    channels = repo.vae.config.get("block_out_channels")
    widest = channels[0] if isinstance(channels, list) and channels and type(channels[0]) is int else _DECODING_CHANNELS
    pixels = settings.height * settings.width
    return int(pixels * _DECODING_BYTES * (size / 2) * widest / _DECODING_CHANNELS)


def _packed_bytes(checkpoint: Checkpoint) -> int:
    """Bytes of numbers in MXFP4."""
    return sum(
        tensor.entry.bytes for name, tensor in checkpoint.tensors.items() if name.endswith(("_blocks", "_scales"))
    )


def _largest_module(checkpoint: Checkpoint, size: int, *, unpacks: bool = False) -> int:
    """Bytes of the most that is moved at once where each module is moved by itself."""
    return max(_module_bytes(checkpoint, size, unpacks=unpacks).values())


def _module_bytes(checkpoint: Checkpoint, size: int, *, unpacks: bool) -> Counter[str]:
    """Bytes of the tensors of each module once it is loaded, by its name."""
    found: Counter[str] = Counter()
    for name, tensor in checkpoint.tensors.items():
        entry, module = tensor.entry, name.rpartition(".")[0]
        if entry.dtype in WEIGHT_DTYPES:
            found[module] += prod(entry.shape) * size
        elif unpacks and name.endswith("_blocks"):
            # A byte holds two numbers.
            found[module] += 2 * entry.bytes * size
        elif not (unpacks and name.endswith("_scales")):
            found[module] += entry.bytes
    return found
