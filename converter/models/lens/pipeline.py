"""``LensPipeline``: text to image with Lens, called as upstream's pipeline is called.

Folders in the layout of microsoft/Lens are read and written. What upstream gets wrong is not repeated: prompt
embeddings can be given without a prompt, callbacks work on every Python, and what a callback changes is used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np
import PIL.Image
import torch
from accelerate import cpu_offload
from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from converter.models.lens.adapters import LensLoraLoaderMixin
from converter.models.lens.features import PromptFeatures, encode_prompts, join_features
from converter.models.lens.prompts import MAXIMUM_TOKENS, PREFIX_TOKENS
from converter.models.lens.resolutions import PIXELS_PER_TOKEN, resolution
from converter.models.lens.sampling import (
    denormalize,
    guide,
    noise_schedule,
    to_uint8,
    to_unit_range,
    unpack_latents,
    unpatchify,
)

#: Pixels a side where the caller names none; upstream's default.
DEFAULT_SIDE = 1024
OUTPUT_TYPES = ("pil", "np", "latent")
#: Library and class by which ``model_index.json`` of microsoft/Lens names what is kept elsewhere, or is called
#: differently by now.
_INDEX_ENTRIES = {
    "LensGptOssEncoder": ("transformers", "LensGptOssEncoder"),
    "LensTransformer2DModel": ("diffusers", "LensTransformer2DModel"),
    "TokenizersBackend": ("transformers", "PreTrainedTokenizerFast"),
}


@dataclass
class LensPipelineOutput(BaseOutput):
    """What the pipeline returns."""

    images: list[PIL.Image.Image] | np.ndarray | torch.Tensor
    """PIL images; or float32 ``[batch, height, width, 3]`` from 0 to 1; or latents ``[batch, tokens, 128]``."""


class LensPipeline(DiffusionPipeline, LensLoraLoaderMixin):
    """Text to image with a Lens transformer.

    ``text_encoder`` and ``tokenizer`` may be None; the pipeline then takes prompt embeddings alone.

    Args:
        scheduler: flow matching, with dynamic shifting.
        vae: the autoencoder of FLUX.2.
        text_encoder: GPT-OSS; the layers that the transformer wants are selected here.
        tokenizer: with GPT-OSS' chat template.
        transformer: the denoiser.
    """

    model_cpu_offload_seq = "text_encoder->transformer->vae"
    _optional_components = ["text_encoder", "tokenizer"]
    _callback_tensor_inputs = ["latents", "prompt_embeds", "negative_prompt_embeds"]

    def __init__(
        self,
        scheduler: FlowMatchEulerDiscreteScheduler,
        vae: AutoencoderKLFlux2,
        text_encoder: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        transformer: ModelMixin,
    ) -> None:
        super().__init__()
        self.register_modules(
            scheduler=scheduler, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, transformer=transformer
        )
        # By upstream's names, for callers that read them.
        self.vae_scale_factor = PIXELS_PER_TOKEN
        self.default_sample_size = DEFAULT_SIDE
        self.txt_offset = PREFIX_TOKENS
        self.latent_channels = transformer.config.in_channels if transformer is not None else None
        #: The day that prompts are told; None is the current one. Features, and so images, depend on it.
        self.prompt_date: date | None = None
        self._guidance_scale = 1.0
        self._attention_kwargs: dict[str, Any] | None = None
        self._num_timesteps = 0
        self._current_timestep: torch.Tensor | None = None
        self._interrupt = False
        if text_encoder is not None and transformer is not None:
            text_encoder.set_selected_layers(transformer.config.selected_layer_index)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a component; ``model_index.json`` will name it as microsoft/Lens does, not by this package's modules."""
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
            device: the accelerator; ``cpu`` saves nothing and draws the same, for machines without one.
        """
        if device is None or torch.device(device).type != "cpu":
            super().enable_sequential_cpu_offload(gpu_id, device)
            return
        # diffusers would ask for "cpu:0", and accelerate take that for an accelerator.
        self.remove_all_hooks()
        for model in self.components.values():
            if isinstance(model, torch.nn.Module):
                cpu_offload(model, torch.device("cpu"), offload_buffers=len(model._parameters) > 0)

    @property
    def guidance_scale(self) -> float:
        """Of the run in progress, or else of the last one; so are the next ones."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the negative prompt is needed: at a scale of 1 it cancels out."""
        return self._guidance_scale != 1

    @property
    def attention_kwargs(self) -> dict[str, Any] | None:
        """As they were passed."""
        return self._attention_kwargs

    @property
    def num_timesteps(self) -> int:
        """Steps in all."""
        return self._num_timesteps

    @property
    def current_timestep(self) -> Any:
        """From 0 to 1000; None before the first step and behind the last one."""
        return self._current_timestep

    @property
    def interrupt(self) -> bool:
        """Whether a callback asked to skip the steps that are left, by setting ``_interrupt``."""
        return self._interrupt

    def encode_prompt(
        self,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = "",
        *,
        num_images_per_prompt: int = 1,
        do_classifier_free_guidance: bool = True,
        prompt_embeds: Sequence[torch.Tensor] | None = None,
        prompt_mask: torch.Tensor | None = None,
        negative_prompt_embeds: Sequence[torch.Tensor] | None = None,
        negative_prompt_mask: torch.Tensor | None = None,
        max_sequence_length: int = MAXIMUM_TOKENS,
        device: torch.device | None = None,
    ) -> tuple[list[torch.Tensor], torch.Tensor, list[torch.Tensor] | None, torch.Tensor | None]:
        """Features of prompts and negative prompts, of one length.

        Embeddings that are given count for their prompts, and are not repeated.

        Returns:
            ``prompt_embeds`` (for each selected layer ``[images, tokens, hidden_size]``), ``prompt_mask`` (bool,
            ``[images, tokens]``), and both for the negative prompts, or None without guidance. If all negative prompts
            are blank, their features are zeros that count nowhere, and the encoder is not run for them.

        Raises:
            ValueError: there is neither a prompt nor embeddings, embeddings come without their mask, or the numbers of
                prompts do not fit.
        """
        device = device or self._execution_device
        if prompt_embeds is None:
            if prompt is None:
                raise ValueError("give prompt or prompt_embeds")
            prompts = [prompt] if isinstance(prompt, str) else list(prompt)
            if not prompts:
                raise ValueError("there are no prompts")
            count = len(prompts)
            positive = self._encode(prompts, max_sequence_length, device).repeat(num_images_per_prompt)
        else:
            positive = self._given_features(prompt_embeds, prompt_mask, "prompt", device)
            count = positive.batch
        if not do_classifier_free_guidance:
            return [*positive.embeds], positive.mask, None, None
        if negative_prompt_embeds is not None:
            negative = self._given_features(negative_prompt_embeds, negative_prompt_mask, "negative_prompt", device)
        else:
            texts = [negative_prompt] if isinstance(negative_prompt, str | None) else list(negative_prompt)
            texts = [text or "" for text in texts]
            if len(texts) not in (1, count):
                raise ValueError(f"{len(texts)} negative prompts for {count} prompts; give one, or one for each")
            if not any(text.strip() for text in texts):
                negative = positive.blank()
            else:
                negative = self._encode(texts, max_sequence_length, device).repeat(positive.batch // len(texts))
        if negative.batch != positive.batch:
            raise ValueError(f"there are negative prompts for {negative.batch} images of {positive.batch}")
        positive, negative = join_features(positive, negative)
        return [*positive.embeds], positive.mask, [*negative.embeds], negative.mask

    def _encode(self, prompts: list[str], maximum: int, device: torch.device) -> PromptFeatures:
        if maximum < 1:
            raise ValueError(f"max_sequence_length is {maximum}; at least one token is needed")
        if self.text_encoder is None or self.tokenizer is None:
            raise ValueError("this pipeline has no text encoder; give prompt_embeds and negative_prompt_embeds")
        # Once more, for an encoder that came after construction.
        self.text_encoder.set_selected_layers(self.transformer.config.selected_layer_index)
        features = encode_prompts(
            self.tokenizer, self.text_encoder, prompts, maximum=maximum, day=self.prompt_date, device=device
        )
        return features.to(device, self.transformer.dtype)

    def _given_features(
        self, embeds: Sequence[torch.Tensor], mask: torch.Tensor | None, name: str, device: torch.device
    ) -> PromptFeatures:
        if mask is None:
            raise ValueError(f"{name}_embeds need a {name}_mask")
        return PromptFeatures(tuple(embeds), mask.bool()).to(device, self.transformer.dtype)

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
        """Draw.

        Args:
            prompt: what to draw; several give a batch.
            negative_prompt: what to keep away from; one, or one for each prompt.
            height: in pixels, a multiple of 16. If either side is missing, both are 1024.
            width: likewise.
            base_resolution: 1024 or 1440; with ``aspect_ratio`` it decides the size, alone it does nothing.
            aspect_ratio: width to height, such as ``16:9``.
            num_inference_steps: how many.
            guidance_scale: 1 leaves the negative prompt out.
            num_images_per_prompt: prompts are repeated so often; embeddings that are given are not.
            generator: of the noise; one, or one for each image.
            latents: noise to start from, ``[images, tokens, 128]``.
            prompt_embeds: features in place of prompts, for each selected layer ``[images, tokens, hidden_size]``.
            prompt_mask: bool, ``[images, tokens]``, true where a token counts.
            negative_prompt_embeds: features in place of negative prompts.
            negative_prompt_mask: likewise.
            output_type: ``pil``, ``np`` or ``latent``.
            return_dict: whether to return a ``LensPipelineOutput`` and not a tuple.
            callback_on_step_end: called after each step with this pipeline, the step, the timestep and the tensors
                named next; tensors that it returns replace those.
            callback_on_step_end_tensor_inputs: of ``latents``, ``prompt_embeds`` and ``negative_prompt_embeds``.
            max_sequence_length: tokens of a prompt at most, with the 97 in front of every one.
            enable_reasoner: upstream's rewriting of prompts; not part of this pipeline.
            attention_kwargs: ``scale`` is that of LoRA adapters.

        Raises:
            ValueError: an argument is out of range, or two do not fit.
        """
        if enable_reasoner:
            raise ValueError("enable_reasoner: this pipeline does not rewrite prompts; pass the text you want drawn")
        height, width = self._choose_size(height, width, base_resolution, aspect_ratio)
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
        latents = self._prepare_latents(len(prompt_mask), grid, generator, latents, device)
        sigmas, mu = noise_schedule(latents.shape[1], num_inference_steps)
        self.scheduler.set_timesteps(sigmas=sigmas, mu=mu, device=device)
        self.scheduler.set_begin_index(0)
        self._num_timesteps = len(self.scheduler.timesteps)
        tensors: dict[str, Any] = {
            "latents": latents,
            "prompt_embeds": prompt_embeds,
            "negative_prompt_embeds": negative_prompt_embeds,
        }
        # Looked at once: in the loop, a GPU would have to wait for the answer in every step.
        alone = _unless_full(prompt_mask)
        joint = None if negative_prompt_mask is None else _unless_full(torch.cat((prompt_mask, negative_prompt_mask)))
        with self.progress_bar(total=num_inference_steps) as progress:
            for step, timestep in enumerate(self.scheduler.timesteps):
                if self.interrupt:
                    continue
                self._current_timestep = timestep
                guided = self.do_classifier_free_guidance and negative_prompt_mask is not None
                velocity = self._velocity(tensors, guided, joint if guided else alone, timestep, grid)
                tensors["latents"] = self.scheduler.step(velocity, timestep, tensors["latents"], return_dict=False)[0]
                if callback_on_step_end is not None:
                    shown = {name: tensors[name] for name in callback_on_step_end_tensor_inputs}
                    changed = callback_on_step_end(self, step, timestep, shown) or {}
                    tensors.update((name, changed[name]) for name in tensors if name in changed)
                progress.update()
        self._current_timestep = None
        images = self._decode(tensors["latents"], grid, output_type)
        self.maybe_free_model_hooks()
        return LensPipelineOutput(images=images) if return_dict else (images,)

    def _choose_size(
        self, height: int | None, width: int | None, base_resolution: int | None, aspect_ratio: str | None
    ) -> tuple[int, int]:
        if base_resolution is not None and aspect_ratio is not None:
            return resolution(base_resolution, aspect_ratio)
        if height is None or width is None:
            return DEFAULT_SIDE, DEFAULT_SIDE
        for name, side in (("height", height), ("width", width)):
            if side < PIXELS_PER_TOKEN or side % PIXELS_PER_TOKEN:
                raise ValueError(f"{name} {side} is not a multiple of {PIXELS_PER_TOKEN} pixels")
        return height, width

    def _check_inputs(self, steps: int, images_per_prompt: int, output_type: str, names: Sequence[str]) -> None:
        if steps < 1:
            raise ValueError(f"num_inference_steps is {steps}; at least one is needed")
        if images_per_prompt < 1:
            raise ValueError(f"num_images_per_prompt is {images_per_prompt}; at least one is needed")
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type {output_type!r} is none of {', '.join(OUTPUT_TYPES)}")
        unknown = sorted(set(names) - set(self._callback_tensor_inputs))
        if unknown:
            raise ValueError(
                f"callback_on_step_end_tensor_inputs: {', '.join(unknown)} is none of "
                f"{', '.join(self._callback_tensor_inputs)}"
            )

    def _prepare_latents(
        self,
        images: int,
        grid: tuple[int, int],
        generator: torch.Generator | list[torch.Generator] | None,
        latents: torch.Tensor | None,
        device: torch.device,
    ) -> torch.Tensor:
        """Noise, drawn in the packed layout: seeds mean the same as upstream only there."""
        shape = images, grid[0] * grid[1], self.transformer.config.in_channels
        dtype = self.transformer.dtype
        if latents is not None:
            if tuple(latents.shape) != shape:
                raise ValueError(f"latents have shape {list(latents.shape)}, not {list(shape)}")
            return latents.to(device, dtype)
        if isinstance(generator, list) and len(generator) != images:
            raise ValueError(f"{len(generator)} generators for {images} images; give one, or one for each")
        noise: torch.Tensor = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
        return noise

    def _velocity(
        self,
        tensors: dict[str, Any],
        guided: bool,
        mask: torch.Tensor | None,
        timestep: torch.Tensor,
        grid: tuple[int, int],
    ) -> torch.Tensor:
        """The velocity, guided or not.

        Both branches go through the transformer as one batch, the conditional one first: so offloaded weights travel
        once a step, and quantized ones are unpacked once.
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
            encoder_hidden_states_mask=mask,
            timestep=sigma.expand(len(latents)),
            img_shapes=[(1, *grid)],
            attention_kwargs=self._attention_kwargs,
            return_dict=False,
        )[0]
        if not guided:
            return velocity
        conditional, unconditional = velocity.chunk(2)
        return guide(conditional, unconditional, self._guidance_scale)

    def _decode(self, latents: torch.Tensor, grid: tuple[int, int], output_type: str) -> Any:
        if output_type == "latent":
            return latents
        patches = unpack_latents(latents, *grid).to(self.vae.dtype)
        statistics = self.vae.bn
        patches = denormalize(patches, statistics.running_mean, statistics.running_var, self.vae.config.batch_norm_eps)
        pixels = self.vae.decode(unpatchify(patches), return_dict=False)[0]
        if output_type == "np":
            return to_unit_range(pixels).permute(0, 2, 3, 1).float().cpu().numpy()
        return [PIL.Image.fromarray(image) for image in to_uint8(pixels)]


def _unless_full(mask: torch.Tensor) -> torch.Tensor | None:
    """The mask, or None where it hides nothing: attention without one is faster, and the same."""
    return None if mask.all() else mask
