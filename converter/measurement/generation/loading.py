"""Load the parts of a Lens pipeline, and check each for faults that the loaders ignore."""

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
from converter.errors import MalformedCheckpoint, MemoryLimitError, UnsupportedCheckpoint
from converter.lens import LensGptOssEncoder, LensPipeline, LensTransformer2DModel
from converter.libraries import loading_errors, missing_package
from converter.measurement.generation.compiling import compile_blocks
from converter.measurement.generation.memory import LESS_MEMORY
from converter.measurement.generation.repo import PipelineRepo
from converter.models.classes import refuse_absurd
from converter.models.lens.layout import MAXIMUM_LAYERS
from converter.models.lens.mxfp4 import will_unpack

#: What torch says when the CPU's memory is used up; it has no class of errors for that.
_NO_MEMORY = ("can't allocate memory", "not enough memory")


def load_tokenizer(repo: PipelineRepo) -> Any:
    """Load the tokenizer.

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
    """Return whether the text encoder is stored in MXFP4 and is unpacked."""
    return repo.has_packed_text_encoder and (will_unpack() or offload == "sequential")


def load_text_encoder(repo: PipelineRepo, dtype: torch.dtype, device: torch.device, *, unpacks: bool) -> Any:
    """Load the text encoder.

    Args:
        repo: its pipeline repo.
        dtype: of its numbers.
        device: where it is loaded; packed weights cannot be moved later.
        unpacks: whether weights in MXFP4 are unpacked to that dtype.

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
    compiles: bool = False,
    text_encoder: Any = None,
    tokenizer: Any = None,
) -> Any:
    """Load the pipeline on the device where it runs.

    Args:
        repo: the pipeline repo.
        dtype: of its numbers.
        device: where it runs.
        offload: as in ``GenerateOptions``.
        compiles: whether the blocks of the transformer are compiled when they first run.
        text_encoder: a loaded one; without it the pipeline takes features of prompts.
        tokenizer: its tokenizer.

    Raises:
        CompilerError: torch's compiler does not work here.

    For the other errors, see ``load_text_encoder``.
    """
    transformer = _load(LensTransformer2DModel, repo.transformer, torch_dtype=dtype)
    vae = _load(AutoencoderKLFlux2, repo.vae, torch_dtype=dtype)
    with blaming(repo.folder / "scheduler"):
        scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(repo.folder / "scheduler")
        if not scheduler.config.use_dynamic_shifting:
            raise ValueError("use_dynamic_shifting is false, but Lens needs true")
    pipeline = LensPipeline(scheduler, vae, text_encoder, tokenizer, transformer)
    pipeline.set_progress_bar_config(disable=True)
    with blaming(repo.folder):
        if offload == "model":
            pipeline.enable_model_cpu_offload(device=device)
        elif offload == "sequential":
            pipeline.enable_sequential_cpu_offload(device=device)
        else:
            pipeline.to(device)
    if compiles:
        compile_blocks(transformer)
    return pipeline


def _load(model_class: Any, checkpoint: Any, **options: Any) -> Any:
    """Load a component, and refuse missing tensors, which loaders fill with random numbers."""
    where = checkpoint.folder
    refuse_absurd(checkpoint.config, max(MAXIMUM_LAYERS, len(checkpoint.tensors)), str(where / "config.json"))
    with blaming(where):
        model, found = model_class.from_pretrained(
            where, use_safetensors=True, local_files_only=True, output_loading_info=True, **options
        )
    lacking = sorted(found["missing_keys"])
    if lacking:
        raise MalformedCheckpoint(where, f"is missing, and {model_class.__name__} needs it", tensor=lacking[0])
    return model.eval()


@contextmanager
def blaming(part: Path) -> Iterator[None]:
    """Turn errors of the libraries inside the block into one that names a part of the repo, or the lack of memory.

    Args:
        part: its path.

    Raises:
        UnsupportedCheckpoint: what the block raised.
        DependencyError: a package is missing.
        MemoryLimitError: memory was used up.
    """
    try:
        yield
    except loading_errors(jinja2.TemplateError) as error:
        # transformers raises ValueError where tiktoken is missing.
        for cause in (error, error.__context__):
            if isinstance(cause, ImportError):
                raise missing_package(f"{part}: cannot be loaded", cause) from error
        text = str(error) or repr(error)
        if isinstance(error, torch.OutOfMemoryError) or any(sign in text for sign in _NO_MEMORY):
            raise MemoryLimitError(f"there is not enough memory: {text}", LESS_MEMORY) from error
        hint = "Compare it with the repo that it was made from, or download it again."
        raise UnsupportedCheckpoint(f"{part}: cannot be used: {text}", hint) from error


@contextmanager
def forwarding_logs(reporter: Reporter) -> Iterator[None]:
    """Report what the model's code logs inside the block as notes."""

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
