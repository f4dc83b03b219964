"""Generate an image with a repo, original or quantized.

Lens has a path of its own. Its text encoder needs the most memory, and only once: it is loaded first, encodes the
prompts, and is released before the transformer and the autoencoder are loaded. The memory is predicted from headers,
and compared with what is free before anything is loaded.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from converter._version import __version__
from converter.console import SILENT, Reporter, readable_size
from converter.libraries import package_versions
from converter.measurement.generation.adapters import AddedAdapters, open_adapters
from converter.measurement.generation.compiling import compiling
from converter.measurement.generation.devices import choose_device, use_device
from converter.measurement.generation.encoding import PromptStage
from converter.measurement.generation.image_file import refuse_output, write_image
from converter.measurement.generation.loading import blaming, choose_int8, forwarding_logs, import_sdnq, load_pipeline
from converter.measurement.generation.memory import DTYPE_BYTES, loaded_bytes, predict_memory, require_memory
from converter.measurement.generation.options import GenerateOptions
from converter.measurement.generation.pipeline_drawing import Drawn, draw_with_pipeline, not_finite
from converter.measurement.generation.places import pipeline_folders
from converter.measurement.generation.quantization import describe_layers
from converter.measurement.generation.repo import PipelineRepo, names_another_pipeline, open_pipeline
from converter.measurement.generation.settings import Settings, choose_settings
from converter.memory import peak_rss_bytes
from converter.models.lens.features import PromptFeatures
from converter.models.lens.int8_chain import uses_int8_chain
from converter.models.lens.mxfp4 import unpacking_text


@dataclass(frozen=True)
class GenerateReport:
    """The image, and how it was made."""

    image: Path
    settings: dict[str, Any]
    """Everything that the image depends on, as in its metadata."""
    offload: str
    predicted_memory_bytes: int
    """Predicted memory on the host."""
    predicted_device_memory_bytes: int | None
    """Predicted memory on the accelerator; None without one."""
    peak_rss_bytes: int
    peak_device_bytes: int | None
    """Peak of the memory that torch allocated on the accelerator; None without one."""
    elapsed_s: float

    def to_dict(self) -> dict[str, Any]:
        """Return what ``lensconv generate --json`` shows."""
        return {
            "image": str(self.image),
            "elapsed_s": self.elapsed_s,
            "seed": self.settings["seed"],
            "settings": self.settings,
            "offload": self.offload,
            "predicted_memory_bytes": self.predicted_memory_bytes,
            "predicted_device_memory_bytes": self.predicted_device_memory_bytes,
            "peak_rss_bytes": self.peak_rss_bytes,
            "peak_device_bytes": self.peak_device_bytes,
        }


def generate(
    repo: Path | str,
    prompt: str,
    output: Path,
    options: GenerateOptions | None = None,
    *,
    reporter: Reporter = SILENT,
) -> GenerateReport:
    """Generate an image and write it as a PNG.

    Args:
        repo: folder of a pipeline of Lens or diffusers, original or quantized; or ``hf://OWNER/NAME`` with an optional
            ``@REVISION``, of which the files that are needed are downloaded into the cache of huggingface_hub.
        prompt: what the image shows.
        output: the PNG to write.
        options: how to generate it; the defaults are the pipeline's own, for Lens those of the repo's variant.
        reporter: shows progress and notes.

    Raises:
        InputError: the repo is not what it should be, or a value is out of range.
        DeviceError: this machine does not have the accelerator, or it cannot be used.
        MemoryLimitError: there is not enough memory.
        CompilerError: the blocks cannot be compiled.
        OutputError: the image cannot be written there.
        ImageError: the model computed values that are not finite, or its safety checker blacked the image out.
        HubError: the Hub refuses, or cannot be reached.
        DiskError: the disk of the cache is full.
    """
    options = options or GenerateOptions()
    started = time.monotonic()
    # A download may take an hour.
    refuse_output(output, overwrite=options.overwrite)
    choose_device(options.device)
    with pipeline_folders([repo], reporter) as (folder,):
        draw = draw_with_pipeline if names_another_pipeline(folder) else _draw_with_lens
        drawn = draw(folder, prompt, output, options, reporter)
    is_cuda = drawn.device.type == "cuda"
    return GenerateReport(
        image=output,
        settings=drawn.settings,
        offload=options.offload,
        predicted_memory_bytes=drawn.need.host,
        predicted_device_memory_bytes=drawn.need.device if is_cuda else None,
        peak_rss_bytes=peak_rss_bytes(),
        peak_device_bytes=torch.cuda.max_memory_allocated(drawn.device) if is_cuda else None,
        elapsed_s=time.monotonic() - started,
    )


def _draw_with_lens(repo: Path, prompt: str, output: Path, options: GenerateOptions, reporter: Reporter) -> Drawn:
    """Generate an image with a Lens repo, and write it; see ``generate``."""
    opened = open_pipeline(repo)
    settings = choose_settings(opened, prompt, options)
    device = choose_device(options.device)
    use_device(device)
    if device.type == "cuda":
        # Earlier work of this process does not count.
        torch.cuda.reset_peak_memory_stats(device)
    stage = PromptStage(opened, settings, device, options.offload, options.features)
    features = stage.find(settings.prompts)
    adapters = open_adapters(repo, options.adapters)
    missing = [text for text in settings.prompts if text not in features]
    need = predict_memory(
        opened,
        settings,
        offload=options.offload,
        on_cpu=device.type == "cpu",
        unpacks=stage.unpacks,
        encodes=bool(missing),
    ).with_host(adapters.bytes)
    if missing and stage.unpacks:
        size = loaded_bytes(opened.text_encoder, DTYPE_BYTES[settings.dtype], unpacks=True)
        reporter.note(unpacking_text(size, stage.unpacking))
    require_memory(need, device)
    if device.type == "cpu" and options.offload != "none":
        reporter.note(f"--offload {options.offload} saves no memory on a CPU; the image is the same")
    import_sdnq(opened, device, reporter)
    with forwarding_logs(reporter):
        if missing:
            stored = readable_size(opened.text_encoder.total_bytes)
            reporter.note(f"encoding the prompt: loading the text encoder, {stored}")
            features |= stage.encode(missing)
        pipeline = _load(opened, settings, device, options.offload, adapters, reporter)
    with reporter.progress("generating", settings.steps, "steps") as shown:
        shown.refresh()

        def step_done() -> None:
            shown.advance(1)
            shown.refresh()

        image = run_lens(pipeline, opened, settings, features, step_done)
    metadata = {**image_metadata(settings, device, opened, pipeline), **adapters.metadata}
    write_image(image, output, metadata)
    return Drawn(metadata, need, device)


def image_metadata(settings: Settings, device: torch.device, repo: PipelineRepo, pipeline: Any) -> dict[str, Any]:
    """Return everything that an image depends on, except the weights, as JSON values."""
    return {
        **asdict(settings),
        "device": device.type,
        "quantization": describe_quantization(repo, pipeline.transformer, device),
        "versions": {"lensconv": __version__, **package_versions()},
    }


def describe_quantization(repo: PipelineRepo, transformer: Any, device: torch.device) -> dict[str, Any] | None:
    """Say how a loaded transformer is quantized, whether its products are computed in integers, and by what.

    Args:
        repo: its repo.
        transformer: the model.
        device: where it runs.

    Returns:
        JSON values; None if it is not quantized.
    """
    if repo.quantization is None:
        return None
    described = describe_layers(transformer, repo.quantization, device)
    return {**described, "int8_chain": uses_int8_chain(transformer)}


def call_arguments(settings: Settings) -> dict[str, Any]:
    """Return the arguments of the pipeline, except the prompts."""
    return {
        "height": settings.height,
        "width": settings.width,
        "num_inference_steps": settings.steps,
        "guidance_scale": settings.guidance,
        # The noise is made on the CPU, so that a seed means the same on every device.
        "generator": torch.Generator("cpu").manual_seed(settings.seed),
    }


def refuse_not_finite(latents: torch.Tensor) -> None:
    """Refuse latents with NaN or infinity, which do not make an image.

    Raises:
        ImageError: there are such values.
    """
    if not latents.isfinite().all():
        raise not_finite()


def _load(
    repo: PipelineRepo,
    settings: Settings,
    device: torch.device,
    offload: str,
    adapters: AddedAdapters,
    reporter: Reporter,
) -> Any:
    """Load the pipeline without the text encoder, and say how it computes where that is not obvious."""
    reporter.note(f"generating: loading the transformer, {readable_size(repo.transformer.total_bytes)}")
    dtype: torch.dtype = getattr(torch, settings.dtype)
    pipeline = load_pipeline(repo, dtype, device, offload, compiles=settings.compiles, adapt=adapters.add)
    if reason := choose_int8(pipeline, repo, device, settings.int8):
        reporter.note(f"the int8 chain is not used, but SDNQ's own layers: {reason}")
    if settings.compiles:
        reporter.note("compiling the transformer's block: the first step takes longer than the others")
    return pipeline


def run_lens(
    pipeline: Any,
    repo: PipelineRepo,
    settings: Settings,
    features: Mapping[str, PromptFeatures],
    step_done: Callable[[], object],
) -> Any:
    """Call a loaded pipeline.

    Args:
        pipeline: loaded; it needs no text encoder.
        repo: its repo.
        settings: of the image.
        features: of its prompts, by prompt.
        step_done: called after each step.

    Returns:
        The image.

    Raises:
        ImageError: the model computed numbers that are not finite.
        UnsupportedCheckpoint: it fails otherwise.
        MemoryLimitError: memory was used up.
        CompilerError: a block cannot be compiled.
    """
    given: dict[str, Any] = {}
    for name, prompt in zip(("prompt", "negative_prompt"), settings.prompts, strict=False):
        given |= {f"{name}_embeds": features[prompt].embeds, f"{name}_mask": features[prompt].mask}

    def step_ended(_: Any, step: int, __: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        step_done()
        if step == settings.steps - 1:
            refuse_not_finite(tensors["latents"])
        return {}

    with blaming(repo.folder), compiling(settings.compile):
        return pipeline(**given, **call_arguments(settings), callback_on_step_end=step_ended).images[0]
