"""An original pipeline that is loaded once, and draws many images as `generate` draws each.

Weights of its denoiser are exchanged while it stays loaded, so everything that would copy or compile them is refused.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image

from converter.checkpoint.source import Checkpoint, open_checkpoint
from converter.console import SILENT, Reporter, readable_size
from converter.errors import UnsupportedCheckpoint, UsageError
from converter.measurement.benchmark.repos import ImageSettings, MeasuredRepo, open_measured
from converter.measurement.generation.devices import choose_device, use_device
from converter.measurement.generation.encoding import PromptStage
from converter.measurement.generation.generate import run_lens
from converter.measurement.generation.loading import forwarding_logs, import_sdnq, load_pipeline
from converter.measurement.generation.memory import (
    DTYPE_BYTES,
    MemoryNeed,
    loaded_bytes,
    predict_memory,
    require_memory,
)
from converter.measurement.generation.options import GenerateOptions
from converter.measurement.generation.pipeline_drawing import (
    load_pipeline_of_diffusers,
    predict_pipeline_memory,
    refuse_latents,
    run_pipeline,
)
from converter.measurement.generation.pipeline_loading import OpenPipeline, load_tokenizers
from converter.measurement.generation.pipeline_settings import PipelineSettings
from converter.measurement.generation.repo import PipelineRepo
from converter.measurement.generation.settings import Settings
from converter.models.lens.features import PromptFeatures
from converter.models.lens.mxfp4 import unpacking_text
from converter.models.unsuitable import refuse_adapter, refuse_quantized


def _do_nothing() -> None:
    """Ignore the end of a step."""


@dataclass(frozen=True)
class _Quantized:
    """What needs SDNQ."""

    uses_sdnq: bool = True


@dataclass(frozen=True)
class LoadedOriginal:
    """An original pipeline where it runs."""

    repo: MeasuredRepo
    pipeline: Any
    device: torch.device
    dtype: torch.dtype
    """Of the computation."""
    features: Mapping[str, PromptFeatures] = field(default_factory=dict)
    """Of Lens's prompts, whose text encoder is not loaded any more."""

    @property
    def component(self) -> str:
        """Name of the denoiser's component; of two denoisers, the one that is measured."""
        return self.repo.denoiser

    @property
    def denoiser(self) -> Any:
        """The module that denoises."""
        return getattr(self.pipeline, self.component)

    @property
    def checkpoint(self) -> Checkpoint:
        """The denoiser's tensors on disk."""
        return denoiser_checkpoint(self.repo)

    def draw(self, settings: ImageSettings, step_done: Callable[[], object] = _do_nothing) -> Image:
        """Draw an image.

        Args:
            settings: one of those with which the pipeline was loaded.
            step_done: called after each step, where the pipeline calls back.

        Raises: what ``run_lens`` and ``run_pipeline`` raise.
        """
        if isinstance(settings, Settings) and isinstance(self.repo, PipelineRepo):
            image: Image = run_lens(self.pipeline, self.repo, settings, self.features, step_done)
            return image
        if not isinstance(settings, PipelineSettings) or not isinstance(self.repo, OpenPipeline):
            raise TypeError(f"{type(settings).__name__} is not for {self.repo.class_name}")

        def step_ended(latents: Any, is_last: bool) -> None:
            step_done()
            if is_last:
                refuse_latents(latents)

        return run_pipeline(self.pipeline, self.repo, settings, self.device, step_ended)


def open_original(folder: Path) -> MeasuredRepo:
    """Open a repo, and refuse one that is quantized already.

    Raises:
        UnsupportedCheckpoint: a component is quantized; the message names it.

    Raises also what ``open_measured`` raises.
    """
    repo = open_measured(folder)
    for name in repo.quantizations:
        raise UnsupportedCheckpoint(
            f"{folder}: {name} is quantized already", "Give the original that the release was made from."
        )
    checkpoint = denoiser_checkpoint(repo)
    refuse_quantized(checkpoint)
    refuse_adapter(checkpoint)
    return repo


def denoiser_checkpoint(repo: MeasuredRepo) -> Checkpoint:
    """Return the tensors of a repo's denoiser on disk."""
    if isinstance(repo, PipelineRepo):
        return repo.transformer
    return open_checkpoint(repo.folder, component=repo.denoiser)


def load_original(
    repo: MeasuredRepo,
    settings: Sequence[ImageSettings],
    options: GenerateOptions,
    *,
    added_bytes: int = 0,
    reporter: Reporter = SILENT,
) -> LoadedOriginal:
    """Load an original as `generate` loads it.

    Lens's prompts are encoded first, all of them, and the text encoder is released.

    Args:
        repo: the original.
        settings: of all images that will be drawn; at least one.
        options: as the settings were chosen from: device, dtype and offloading.
        added_bytes: memory that quantized weights take besides, where the denoiser runs.
        reporter: is told what is loaded, and which denoiser is measured if there are several.

    Raises:
        UsageError: an option cannot be used while weights are exchanged.
        UnsupportedCheckpoint: a component cannot be loaded.
        MalformedCheckpoint: tensors are missing.
        MemoryLimitError: there is not enough memory.
        DeviceError: the device cannot be used.
        DependencyError: a package is missing.
    """
    refuse_options(options)
    device = choose_device(options.device)
    use_device(device)
    _free_unused(device)
    dtype: torch.dtype = getattr(torch, options.dtype)
    # Quantized weights will take the place of others; SDNQ computes with them as in `generate`.
    import_sdnq(_Quantized(), device, reporter)
    with forwarding_logs(reporter):
        if isinstance(repo, PipelineRepo):
            of_lens = [found for found in settings if isinstance(found, Settings)]
            features = _encode(repo, of_lens, options, device, added_bytes, reporter)
            pipeline = load_pipeline(repo, dtype, device, options.offload)
            return LoadedOriginal(repo, pipeline, device, dtype, features)
        denoisers = [component.name for component in repo.pipeline.having("denoiser")]
        if len(denoisers) > 1:
            reporter.note(f"{repo.class_name} has {' and '.join(denoisers)}; only {repo.denoiser} is measured")
        first = next(found for found in settings if isinstance(found, PipelineSettings))
        need = predict_pipeline_memory(repo, options.dtype, options.offload, device)
        require_memory(_with_added(need, added_bytes), device)
        tokenizers = load_tokenizers(repo)
        pipeline = load_pipeline_of_diffusers(repo, tokenizers, first, device, options.offload, reporter)
    return LoadedOriginal(repo, pipeline, device, dtype)


def _free_unused(device: torch.device) -> None:
    """Free what this process does not use any more, which would count as memory that is not free.

    Denoisers of diffusers have cycles of references, so that one that was loaded before may still be there.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def refuse_options(options: GenerateOptions) -> None:
    """Refuse what would keep weights elsewhere than in the modules, or computes with them in another way.

    Raises:
        UsageError: an option does.
    """
    for option, is_given, reason in (
        ("--offload sequential", options.offload == "sequential", "moves each weight by itself; use none or model"),
        ("--compile blocks", options.compile != "none", "compiles weights into the code; use none"),
        ("--int8 chain", options.int8 != "sdnq", "is for a release that stays as it is; use sdnq"),
        ("--lora", bool(options.adapters), "adds to weights, and what is measured are those of the original"),
    ):
        if is_given:
            raise UsageError(f"{option}: {reason}")


def _encode(
    repo: PipelineRepo,
    settings: Sequence[Settings],
    options: GenerateOptions,
    device: torch.device,
    added_bytes: int,
    reporter: Reporter,
) -> dict[str, PromptFeatures]:
    """Encode the prompts of all images, after comparing the memory of the largest image with what is free."""
    # What they differ in does not matter to the text encoder.
    stage = PromptStage(repo, settings[0], device, options.offload, options.features)
    prompts = tuple(dict.fromkeys(text for found in settings for text in found.prompts))
    features = stage.find(prompts)
    missing = [text for text in prompts if text not in features]
    need = max(
        (
            predict_memory(
                repo,
                found,
                offload=options.offload,
                on_cpu=device.type == "cpu",
                unpacks=stage.unpacks,
                encodes=bool(missing),
            )
            for found in settings
        ),
        key=lambda found: (found.device, found.host),
    )
    require_memory(_with_added(need, added_bytes), device)
    if missing:
        if stage.unpacks:
            size = loaded_bytes(repo.text_encoder, DTYPE_BYTES[options.dtype], unpacks=True)
            reporter.note(unpacking_text(size, stage.unpacking))
        stored = readable_size(repo.text_encoder.total_bytes)
        reporter.note(f"encoding {len(missing)} prompts: loading the text encoder, {stored}")
        features |= stage.encode(missing)
    return features


def _with_added(need: MemoryNeed, size: int) -> MemoryNeed:
    """The same with so many bytes more where the denoiser runs."""
    return replace(need, device=need.device + size) if need.device else need.with_host(size)
