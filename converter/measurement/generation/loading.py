"""Loading the parts of a Lens pipeline, each only when it runs, and each checked for what loaders pass over."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jinja2
import torch
from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler
from transformers import Mxfp4Config, PreTrainedTokenizerFast

from converter.console import Reporter
from converter.errors import MalformedCheckpoint, MemoryLimitError, UnsupportedCheckpoint, printable
from converter.lens import LensGptOssEncoder, LensPipeline, LensTransformer2DModel
from converter.libraries import LOADING_ERRORS
from converter.measurement.generation.repo import PipelineRepo
from converter.models.classes import refuse_absurd
from converter.models.lens.layout import MAXIMUM_LAYERS
from converter.models.lens.mxfp4 import will_unpack

#: What torch says when the CPU's memory is used up; it is no class of its own.
_NO_MEMORY = ("can't allocate memory", "not enough memory")


def load_tokenizer(repo: PipelineRepo) -> Any:
    """The tokenizer.

    Raises:
        UnsupportedCheckpoint: it cannot be loaded.
    """
    folder = repo.folder / "tokenizer"
    with blaming(folder):
        try:
            return PreTrainedTokenizerFast.from_pretrained(folder)
        except Exception as error:
            # The tokenizers library raises nothing more specific for a file that it cannot use.
            if type(error) is not Exception:
                raise
            raise ValueError(str(error)) from error


def encoder_unpacks(repo: PipelineRepo, offload: str) -> bool:
    """Whether the text encoder comes in MXFP4 and is unpacked."""
    return repo.has_packed_text_encoder and (will_unpack() or offload == "sequential")


def load_text_encoder(repo: PipelineRepo, dtype: torch.dtype, device: torch.device, *, unpacks: bool) -> Any:
    """The text encoder.

    Args:
        repo: where it is.
        dtype: of its numbers.
        device: where it is put; packed weights cannot be moved once they are loaded.
        unpacks: whether what is in MXFP4 is unpacked to that dtype.

    Raises:
        UnsupportedCheckpoint: it cannot be loaded.
        MalformedCheckpoint: tensors are missing.
        MemoryLimitError: there is not enough memory.
    """
    options: dict[str, Any] = {}
    if device.type != "cpu":
        options["device_map"] = {"": device}
    if unpacks:
        options["quantization_config"] = Mxfp4Config(dequantize=True)
    return _load(LensGptOssEncoder, repo.text_encoder, dtype=dtype, attn_implementation="eager", **options)


def load_pipeline(
    repo: PipelineRepo,
    dtype: torch.dtype,
    device: torch.device,
    offload: str,
    *,
    text_encoder: Any = None,
    tokenizer: Any = None,
) -> Any:
    """The pipeline, where it will run.

    Args:
        repo: where it is.
        dtype: of its numbers.
        device: where it runs.
        offload: as in ``GenerateOptions``.
        text_encoder: one that is loaded; without it the pipeline takes features of prompts.
        tokenizer: its tokenizer.

    Raises: as ``load_text_encoder``.
    """
    transformer = _load(LensTransformer2DModel, repo.transformer, torch_dtype=dtype)
    vae = _load(AutoencoderKLFlux2, repo.vae, torch_dtype=dtype)
    with blaming(repo.folder / "scheduler"):
        scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(repo.folder / "scheduler")
        if not scheduler.config.use_dynamic_shifting:
            raise ValueError("use_dynamic_shifting is false, which Lens needs")
    pipeline = LensPipeline(scheduler, vae, text_encoder, tokenizer, transformer)
    pipeline.set_progress_bar_config(disable=True)
    with blaming(repo.folder):
        if offload == "model":
            pipeline.enable_model_cpu_offload(device=device)
        elif offload == "sequential":
            pipeline.enable_sequential_cpu_offload(device=device)
        else:
            pipeline.to(device)
    return pipeline


def _load(model_class: Any, checkpoint: Any, **options: Any) -> Any:
    """Load a component; what it lacks, a loader would fill with random numbers."""
    where = checkpoint.folder
    refuse_absurd(checkpoint.config, max(MAXIMUM_LAYERS, len(checkpoint.tensors)), str(where / "config.json"))
    with blaming(where):
        model, found = model_class.from_pretrained(
            where, use_safetensors=True, local_files_only=True, output_loading_info=True, **options
        )
    lacking = sorted(found["missing_keys"])
    if lacking:
        raise MalformedCheckpoint(where, f"{model_class.__name__} needs it, and no file has it", tensor=lacking[0])
    mismatched = found["mismatched_keys"]
    if mismatched:
        name = next(iter(mismatched))
        raise MalformedCheckpoint(
            where, "has another shape than config.json asks for", tensor=name if isinstance(name, str) else name[0]
        )
    return model.eval()


@contextmanager
def blaming(place: Path) -> Iterator[None]:
    """Say of what the libraries raise inside the block that a part of the repo is at fault, or memory.

    Args:
        place: the part.

    Raises:
        UnsupportedCheckpoint: what the block raised.
        MemoryLimitError: memory was used up.
    """
    try:
        yield
    except (*LOADING_ERRORS, jinja2.TemplateError) as error:
        text = printable(str(error) or repr(error))
        if isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in _NO_MEMORY):
            raise MemoryLimitError(
                f"there is not enough memory: {text}", "Draw a smaller image, or use --offload or a quantized repo."
            ) from error
        raise UnsupportedCheckpoint(
            f"{place}: cannot be used: {text}", "Compare it with the repo that it was made from."
        ) from error


@contextmanager
def forwarding_logs(reporter: Reporter) -> Iterator[None]:
    """Hand on as notes what the model's code logs inside the block."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            reporter.note(record.getMessage())

    logger = logging.getLogger("converter.models.lens")
    handler, propagates = Handler(), logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagates
