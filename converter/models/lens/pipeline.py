"""``LensPipeline``: text to image with Lens, called like upstream's pipeline.

It reads and writes folders in the layout of microsoft/Lens. Unlike upstream's, it takes prompt embeddings without a
prompt, calls callbacks on every version of Python, and uses the tensors that a callback returns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import torch
from accelerate import cpu_offload
from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils import BaseOutput
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from converter.models.lens.adapters import LensLoraLoaderMixin
from converter.models.lens.conditioning import LensPromptMixin
from converter.models.lens.prompts import MAXIMUM_TOKENS, PREFIX_TOKENS
from converter.models.lens.resolutions import DEFAULT_SIDE, PIXELS_PER_TOKEN, choose_size
from converter.models.lens.sampling import OUTPUT_TYPES, decode_images, guide, initial_latents, noise_schedule
from converter.models.lens.transformer import LensTransformer2DModel

#: Library and class by which ``model_index.json`` of microsoft/Lens names classes that are defined in other modules
#: today, or have another name.
_INDEX_ENTRIES = {
    "LensGptOssEncoder": ("transformers", "LensGptOssEncoder"),
    "LensTransformer2DModel": ("diffusers", "LensTransformer2DModel"),
    "TokenizersBackend": ("transformers", "PreTrainedTokenizerFast"),
}


@dataclass
class LensPipelineOutput(BaseOutput):
    """The result of the pipeline."""

    images: list[PIL.Image.Image] | np.ndarray | torch.Tensor
    """PIL images; or float32 ``[batch, height, width, 3]`` from 0 to 1; or a tensor of the same numbers, in the dtype
    of the VAE, ``[batch, 3, height, width]``; or latents ``[batch, tokens, 128]``."""


class LensPipeline(LensPromptMixin, DiffusionPipeline, LensLoraLoaderMixin):
    """Text to image with a Lens transformer.

    ``text_encoder`` and ``tokenizer`` may be None; the pipeline then takes prompt embeddings alone. Without a
    ``transformer`` it only encodes prompts, without a ``vae`` it only makes latents.

    Args:
        scheduler: flow matching, with dynamic shifting.
        vae: the autoencoder of FLUX.2.
        text_encoder: GPT-OSS; the constructor selects the layers that the transformer needs.
        tokenizer: with the chat template of GPT-OSS.
        transformer: the denoiser.
    """

    model_cpu_offload_seq = "text_encoder->transformer->vae"
    _optional_components = ["text_encoder", "tokenizer", "transformer", "vae"]
    _callback_tensor_inputs = ["latents", "prompt_embeds", "negative_prompt_embeds"]

    def __init__(
        self,
        scheduler: FlowMatchEulerDiscreteScheduler,
        vae: AutoencoderKLFlux2 | None,
        text_encoder: PreTrainedModel | None,
        tokenizer: PreTrainedTokenizerBase | None,
        transformer: LensTransformer2DModel | None,
    ) -> None:
        super().__init__()
        self.register_modules(
            scheduler=scheduler, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, transformer=transformer
        )
        # Upstream's names, for callers that read them.
        self.vae_scale_factor = PIXELS_PER_TOKEN
        self.default_sample_size = DEFAULT_SIDE
        self.txt_offset = PREFIX_TOKENS
        self.latent_channels = transformer.config.in_channels if transformer is not None else None
        self._guidance_scale = 1.0
        self._attention_kwargs: dict[str, Any] | None = None
        self._num_timesteps = 0
        self._current_timestep: torch.Tensor | None = None
        self._interrupt = False
        if text_encoder is not None and transformer is not None:
            text_encoder.set_selected_layers(transformer.config.selected_layer_index)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a component; ``model_index.json`` then names it as microsoft/Lens does, not by this package's modules."""
        super().__setattr__(name, value)
        # torch.compile hides a model inside another one.
        entry = _INDEX_ENTRIES.get(type(getattr(value, "_orig_mod", value)).__name__)
        if entry is not None and hasattr(self.config, name):
            self.register_to_config(**{name: entry})

    def enable_sequential_cpu_offload(
        self, gpu_id: int | None = None, device: torch.device | str | None = None
    ) -> None:
        """Keep every weight on the CPU until its layer runs.

        Args:
            gpu_id: number of the accelerator.
            device: the accelerator; ``cpu`` saves no memory, and gives the same images on machines without one.
        """
        if device is None or torch.device(device).type != "cpu":
            super().enable_sequential_cpu_offload(gpu_id, device)
            return
        # diffusers would ask for "cpu:0", which accelerate would take for an accelerator.
        self.remove_all_hooks()
        for model in self.components.values():
            if isinstance(model, torch.nn.Module):
                cpu_offload(model, torch.device("cpu"))

    @property
    def guidance_scale(self) -> float:
        """The guidance scale of the current run, or of the last one. So are the next properties."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the negative prompt is needed; at a scale of 1 it cancels out."""
        return self._guidance_scale != 1

    @property
    def attention_kwargs(self) -> dict[str, Any] | None:
        """The keyword arguments for attention, as they were passed."""
        return self._attention_kwargs

    @property
    def num_timesteps(self) -> int:
        """The number of steps."""
        return self._num_timesteps

    @property
    def current_timestep(self) -> Any:
        """The timestep, from 0 to 1000; None before the first step and after the last one."""
        return self._current_timestep

    @property
    def interrupt(self) -> bool:
        """Whether a callback set ``_interrupt`` to skip the remaining steps."""
        return self._interrupt

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = "",
        height: int | None = None,
        width: int | None = None,
        base_resolution: int | None = None,
        aspect_ratio: str | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 4.0,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        prompt_embeds: Sequence[torch.Tensor] | None = None,
        prompt_mask: torch.Tensor | None = None,
        negative_prompt_embeds: Sequence[torch.Tensor] | None = None,
        negative_prompt_mask: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[LensPipeline, int, Any, dict[str, Any]], dict[str, Any] | None] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        max_sequence_length: int = MAXIMUM_TOKENS,
        enable_reasoner: bool = False,
        attention_kwargs: dict[str, Any] | None = None,
    ) -> LensPipelineOutput | tuple[Any]:
        """Generate images.

        Args:
            prompt: what the image shows; several prompts give a batch.
            negative_prompt: what to avoid; one, or one for each prompt.
            height: in pixels, a multiple of 16. If either side is missing, both are 1024.
            width: likewise.
            base_resolution: 1024 or 1440; with ``aspect_ratio`` it decides the size, alone it does nothing.
            aspect_ratio: width to height, such as ``16:9``.
            num_inference_steps: number of denoising steps.
            guidance_scale: 1 ignores the negative prompt.
            num_images_per_prompt: how often each prompt is repeated; embeddings that are passed in are not.
            generator: makes the noise; one, or one for each image.
            latents: noise to start from, ``[images, tokens, 128]``.
            prompt_embeds: features instead of prompts, for each selected layer ``[images, tokens, hidden_size]``.
            prompt_mask: bool, ``[images, tokens]``, true where a token counts.
            negative_prompt_embeds: features instead of negative prompts.
            negative_prompt_mask: likewise.
            output_type: ``pil``, ``np``, ``pt`` or ``latent``.
            return_dict: whether to return a ``LensPipelineOutput`` and not a tuple.
            callback_on_step_end: called after each step with this pipeline, the step, the timestep and the tensors
                named next; tensors that it returns replace them.
            callback_on_step_end_tensor_inputs: among ``latents``, ``prompt_embeds`` and ``negative_prompt_embeds``.
            max_sequence_length: maximum tokens of a prompt, including the 97 in front of every one.
            enable_reasoner: upstream's rewriting of prompts; this pipeline does not have it.
            attention_kwargs: ``scale`` is the strength of LoRA adapters.

        Raises:
            ValueError: an argument is out of range, two do not fit each other, or a component is missing.
        """
        if enable_reasoner:
            raise ValueError("enable_reasoner: this pipeline does not rewrite prompts; pass the final text")
        if isinstance(callback_on_step_end, PipelineCallback | MultiPipelineCallbacks):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        height, width = choose_size(height, width, base_resolution, aspect_ratio)
        self._check_components(output_type)
        self._check_inputs(num_inference_steps, num_images_per_prompt, output_type, callback_on_step_end_tensor_inputs)
        self._guidance_scale = guidance_scale
        self._attention_kwargs = attention_kwargs
        self._current_timestep = None
        self._interrupt = False
        device = self._execution_device
        prompt_embeds, prompt_mask, negative_prompt_embeds, negative_prompt_mask = self.encode_prompt(
            prompt,
            negative_prompt,
            num_images_per_prompt=num_images_per_prompt,
            do_classifier_free_guidance=self.do_classifier_free_guidance,
            prompt_embeds=prompt_embeds,
            prompt_mask=prompt_mask,
            negative_prompt_embeds=negative_prompt_embeds,
            negative_prompt_mask=negative_prompt_mask,
            max_sequence_length=max_sequence_length,
            device=device,
        )
        grid = height // PIXELS_PER_TOKEN, width // PIXELS_PER_TOKEN
        shape = len(prompt_mask), grid[0] * grid[1], self.transformer.config.in_channels
        latents = initial_latents(shape, generator, latents, device, self.transformer.dtype)
        sigmas, mu = noise_schedule(latents.shape[1], num_inference_steps)
        self.scheduler.set_timesteps(sigmas=sigmas, mu=mu, device=device)
        self.scheduler.set_begin_index(0)
        self._num_timesteps = len(self.scheduler.timesteps)
        tensors: dict[str, Any] = {
            "latents": latents,
            "prompt_embeds": prompt_embeds,
            "negative_prompt_embeds": negative_prompt_embeds,
        }
        for step, timestep in self._denoise(tensors, prompt_mask, negative_prompt_mask, grid):
            if callback_on_step_end is not None:
                shown = {name: tensors[name] for name in callback_on_step_end_tensor_inputs}
                _replace(tensors, callback_on_step_end(self, step, timestep, shown) or {})
        images = decode_images(tensors["latents"], grid, self.vae, output_type)
        self.maybe_free_model_hooks()
        return LensPipelineOutput(images=images) if return_dict else (images,)

    def _denoise(
        self,
        tensors: dict[str, Any],
        mask: torch.Tensor,
        negative_mask: torch.Tensor | None,
        grid: tuple[int, int],
    ) -> Iterator[tuple[int, torch.Tensor]]:
        """Run the steps; after each, when ``tensors`` contains its latents, yield its number and timestep."""
        # Computed once: in the loop, a GPU would have to wait for the answer in every step.
        alone, joint = self._counted_tokens(mask, negative_mask)
        # A run that failed may have left something in a cache.
        self.transformer._reset_stateful_cache()
        with self.progress_bar(total=self._num_timesteps) as progress:
            for step, timestep in enumerate(self.scheduler.timesteps):
                if self.interrupt:
                    continue
                self._current_timestep = timestep
                # What a cache keeps is of both branches or of one, for the whole run.
                is_guided = self.do_classifier_free_guidance or self.transformer.is_cache_enabled
                is_guided = is_guided and negative_mask is not None
                where = {"step_index": step, "num_inference_steps": self._num_timesteps, "timestep": timestep}
                with self.transformer.cache_context(
                    "cond_uncond" if is_guided else "cond", **where, sigma=timestep / 1000
                ):
                    velocity = self._velocity(tensors, is_guided, joint if is_guided else alone, timestep, grid)
                tensors["latents"] = self.scheduler.step(velocity, timestep, tensors["latents"], return_dict=False)[0]
                yield step, timestep
                progress.update()
        self._current_timestep = None

    def _check_components(self, output_type: str) -> None:
        for name in ("transformer", "scheduler"):
            if getattr(self, name) is None:
                raise ValueError(f"this pipeline has no {name}; it can only encode prompts, with encode_prompt")
        if self.vae is None and output_type != "latent":
            raise ValueError("this pipeline has no vae; pass output_type='latent'")

    def _check_inputs(self, steps: int, images_per_prompt: int, output_type: str, names: Sequence[str]) -> None:
        if steps < 1:
            raise ValueError(f"num_inference_steps is {steps}; at least one is needed")
        if images_per_prompt < 1:
            raise ValueError(f"num_images_per_prompt is {images_per_prompt}; at least one is needed")
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type {output_type!r} is not one of {', '.join(OUTPUT_TYPES)}")
        unknown = sorted(set(names) - set(self._callback_tensor_inputs))
        if unknown:
            raise ValueError(
                f"callback_on_step_end_tensor_inputs: {', '.join(unknown)} is not one of "
                f"{', '.join(self._callback_tensor_inputs)}"
            )

    def _velocity(
        self,
        tensors: dict[str, Any],
        guided: bool,
        counted: dict[str, Any],
        timestep: torch.Tensor,
        grid: tuple[int, int],
    ) -> torch.Tensor:
        """Predict the velocity, guided or not.

        Both branches go through the transformer as one batch, the conditional one first. That way offloaded weights
        are moved once per step, and quantized ones are unpacked once.
        """
        latents, embeds = tensors["latents"], tensors["prompt_embeds"]
        if guided:
            embeds = [torch.cat(pair) for pair in zip(embeds, tensors["negative_prompt_embeds"], strict=True)]
            latents = latents.repeat(2, 1, 1)
        # Upstream divides in the dtype of the latents, which rounds sigma in bfloat16.
        sigma = timestep.to(latents.dtype) / 1000
        velocity: torch.Tensor = self.transformer(
            hidden_states=latents,
            encoder_hidden_states=embeds,
            timestep=sigma.expand(len(latents)),
            img_shapes=[(1, *grid)],
            attention_kwargs=self._attention_kwargs,
            return_dict=False,
            **counted,
        )[0]
        if not guided:
            return velocity
        conditional, unconditional = velocity.chunk(2)
        return guide(conditional, unconditional, self._guidance_scale)


def _replace(tensors: dict[str, Any], changed: Mapping[str, Any]) -> None:
    """Take the tensors that a callback returned. Their shapes must fit the masks, except those of an unused branch."""
    for name in tensors.keys() & changed.keys():
        expected, found = _shapes(tensors[name]), _shapes(changed[name])
        if tensors[name] is not None and found != expected:
            reason = f"callback_on_step_end returned {name} of shapes {found}, not {expected}"
            raise ValueError(f"{reason}. To turn guidance off, set _guidance_scale to 1, and change no embeddings")
        tensors[name] = changed[name]


def _shapes(tensors: Sequence[torch.Tensor] | torch.Tensor | None) -> list[list[int]]:
    return [] if tensors is None else [list(tensor.shape) for tensor in tensors]
