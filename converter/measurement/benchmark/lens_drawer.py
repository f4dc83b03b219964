"""How a worker draws with Lens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import date
from functools import cached_property
from typing import Any

import torch

from converter.measurement.benchmark.drawer import DECODING, DENOISING, ENCODING, Adapt
from converter.measurement.benchmark.meter import Stopwatch
from converter.measurement.generation.generate import (
    call_arguments,
    describe_quantization,
    image_metadata,
    refuse_not_finite,
)
from converter.measurement.generation.loading import (
    blaming,
    choose_int8,
    encoder_unpacking,
    import_sdnq,
    load_pipeline,
    load_text_encoder,
    load_tokenizer,
)
from converter.measurement.generation.memory import MemoryNeed, predict_memory
from converter.measurement.generation.repo import PipelineRepo
from converter.measurement.generation.settings import Settings
from converter.models.int8_kernels import find_int8_kernel
from converter.models.lens.int8_chain import uses_int8_chain
from converter.models.lens.prompts import tokenize_prompts


class LensDrawer:
    """A Lens repo on a device; see ``Drawer``.

    Args:
        repo: the opened repo.
        device: where it runs.
        offload: as in ``GenerateOptions``.
        dtype: of the numbers.
    """

    def __init__(self, repo: PipelineRepo, device: torch.device, offload: str, dtype: torch.dtype) -> None:
        self.repo = repo
        self.device = device
        self.offload = offload
        self.dtype = dtype

    def settings(self, content: Mapping[str, Any]) -> Settings:
        """See ``Drawer``."""
        return Settings(**content)

    def predict(self, settings: Settings) -> MemoryNeed:
        """See ``Drawer``."""
        return predict_memory(
            self.repo,
            settings,
            offload=self.offload,
            on_cpu=self.device.type == "cpu",
            unpacks=self._unpacks,
            keeps_encoder=True,
        )

    def prepare(self) -> None:
        """See ``Drawer``."""
        import_sdnq(self.repo, self.device)
        if self.repo.quantization is not None:
            with blaming(self.repo.folder):
                find_int8_kernel(self.device)

    def load(self, settings: Settings, adapt: Adapt, placed: Callable[[str], object]) -> Any:
        """See ``Drawer``."""
        encoder_device = self.device if self.offload == "none" else torch.device("cpu")
        text_encoder = load_text_encoder(self.repo, self.dtype, encoder_device, unpacks=self._unpacks)
        placed("text_encoder")
        return load_pipeline(
            self.repo,
            self.dtype,
            self.device,
            self.offload,
            compiles=settings.compiles,
            tokenizer=load_tokenizer(self.repo),
            text_encoder=text_encoder,
            adapt=adapt,
            placed=placed,
        )

    def set_up(self, pipeline: Any, settings: Settings) -> dict[str, Any]:
        """See ``Drawer``."""
        found: dict[str, Any] = {}
        reason = choose_int8(pipeline, self.repo, self.device, settings.int8)
        if reason or uses_int8_chain(pipeline.transformer):
            found["int8"] = f"sdnq: {reason}" if reason else "chain"
        if self.repo.has_packed_text_encoder and self.offload != "sequential":
            found["mxfp4"] = "unpacked" if self._unpacks else "packed"
        pipeline.prompt_date = date.fromisoformat(settings.date)
        return {**found, "quantization": describe_quantization(self.repo, pipeline.transformer, self.device)}

    def draw(self, pipeline: Any, settings: Settings, start: Callable[[str], Stopwatch]) -> tuple[Any, dict[str, Any]]:
        """See ``Drawer``; stages are recognised by the components that the pipeline calls."""
        latents = []

        def step_done(_: Any, step: int, __: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if step == settings.steps - 1:
                latents.append(tensors["latents"])
                watch.begin(DECODING)
            return {}

        watch = start(ENCODING)
        hook = pipeline.transformer.register_forward_pre_hook(lambda *_: watch.begin(DENOISING))
        try:
            image = pipeline(
                settings.prompt,
                settings.negative_prompt,
                **call_arguments(settings),
                callback_on_step_end=step_done,
            ).images[0]
            figures = watch.stop()
        finally:
            hook.remove()
        refuse_not_finite(latents[0])
        return image, figures

    def metadata(self, pipeline: Any, settings: Settings) -> dict[str, Any]:
        """See ``Drawer``."""
        return image_metadata(settings, self.device, self.repo, pipeline)

    def text_lengths(self, pipeline: Any, settings: Settings) -> tuple[int, ...]:
        """See ``Drawer``; the negative prompt counts where it is encoded."""
        tokenizer, day = pipeline.tokenizer, pipeline.prompt_date
        return tuple(tokenize_prompts(tokenizer, [prompt], day=day)[0].shape[1] for prompt in settings.prompts)

    @cached_property
    def _unpacks(self) -> bool:
        """Whether a text encoder in MXFP4 is unpacked."""
        return bool(encoder_unpacking(self.repo, self.offload, self.device))
