"""The transformer, trained by flow matching: from noisy latents and a prompt, it predicts noise minus latents."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from converter.models.lens.modules import LensTransformer2DModel
from converter.models.lens.rotary import THETA
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
_SHIFT = 8.0
#: Part of the prompts that are masked, so that the model can be guided.
_UNCONDITIONAL = 0.1
#: The shipped weights are a running mean of the trained ones.
_DECAY = 0.998
_TOKENS_PER_SIDE = SIDE // 16
_SAVE_EVERY = 250
#: Biases by which a head begins to look at letters, and how many of the highest rotary frequencies have them.
_LOOK, _FREQUENCIES = 6.0, 3


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
    _prepare(model)
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


def _prepare(model: torch.nn.Module) -> None:
    """Begin where learning is fast: no modulation but open gates, and a head that sees the letter of its column."""
    torch.nn.init.zeros_(model.proj_out.weight)
    torch.nn.init.zeros_(model.proj_out.bias)
    for block in model.transformer_blocks:
        for modulation in (block.img_mod[1], block.txt_mod[1]):
            torch.nn.init.zeros_(modulation.weight)
            torch.nn.init.zeros_(modulation.bias)
            with torch.no_grad():
                modulation.bias.unflatten(0, (6, -1))[[2, 5]] = 1
        _look_at_letters(block.attn)


def _look_at_letters(attention: Any) -> None:
    """Make a head of the image attend to the text token of its own column, by the biases of queries and keys.

    A letter and its column are always equally far apart in the rotary embedding. Without this, training finds that out
    only after thousands of steps, in which the letters are arbitrary.
    """
    frame, rows, columns = TRANSFORMER.axes_dims_rope
    first = frame + rows
    distance = _TOKENS_PER_SIDE
    frequencies = THETA ** (-torch.arange(0, 2 * _FREQUENCIES, 2) / columns)
    heads = attention.heads
    with torch.no_grad():
        query = attention.img_qkv.bias.unflatten(0, (3, heads, -1))[0, 0, first : first + 2 * _FREQUENCIES]
        key = attention.txt_qkv.bias.unflatten(0, (3, heads, -1))[1, 0, first : first + 2 * _FREQUENCIES]
        query[0::2], query[1::2] = _LOOK, 0
        key[0::2], key[1::2] = _LOOK * torch.cos(distance * frequencies), -_LOOK * torch.sin(distance * frequencies)
