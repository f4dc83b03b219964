"""The arithmetic around the transformer's calls: noise schedule, guidance, latents and pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu
from diffusers.utils.torch_utils import randn_tensor

#: What images may come as.
OUTPUT_TYPES = ("pil", "np", "pt", "latent")
#: Below this norm a guided velocity counts as zero.
_LEAST_NORM = 1e-12
#: Latent pixels per side of a patch, which becomes one token.
_PATCH = 2


def noise_schedule(tokens: int, steps: int) -> tuple[list[float], float]:
    """Return the input of the scheduler: sigmas before the shift, and the shift.

    Args:
        tokens: number of image tokens.
        steps: number of steps.

    Returns:
        Sigmas from 1 to ``1 / steps``, and mu, computed as in FLUX.2.
    """
    return np.linspace(1.0, 1.0 / steps, steps).tolist(), compute_empirical_mu(tokens, steps)


def initial_latents(
    shape: tuple[int, int, int],
    generator: torch.Generator | list[torch.Generator] | None,
    latents: torch.Tensor | None,
    device: torch.device,
    dtype: torch.dtype,
) -> torch.Tensor:
    """The noise to start from: ``latents``, or new noise in the packed layout, where seeds mean the same as upstream.

    Args:
        shape: images, tokens and channels.
        generator: makes the noise; one, or one for each image.
        latents: noise of the caller's.
        device: of the result.
        dtype: of the result.

    Raises:
        ValueError: ``latents`` has another shape, or the number of generators does not fit.
    """
    if latents is not None:
        if tuple(latents.shape) != shape:
            raise ValueError(f"latents have shape {list(latents.shape)}, not {list(shape)}")
        return latents.to(device, dtype)
    if isinstance(generator, list) and len(generator) != shape[0]:
        raise ValueError(f"{len(generator)} generators for {shape[0]} images; give one, or one for each")
    noise: torch.Tensor = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
    return noise


def guide(conditional: torch.Tensor, unconditional: torch.Tensor, scale: float) -> torch.Tensor:
    """Apply classifier-free guidance; the result keeps the length of the conditional velocity, token by token.

    Args:
        conditional: velocity with the prompt, ``[batch, tokens, channels]``.
        unconditional: velocity with the negative prompt.
        scale: 1 returns the conditional velocity.
    """
    guided = unconditional + scale * (conditional - unconditional)
    length = torch.linalg.vector_norm(guided, dim=-1, keepdim=True)
    wanted = torch.linalg.vector_norm(conditional, dim=-1, keepdim=True)
    return guided * torch.where(length > 0, wanted / length.clamp_min(_LEAST_NORM), 1)


def unpack_latents(latents: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Arrange tokens as a grid of patches.

    Args:
        latents: ``[batch, height * width, channels * 4]``, row by row.
        height: rows of tokens.
        width: columns of tokens.

    Returns:
        ``[batch, channels * 4, height, width]``.
    """
    return latents.transpose(1, 2).unflatten(-1, (height, width))


def unpatchify(patches: torch.Tensor) -> torch.Tensor:
    """Turn patches ``[batch, channels * 4, height, width]`` into pixels ``[batch, channels, 2 height, 2 width]``.

    A patch lists its channels first, then its rows, then its columns.
    """
    pixels = patches.unflatten(1, (-1, _PATCH, _PATCH)).permute(0, 1, 4, 2, 5, 3)
    return pixels.flatten(4, 5).flatten(2, 3)


def denormalize(patches: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Undo the normalisation that the autoencoder's batch norm applied.

    Args:
        patches: ``[batch, channels, height, width]``.
        mean: running mean, ``[channels]``.
        variance: running variance, ``[channels]``.
        epsilon: of the batch norm.
    """
    deviation = torch.sqrt(variance + epsilon).to(patches)
    return patches * deviation[:, None, None] + mean.to(patches)[:, None, None]


def latent_pixels(latents: torch.Tensor, grid: tuple[int, int], vae: Any) -> torch.Tensor:
    """What the autoencoder decodes: tokens as latent pixels, in its dtype and without its normalisation.

    Args:
        latents: ``[batch, tokens, channels * 4]``.
        grid: rows and columns of tokens.
        vae: an ``AutoencoderKLFlux2``.

    Returns:
        ``[batch, channels, 2 height, 2 width]``.
    """
    patches = unpack_latents(latents, *grid).to(vae.dtype)
    patches = denormalize(patches, vae.bn.running_mean, vae.bn.running_var, vae.config.batch_norm_eps)
    return unpatchify(patches)


def to_unit_range(pixels: torch.Tensor) -> torch.Tensor:
    """Clamp decoded pixels to [-1, 1], and map them to [0, 1]."""
    return (pixels.clamp(-1, 1) + 1) / 2


def to_uint8(pixels: torch.Tensor) -> np.ndarray:
    """Convert decoded pixels in [-1, 1] to bytes, ``[batch, 3, height, width]`` to ``[batch, height, width, 3]``.

    Fractions are cut off, as upstream does; diffusers' image processor rounds.
    """
    levels = (pixels.clamp(-1, 1) + 1) * 127.5
    result: np.ndarray = levels.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return result


def decode_images(latents: torch.Tensor, grid: tuple[int, int], vae: Any, output_type: str) -> Any:
    """Turn the latents of a run into images.

    Args:
        latents: ``[batch, tokens, channels * 4]``.
        grid: rows and columns of tokens.
        vae: an ``AutoencoderKLFlux2``; not needed for latents.
        output_type: one of ``OUTPUT_TYPES``.

    Returns:
        ``pil``: a list. ``np``: float32 ``[batch, height, width, 3]`` from 0 to 1. ``pt``: the same numbers in the
        dtype of the VAE, ``[batch, 3, height, width]``. ``latent``: the latents.
    """
    if output_type == "latent":
        return latents
    pixels = vae.decode(latent_pixels(latents, grid, vae), return_dict=False)[0]
    if output_type == "pil":
        return [PIL.Image.fromarray(image) for image in to_uint8(pixels)]
    images = to_unit_range(pixels)
    return images if output_type == "pt" else images.permute(0, 2, 3, 1).float().cpu().numpy()
