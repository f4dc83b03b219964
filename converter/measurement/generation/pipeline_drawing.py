"""Generate an image with any pipeline of diffusers that makes one of a prompt, through its public interface."""

from __future__ import annotations

import itertools
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image

from converter._version import __version__
from converter.console import Reporter
from converter.errors import ImageError, UnsupportedCheckpoint, UsageError, first_line
from converter.libraries import package_versions
from converter.measurement.generation.adapters import open_adapters
from converter.measurement.generation.compiling import compiling
from converter.measurement.generation.devices import choose_device, use_device
from converter.measurement.generation.image_file import write_image
from converter.measurement.generation.loading import blaming, forwarding_logs, import_sdnq
from converter.measurement.generation.memory import (
    DTYPE_BYTES,
    OVERHEAD_BYTES,
    MemoryNeed,
    require_memory,
)
from converter.measurement.generation.options import GenerateOptions
from converter.measurement.generation.pipeline_loading import (
    OpenPipeline,
    compile_denoisers,
    load_components,
    load_tokenizers,
    models_of,
    open_other_pipeline,
    place,
)
from converter.measurement.generation.pipeline_settings import PipelineSettings, choose_pipeline_settings
from converter.measurement.generation.prompt_lengths import cut_prompts
from converter.measurement.generation.quantization import describe_layers
from converter.models.int8_kernels import prepare_int8_kernel
from converter.models.pipeline_memory import pipeline_memory

#: What numpy warns of where numbers that are not finite become pixels.
_NOT_FINITE = "invalid value encountered in cast"
#: Fields of outputs that tell whether a safety checker blacked the image out.
_BLACKED_OUT = ("nsfw_content_detected", "nsfw_detected")


@dataclass(frozen=True)
class Drawn:
    """What was drawn, where, and with how much memory."""

    settings: dict[str, Any]
    """Everything that the image depends on, except the weights, as JSON values."""
    need: MemoryNeed
    """The predicted memory."""
    device: torch.device


def draw_with_pipeline(folder: Path, prompt: str, output: Path, options: GenerateOptions, reporter: Reporter) -> Drawn:
    """Generate an image with a pipeline of diffusers, and write it as a PNG.

    Args: those of ``generate``.

    Raises: what ``generate`` raises.
    """
    repo = open_other_pipeline(folder)
    settings = choose_pipeline_settings(repo.pipeline, prompt, options)
    device = choose_device(options.device)
    use_device(device)
    if device.type == "cuda":
        # Earlier work of this process does not count.
        torch.cuda.reset_peak_memory_stats(device)
    adapters = open_adapters(folder, options.adapters)
    need = predict_pipeline_memory(repo, settings.dtype, options.offload, device).with_host(adapters.bytes)
    require_memory(need, device)
    if device.type == "cpu" and options.offload != "none":
        reporter.note(f"--offload {options.offload} saves no memory on a CPU; the image is the same")
    import_sdnq(repo, device, reporter)
    for note in adapters.notes:
        reporter.note(note)
    with forwarding_logs(reporter):
        tokenizers = load_tokenizers(repo)
        for note in cut_prompts(tokenizers, settings):
            reporter.note(note)
        pipeline = load_pipeline_of_diffusers(
            repo, tokenizers, settings, device, options.offload, reporter, adapt=adapters.add
        )
    with reporter.progress("generating", settings.steps or 0, "steps") as shown:
        shown.refresh()

        def step_done(latents: Any, is_last: bool) -> None:
            shown.advance(1)
            shown.refresh()
            if is_last:
                refuse_latents(latents)

        image = run_pipeline(pipeline, repo, settings, device, step_done)
    drawn = replace(settings, height=image.height, width=image.width)
    if settings.height and (settings.height, settings.width) != (drawn.height, drawn.width):
        asked = f"{settings.width}x{settings.height}"
        reporter.note(f"{settings.pipeline} rounds sizes: asked for {asked}, drawn {drawn.width}x{drawn.height}")
    metadata = {**pipeline_metadata(drawn, device, repo, pipeline), **adapters.metadata}
    write_image(image, output, metadata)
    return Drawn(metadata, need, device)


def predict_pipeline_memory(repo: OpenPipeline, dtype: str, offload: str, device: torch.device) -> MemoryNeed:
    """Predict the least memory that an image needs: that of the weights, as what a pipeline computes is not known."""
    memory = pipeline_memory(repo.examined, DTYPE_BYTES[dtype])
    host, accelerator = memory.placed(offload, on_cpu=device.type == "cpu")
    more = OVERHEAD_BYTES if accelerator else 0
    return MemoryNeed(host + OVERHEAD_BYTES, accelerator + more, weights_only=True)


def load_pipeline_of_diffusers(
    repo: OpenPipeline,
    tokenizers: dict[str, Any],
    settings: PipelineSettings,
    device: torch.device,
    offload: str,
    reporter: Reporter,
    *,
    offloads_on_cpu: bool = False,
    adapt: Callable[[str, torch.nn.Module], object] | None = None,
    placed: Callable[[str], object] | None = None,
) -> Any:
    """Load a pipeline where it runs.

    Args:
        repo: its repo.
        tokenizers: loaded ones.
        settings: of the image.
        device: where it runs.
        offload: as in ``GenerateOptions``.
        reporter: is told what is loaded.
        offloads_on_cpu: as for ``place``.
        adapt: as for ``load_components``.
        placed: as for ``load_components``.

    Raises: as ``load_components`` and ``find_int8_kernel``.
    """
    dtype: torch.dtype = getattr(torch, settings.dtype)
    moves_at_once = offload == "none" and device.type != "cpu"
    loaded_on = device if moves_at_once else None
    pipeline = load_components(repo, tokenizers, dtype, loaded_on, reporter, adapt=adapt, placed=placed)
    with blaming(repo.pipeline.folder):
        place(pipeline, device, offload, offloads_on_cpu=offloads_on_cpu)
    if settings.compiles:
        reporter.note("compiling the denoiser's block: the first step takes longer than the others")
        compile_denoisers(pipeline, repo.pipeline)
    return pipeline


def run_pipeline(
    pipeline: Any,
    repo: OpenPipeline,
    settings: PipelineSettings,
    device: torch.device,
    step_done: Callable[[Any, bool], None],
) -> Image:
    """Call a loaded pipeline.

    Args:
        pipeline: loaded.
        repo: its repo.
        settings: of the image.
        device: where it runs.
        step_done: called after each step, where the pipeline calls back, with its latents and whether it is the last.

    Returns:
        The image.

    Raises:
        UsageError: the pipeline refuses an argument.
        ImageError: it computed numbers that are not finite, or blacked the image out.
        UnsupportedCheckpoint: it fails otherwise.
        MemoryLimitError: memory was used up.
        CompilerError: a block cannot be compiled.
    """
    call = repo.pipeline.call
    for model in models_of(pipeline).values():
        prepare_int8_kernel(model, device)
    with (
        blaming(repo.pipeline.folder),
        _blaming_options(settings.pipeline),
        compiling(settings.compile),
        _refusing_not_finite(),
    ):
        output = pipeline(**settings.call_arguments(call), **_callbacks(call.takes, pipeline, step_done))
    if any(any(getattr(output, name, None) or ()) for name in _BLACKED_OUT):
        raise ImageError(
            f"{repo.pipeline.folder}: its safety checker blacked the image out", "Use another prompt or --seed."
        )
    images = getattr(output, "images", None) or getattr(output, "image", None)
    if not images or not isinstance(images[0], Image):
        raise UnsupportedCheckpoint(f"{repo.pipeline.folder}: {settings.pipeline} made no image")
    return images[0]


def pipeline_metadata(
    settings: PipelineSettings, device: torch.device, repo: OpenPipeline, pipeline: Any
) -> dict[str, Any]:
    """Return everything that an image depends on, except the weights, as JSON values."""
    described = {
        name: describe_layers(getattr(pipeline, name), quantization, device)
        for name, quantization in repo.quantizations.items()
    }
    return {
        **settings.to_dict(),
        "device": device.type,
        "quantization": described or None,
        "versions": {"lensconv": __version__, **package_versions()},
    }


def _callbacks(takes: Callable[[str], bool], pipeline: Any, step_done: Callable[[Any, bool], None]) -> dict[str, Any]:
    """Arguments that call back after each step, in either of two ways in which pipelines take them."""
    numbers = itertools.count(1)

    def at_end(_: Any, __: int, ___: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        advance(tensors.get("latents"))
        return {}

    def advance(latents: Any) -> None:
        # The last latents are those that are decoded; the number of steps is known once the schedule is.
        is_last = next(numbers) >= len(getattr(getattr(pipeline, "scheduler", None), "timesteps", ()))
        step_done(latents, is_last)

    if takes("callback_on_step_end"):
        return {"callback_on_step_end": at_end}
    if takes("callback") and takes("callback_steps"):
        return {"callback": lambda _, __, latents: advance(latents), "callback_steps": 1}
    return {}


def refuse_latents(latents: Any) -> None:
    """Refuse latents with NaN or infinity, which do not make an image; anything but a tensor is ignored.

    Raises:
        ImageError: there are such values.
    """
    if isinstance(latents, torch.Tensor) and not latents.isfinite().all():
        raise not_finite()


def not_finite() -> ImageError:
    """The error for numbers that do not make an image."""
    return ImageError(
        "the model computed numbers that are not finite",
        "Check the weights with `lensconv verify`, or compute in another --dtype.",
    )


@contextmanager
def _refusing_not_finite() -> Iterator[None]:
    """Refuse pixels that are not finite, and hide what libraries warn of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", _NOT_FINITE, RuntimeWarning)
        try:
            yield
        except RuntimeWarning as warning:
            raise not_finite() from warning


@contextmanager
def _blaming_options(name: str) -> Iterator[None]:
    """Turn what a pipeline's own check of its arguments raises into an error of the command line."""
    try:
        yield
    except (TypeError, ValueError) as error:
        frames = traceback.walk_tb(error.__traceback__)
        if any(frame.f_code.co_name == "check_inputs" for frame, _ in frames):
            raise UsageError(f"{name} refuses these options: {first_line(error)}") from error
        raise
