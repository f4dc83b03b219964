"""How a worker draws with a pipeline of diffusers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from converter.console import SILENT
from converter.measurement.benchmark.drawer import DECODING, DENOISING, ENCODING, Adapt
from converter.measurement.benchmark.meter import Stopwatch
from converter.measurement.generation.loading import blaming, import_sdnq
from converter.measurement.generation.memory import MemoryNeed
from converter.measurement.generation.pipeline_drawing import (
    load_pipeline_of_diffusers,
    pipeline_metadata,
    predict_pipeline_memory,
    refuse_latents,
    run_pipeline,
)
from converter.measurement.generation.pipeline_loading import OpenPipeline, load_tokenizers
from converter.measurement.generation.pipeline_settings import PipelineSettings
from converter.measurement.generation.quantization import describe_layers
from converter.models.int8_kernels import find_int8_kernel


class PipelineDrawer:
    """A repo of a pipeline of diffusers on a device; see ``Drawer``.

    Args:
        repo: the opened repo.
        device: where it runs.
        offload: as in ``GenerateOptions``.
    """

    def __init__(self, repo: OpenPipeline, device: torch.device, offload: str) -> None:
        self.repo = repo
        self.device = device
        self.offload = offload

    def settings(self, content: Mapping[str, Any]) -> PipelineSettings:
        """See ``Drawer``."""
        return PipelineSettings(**content)

    def predict(self, settings: PipelineSettings) -> MemoryNeed:
        """See ``Drawer``; only the weights are counted."""
        return predict_pipeline_memory(self.repo, settings.dtype, self.offload, self.device)

    def prepare(self) -> None:
        """See ``Drawer``."""
        import_sdnq(self.repo, self.device)
        if self.repo.uses_sdnq:
            with blaming(self.repo.folder):
                find_int8_kernel(self.device)

    def load(self, settings: PipelineSettings, adapt: Adapt, placed: Callable[[str], object]) -> Any:
        """See ``Drawer``."""
        return load_pipeline_of_diffusers(
            self.repo,
            load_tokenizers(self.repo),
            settings,
            self.device,
            self.offload,
            SILENT,
            # What is measured is what the mode says, also where it saves nothing.
            offloads_on_cpu=True,
            adapt=adapt,
            placed=placed,
        )

    def set_up(self, pipeline: Any, settings: PipelineSettings) -> dict[str, Any]:  # noqa: ARG002 - for Lens
        """See ``Drawer``; the layers of all quantized components count as one."""
        described = [
            describe_layers(getattr(pipeline, name), quantization, self.device)
            for name, quantization in self.repo.quantizations.items()
        ]
        if not described:
            return {"quantization": None}
        kernels = (found["int8_kernel"] for found in described)
        kernel = next((name for name in kernels if name is not None), None)
        return {"quantization": {"int8_kernel": kernel, "sdnq_compiles": described[0]["sdnq_compiles"]}}

    def draw(
        self, pipeline: Any, settings: PipelineSettings, start: Callable[[str], Stopwatch]
    ) -> tuple[Any, dict[str, Any]]:
        """See ``Drawer``; the figures lack the stages where the pipeline does not show when they begin."""
        latents: list[Any] = []

        def step_done(found: Any, is_last: bool) -> None:
            if is_last:
                latents.append(found)
                watch.begin(DECODING)

        watch = start(ENCODING)
        denoiser = getattr(pipeline, self.repo.denoiser)
        hook = denoiser.register_forward_pre_hook(lambda *_: watch.begin(DENOISING))
        try:
            image = run_pipeline(pipeline, self.repo, settings, self.device, step_done)
            figures = watch.stop()
        finally:
            hook.remove()
        for found in latents:
            refuse_latents(found)
        # A schedule of unknown length makes every step the last.
        is_known = self._has_stages and len(latents) == 1
        if not is_known or tuple(figures["stages"]) != (ENCODING, DENOISING, DECODING):
            del figures["stages"]
        return image, {**figures, "width": image.width, "height": image.height}

    def metadata(self, pipeline: Any, settings: PipelineSettings) -> dict[str, Any]:
        """See ``Drawer``."""
        return pipeline_metadata(settings, self.device, self.repo, pipeline)

    def text_lengths(self, pipeline: Any, settings: PipelineSettings) -> tuple[int, ...]:
        """See ``Drawer``; also where a pipeline pads prompts to one length, which is not known."""
        prompts = [text for text in (settings.prompt, settings.negative_prompt) if text]
        tokenizers = [getattr(pipeline, component.name) for component in self.repo.pipeline.tokenizers]
        return tuple(
            len(tokenizer(text, truncation=False, verbose=False)["input_ids"])
            for tokenizer in tokenizers
            for text in prompts
        )

    @property
    def _has_stages(self) -> bool:
        """Whether an image is encoded, denoised and decoded once: pipelines of two denoisers do so twice."""
        described = self.repo.pipeline
        return len(described.having("denoiser")) == 1 and bool(described.having("autoencoder"))
