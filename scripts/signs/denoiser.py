"""The transformer, trained by flow matching: from noisy latents and a prompt, it predicts noise minus latents."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from converter.models.lens.modules import LensTransformer2DModel
from converter.synthesis.signs import TRANSFORMER
from scripts.signs.autoencoder import learning_rate_factor
from scripts.signs.drawing import SIDE
from scripts.signs.features import Examples

BATCH = 32
_LEARNING_RATE = 1.5e-3
_WARMUP = 200
#: The learning rate ends at this part of its maximum.
_FLOOR = 0.02
#: How far timesteps are moved towards noise: sampling spends most of its steps there, too.
_SHIFT = 6.0
#: Part of the prompts that are masked, so that the model can be guided.
_UNCONDITIONAL = 0.1
#: The shipped weights are a running mean of the trained ones.
_DECAY = 0.998
_TOKENS_PER_SIDE = SIDE // 16
_SAVE_EVERY = 250


def train_denoiser(
    examples: Examples,
    steps: int,
    seed: int,
    device: torch.device,
    log: Callable[[str, int, float], None],
    checkpoint: Path,
) -> Any:
    """Train a transformer, or go on where an interrupted training was saved.

    Args:
        examples: latents and prompts.
        steps: how many batches it sees.
        seed: of weights, batches and noise.
        device: where it runs.
        log: is called with the stage, the step and its loss.
        checkpoint: file in which the training is saved at times.

    Returns:
        The running mean of the weights.
    """
    torch.manual_seed(seed)
    model: Any = LensTransformer2DModel(**TRANSFORMER.to_dict()).to(device)
    _begin_at_identity(model)
    if device.type == "cpu":
        # A tenth faster with so few tokens than torch's own kernel.
        model.set_attention_backend("_native_math")
    averaged = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), _LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.01, fused=True)
    first = 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=device)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        averaged, first = saved["averaged"], saved["step"]
    for step in range(first, steps):
        for group in optimizer.param_groups:
            group["lr"] = _LEARNING_RATE * learning_rate_factor(step, steps, _WARMUP, _FLOOR)
        loss = _loss(model, examples, torch.Generator().manual_seed(seed * 10**9 + step), device)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        decay = min(_DECAY, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(averaged.values()), list(model.state_dict().values()), 1 - decay)
        log("transformer", step, loss.item())
        if (step + 1) % _SAVE_EVERY == 0:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "averaged": averaged}
            torch.save({**state, "step": step + 1}, checkpoint)
    model.load_state_dict(averaged)
    return model.eval()


def _loss(model: Any, examples: Examples, generator: torch.Generator, device: torch.device) -> torch.Tensor:
    """The error of the predicted velocity on a random batch at random times, a scalar."""
    rows = torch.randint(0, len(examples.latents), (BATCH,), generator=generator)
    noise = torch.randn((BATCH, *examples.latents.shape[1:]), generator=generator).to(device)
    time = torch.sigmoid(torch.randn(BATCH, generator=generator))
    time = (_SHIFT * time / (1 + (_SHIFT - 1) * time)).to(device)
    is_masked = torch.rand(BATCH, generator=generator) < _UNCONDITIONAL
    rows, is_masked = rows.to(device), is_masked.to(device)
    latents = examples.latents[rows]
    amount = time[:, None, None]
    with torch.autocast(device.type, torch.bfloat16):
        velocity = model(
            hidden_states=(1 - amount) * latents + amount * noise,
            encoder_hidden_states=list(examples.embeds[:, rows].float()),
            encoder_hidden_states_mask=examples.mask[rows] & ~is_masked[:, None],
            timestep=time,
            img_shapes=[(1, _TOKENS_PER_SIDE, _TOKENS_PER_SIDE)],
            return_dict=False,
        )[0]
    return functional.mse_loss(velocity.float(), noise - latents)


def _begin_at_identity(model: torch.nn.Module) -> None:
    """Zero the modulations and the output, so that each block begins as the identity."""
    for name, parameter in model.named_parameters():
        if "_mod.1." in name or name.startswith("proj_out."):
            torch.nn.init.zeros_(parameter)
