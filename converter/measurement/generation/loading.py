"""Load the parts of a Lens pipeline, and check each for faults that the loaders ignore."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import jinja2
import torch
from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler
from transformers import Mxfp4Config, PreTrainedTokenizerFast

from converter.checkpoint.source import Checkpoint
from converter.console import SILENT, Reporter
from converter.errors import MalformedCheckpoint, MemoryLimitError, UnsupportedCheckpoint
from converter.lens import LensGptOssEncoder, LensPipeline, LensTransformer2DModel
from converter.libraries import (
    COMPILE_VARIABLE,
    load_library,
    loading_errors,
    missing_package,
    sdnq_compiles,
    user_environment,
)
from converter.measurement.generation.compiling import compile_blocks
from converter.measurement.generation.memory import LESS_MEMORY
from converter.measurement.generation.repo import PipelineRepo
from converter.models.classes import refuse_absurd
from converter.models.device_errors import lacks_memory
from converter.models.int8_kernels import find_int8_kernel, use_int8_kernel
from converter.models.lens.int8_chain import enable_int8_chain
from converter.models.lens.layout import MAXIMUM_LAYERS
from converter.models.lens.mxfp4 import NEEDS_GPU, unpacking_reason
from converter.models.sdnq_layers import has_integer_products

#: What to say if SDNQ does not compile on an accelerator: when it has been imported just now, and when it was before.
_UNCOMPILED = {
    False: "SDNQ cannot compile its functions on this machine, so images take longer; torch.compile needs Triton and a "
    "C compiler",
    True: "SDNQ was imported earlier in this process, and does not compile its functions, so images take longer; "
    "generate in a new process to compile them",
}


class QuantizedRepo(Protocol):
    """A repo that says whether it needs SDNQ."""

    @property
    def uses_sdnq(self) -> bool:
        """Whether SDNQ has quantized a component."""


def import_sdnq(repo: QuantizedRepo, device: torch.device, reporter: Reporter = SILENT) -> None:
    """Import SDNQ if the repo needs it; on an accelerator, it may compile its functions.

    Otherwise diffusers would import it, and it would compile on a CPU, too.

    Args:
        repo: what will be loaded.
        device: where it will run; it is the current device already, since SDNQ looks at that one.
        reporter: is told if SDNQ does not compile on an accelerator, unless the user has turned it off.

    Raises:
        DependencyError: it cannot be imported.
    """
    if not repo.uses_sdnq:
        return
    was_imported = sdnq_compiles() is not None
    load_library("sdnq", compiles=device.type != "cpu")
    if device.type != "cpu" and not sdnq_compiles() and COMPILE_VARIABLE not in user_environment():
        reporter.note(_UNCOMPILED[was_imported])


def load_tokenizer(repo: PipelineRepo) -> Any:
    """Load the tokenizer.

    Raises:
        UnsupportedCheckpoint: it cannot be loaded.
    """
    return load_small(PreTrainedTokenizerFast, repo.folder / "tokenizer")


def load_small(loaded_class: Any, folder: Path, **options: Any) -> Any:
    """Load a component without weights.

    Args:
        loaded_class: its class.
        folder: where it is.
        options: of ``from_pretrained``.

    Raises:
        UnsupportedCheckpoint: it cannot be loaded.
        DependencyError: a package is missing.
    """
    with blaming(folder):
        try:
            return loaded_class.from_pretrained(folder, local_files_only=True, **options)
        except Exception as error:
            # The tokenizers library raises nothing more specific for a file that it cannot use.
            if type(error) is not Exception:
                raise
            raise ValueError(str(error)) from error


def encoder_unpacking(repo: PipelineRepo, offload: str, device: torch.device) -> str:
    """Say why the text encoder is unpacked when it is loaded; empty if it is not in MXFP4, or stays packed.

    Args:
        repo: its pipeline repo.
        offload: as in ``GenerateOptions``.
        device: where it runs.
    """
    if not repo.has_packed_text_encoder:
        return ""
    if device.type == "cpu":
        # On a machine with a GPU, transformers would leave it packed, on the GPU.
        return NEEDS_GPU
    if offload == "sequential":
        return "--offload sequential moves every weight, and a kernel keeps packed ones on the GPU"
    return unpacking_reason()


def load_text_encoder(repo: PipelineRepo, dtype: torch.dtype, device: torch.device, *, unpacks: bool) -> Any:
    """Load the text encoder.

    Args:
        repo: its pipeline repo.
        dtype: of its numbers.
        device: where it is loaded; packed experts go to the accelerator in any case, and stay there.
        unpacks: whether weights in MXFP4 are unpacked to that dtype.

    Raises:
        UnsupportedCheckpoint: it cannot be loaded.
        MalformedCheckpoint: tensors are missing.
        MemoryLimitError: there is not enough memory.
    """
    options: dict[str, Any] = {}
    if device.type != "cpu":
        options["device_map"] = {"": device}
    if repo.has_packed_text_encoder:
        options["quantization_config"] = Mxfp4Config(dequantize=unpacks)
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
    adapt: Callable[[str, torch.nn.Module], object] | None = None,
    placed: Callable[[str], object] | None = None,
) -> Any:
    """Load the pipeline on the device where it runs, and find the kernel that quantized layers multiply with there.

    Args:
        repo: the pipeline repo.
        dtype: of its numbers.
        device: where it runs.
        offload: as in ``GenerateOptions``.
        compiles: whether the blocks of the transformer are compiled when they first run.
        text_encoder: a loaded one; without it the pipeline takes features of prompts.
        tokenizer: its tokenizer.
        adapt: called with the name and the model of the transformer while it is on the CPU; may change its weights.
        placed: without offloading, called with the name of each model that was moved to the device.

    Raises:
        CompilerError: torch's compiler does not work here.

    For the other errors, see ``load_text_encoder`` and ``find_int8_kernel``.
    """
    transformer = _load(LensTransformer2DModel, repo.transformer, torch_dtype=dtype)
    if adapt is not None:
        adapt("transformer", transformer)
    vae = _load(AutoencoderKLFlux2, repo.vae, torch_dtype=dtype)
    with blaming(repo.folder / "scheduler"):
        scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(repo.folder / "scheduler")
        if not scheduler.config.use_dynamic_shifting:
            raise ValueError("use_dynamic_shifting is false, but Lens needs true")
    pipeline = LensPipeline(scheduler, vae, text_encoder, tokenizer, transformer)
    pipeline.set_progress_bar_config(disable=True)
    with blaming(repo.folder):
        if has_integer_products(transformer):
            use_int8_kernel(transformer, find_int8_kernel(device))
        if offload == "model":
            pipeline.enable_model_cpu_offload(device=device)
        elif offload == "sequential":
            pipeline.enable_sequential_cpu_offload(device=device)
        else:
            for name in ("transformer", "vae"):
                getattr(pipeline, name).to(device)
                if placed is not None:
                    placed(name)
            pipeline.to(device)
    if compiles:
        compile_blocks(transformer)
    return pipeline


def choose_int8(pipeline: Any, repo: PipelineRepo, device: torch.device, method: str) -> str | None:
    """Let quantized layers of the transformer compute as the caller asks for, if that is possible.

    Args:
        pipeline: the pipeline, where it runs.
        repo: its pipeline repo.
        device: where it runs.
        method: as ``int8`` in ``GenerateOptions``.

    Returns:
        Why the chain is not used, if the caller asked for it and the transformer is quantized; else None.

    Raises: as ``load_text_encoder``.
    """
    if method != "chain" or repo.quantization is None:
        return None
    with blaming(repo.transformer.folder):
        return enable_int8_chain(pipeline.transformer, device)


def _load(model_class: Any, checkpoint: Checkpoint, **options: Any) -> Any:
    return load_model(model_class, checkpoint.folder, checkpoint.config, len(checkpoint.tensors), **options)


def load_model(model_class: Any, where: Path, config: Mapping[str, Any], tensors: int, **options: Any) -> Any:
    """Load a component with weights, and refuse missing tensors, which loaders fill with random numbers.

    Args:
        model_class: its class.
        where: its folder.
        config: content of its ``config.json``.
        tensors: how many its files have.
        options: of ``from_pretrained``.

    Raises:
        UnsupportedCheckpoint: it cannot be loaded.
        MalformedCheckpoint: tensors are missing.
        MemoryLimitError: there is not enough memory.
        DependencyError: a package is missing.
    """
    refuse_absurd(config, max(MAXIMUM_LAYERS, tensors), str(where / "config.json"))
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
        if lacks_memory(error):
            raise MemoryLimitError(f"there is not enough memory: {text}", LESS_MEMORY) from error
        hint = "Compare it with the repo that it was made from, or download it again."
        raise UnsupportedCheckpoint(f"{part}: cannot be used: {text}", hint) from error


@contextmanager
def forwarding_logs(reporter: Reporter) -> Iterator[None]:
    """Report what the model's code logs inside the block as notes."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            reporter.note(record.getMessage())

    logger = logging.getLogger("converter.models")
    handler, propagates = Handler(), logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagates
