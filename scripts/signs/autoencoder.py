"""The autoencoder: an ``AutoencoderKLFlux2`` whose decoder forgives errors of the latents.

While it is trained, noise is added to the normalised latents, up to a good part of their spread. What the transformer
gets wrong later is smaller than that.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import torch
from diffusers import AutoencoderKLFlux2
from torch.nn import functional

from converter.models.lens.sampling import denormalize, unpatchify
from converter.synthesis.signs import vae_config
from scripts.signs.pictures import picture_batch
from scripts.signs.vocabulary import varied_sign

BATCH = 8
_LEARNING_RATE = 2e-3
_WARMUP = 50
#: The most noise that is added to latents of unit variance.
_MOST_NOISE = 0.7
#: Pictures from which the mean and the variance of each channel of the tokens are measured.
_MEASURED = 512


def train_autoencoder(
    steps: int, seed: int, device: torch.device, log: Callable[[str, int, float], None]
) -> AutoencoderKLFlux2:
    """Train an autoencoder and measure the normalisation of its latents.

    Args:
        steps: how many batches of pictures it sees.
        seed: of weights, pictures and noise.
        device: where it runs.
        log: is called with the stage, the step and its loss.
    """
    torch.manual_seed(seed)
    model = AutoencoderKLFlux2.from_config(vae_config()).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), _LEARNING_RATE)
    for step in range(steps):
        rng = random.Random(f"{seed} autoencoder {step}")  # noqa: S311 - pictures, not secrets
        generator = torch.Generator().manual_seed(rng.getrandbits(63))
        pictures = picture_batch([varied_sign(rng) for _ in range(BATCH)], device)
        for group in optimizer.param_groups:
            group["lr"] = _LEARNING_RATE * learning_rate_factor(step, steps, _WARMUP)
        with torch.autocast(device.type, torch.bfloat16):
            tokens = patchify(model.encode(pictures).latent_dist.mode().float())
            variance, mean = torch.var_mean(tokens, (0, 2, 3))
            amount = _MOST_NOISE * torch.rand((BATCH, 1, 1, 1), generator=generator)
            noise = (amount * torch.randn(tokens.shape, generator=generator)).to(device)
            noisy = (tokens - mean[:, None, None]) / torch.sqrt(variance + model.config.batch_norm_eps)[
                :, None, None
            ] + noise
            latents = unpatchify(denormalize(noisy, mean, variance, model.config.batch_norm_eps))
            decoded = model.decode(latents, return_dict=False)[0].float()
        # The last term keeps the latents near one in scale, which the noise alone would not.
        loss = functional.mse_loss(decoded, pictures) + functional.l1_loss(decoded, pictures)
        loss = loss + 1e-4 * tokens.square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        log("autoencoder", step, loss.item())
    _measure(model, seed, device)
    return model.eval()


def encode_signs(model: AutoencoderKLFlux2, pictures: torch.Tensor) -> torch.Tensor:
    """The normalised latents of pictures as tokens, float32 ``[pictures, 64, 128]``."""
    with torch.no_grad():
        tokens = patchify(model.encode(pictures).latent_dist.mode())
        normalised: torch.Tensor = model.bn(tokens).flatten(2).transpose(1, 2)
    return normalised


def patchify(latents: torch.Tensor) -> torch.Tensor:
    """The inverse of ``unpatchify``: ``[pictures, 32, 16, 16]`` to ``[pictures, 128, 8, 8]``."""
    height, width = latents.shape[-2] // 2, latents.shape[-1] // 2
    patches = latents.unflatten(3, (width, 2)).unflatten(2, (height, 2))
    return patches.permute(0, 1, 3, 5, 2, 4).flatten(1, 3)


def learning_rate_factor(step: int, steps: int, warmup: int, floor: float = 0.0) -> float:
    """Linear warm-up, then half a cosine down to ``floor``."""
    cosine = 0.5 + 0.5 * math.cos(math.pi * step / steps)
    return min(1.0, (step + 1) / warmup) * (floor + (1 - floor) * cosine)


def _measure(model: AutoencoderKLFlux2, seed: int, device: torch.device) -> None:
    """Set mean and variance of the batch norm, by which the pipeline scales latents."""
    rng = random.Random(f"{seed} measured")  # noqa: S311 - pictures, not secrets
    batches = [[varied_sign(rng) for _ in range(BATCH)] for _ in range(_MEASURED // BATCH)]
    with torch.no_grad():
        parts = [patchify(model.encode(picture_batch(signs, device)).latent_dist.mode()) for signs in batches]
    variance, mean = torch.var_mean(torch.cat(parts), (0, 2, 3))
    model.bn.running_mean.copy_(mean)
    model.bn.running_var.copy_(variance)
