"""Microsoft Lens written out a second time, plainly, in torch: what the project's own implementation is held against.

Nothing here comes from `converter`. B is the batch, N = h*w the image tokens of a grid (h, w), S the text tokens,
D the channels of one head. Arithmetic runs in the dtype of the weights, except where a docstring says float32.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

State = Mapping[str, Tensor]
Grid = tuple[int, int]

NORM_EPS = 1e-6
TEXT_FEATURE_EPS = 1e-5

#: (height, width) in pixels by aspect, which is spelled width:height, and base resolution.
BUCKETS: dict[str, dict[int, tuple[int, int]]] = {
    "1:2": {1024: (1472, 736), 1440: (2080, 1040)},
    "9:16": {1024: (1376, 768), 1440: (1936, 1088)},
    "2:3": {1024: (1248, 832), 1440: (1760, 1168)},
    "3:4": {1024: (1152, 864), 1440: (1616, 1216)},
    "1:1": {1024: (1024, 1024), 1440: (1440, 1440)},
    "4:3": {1024: (864, 1152), 1440: (1216, 1616)},
    "3:2": {1024: (832, 1248), 1440: (1168, 1760)},
    "16:9": {1024: (768, 1376), 1440: (1088, 1936)},
    "2:1": {1024: (736, 1472), 1440: (1040, 2080)},
}

#: The rest of the golden model's config is at its defaults.
GOLDEN_CONFIG: dict[str, Any] = {
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 4,
    "num_layers": 3,
    "attention_head_dim": 16,
    "num_attention_heads": 3,
    "inner_dim": 48,
    "enc_hidden_dim": 24,
    "axes_dims_rope": [4, 6, 6],
    "selected_layer_index": [0, 1, 2],
}
#: What upstream's own code gives by grid for `GOLDEN_CONFIG`, `golden_state` and `golden_inputs`, float32 on a CPU:
#: y[0, 0, :4], y[1, -1, -4:], y[0].sum() and y[1].sum(), y.std() and, where it was recorded, y.abs().max().
GOLDEN: dict[Grid, dict[str, list[float]]] = {
    (4, 6): {
        "first": [1.57325, -1.225919, -2.640151, -1.131411],
        "last": [0.945214, 2.872706, 1.633572, -1.418215],
        "sums": [7.7432, 7.95636],
        "std": [1.898155],
        "absmax": [3.138588],
    },
    (3, 5): {
        "first": [1.572559, -1.226359, -2.639868, -1.130709],
        "last": [0.277239, -2.200969, -2.395448, -0.074439],
        "sums": [2.87386, 3.49356],
        "std": [1.893573],
    },
}


def golden_state(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The golden weights, float32, for tensors of these names and shapes: sine waves, about 1 for norm weights."""
    state = {}
    for k, name in enumerate(sorted(shapes)):
        j = torch.arange(math.prod(shapes[name]), dtype=torch.float64)
        wave = torch.sin(0.37 * j + 0.11 * k).float().reshape(shapes[name]) * 0.1
        is_norm = re.search(r"attn\.norm_|_norm[12]\.|^txt_norm\.", name) is not None
        state[name] = 1 + wave if is_norm else wave
    return state


def golden_inputs(grid: Grid) -> dict[str, Any]:
    """The golden inputs (B=2, S=7, float32), as keyword arguments of `transformer_forward`."""

    def wave(phase: float, *shape: int) -> Tensor:
        j = torch.arange(math.prod(shape), dtype=torch.float64)
        return torch.cos(0.23 * j + phase).float().reshape(shape)

    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[1, 4:] = False
    return {
        "hidden_states": wave(0.0, 2, grid[0] * grid[1], GOLDEN_CONFIG["in_channels"]),
        "encoder_hidden_states": [wave(1.0 + i, 2, 7, GOLDEN_CONFIG["enc_hidden_dim"]) for i in range(3)],
        "mask": mask,
        "timestep": torch.tensor([0.7, 0.25]),
        "grid": grid,
    }


def linear(state: State, name: str, x: Tensor) -> Tensor:
    """The layer `name`, with a bias where the state has one."""
    return functional.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMS norm over the last axis: in float32, then rounded to the weight's dtype if that is a half, then weighted."""
    normed = x * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + eps)
    if weight.dtype in (torch.float16, torch.bfloat16):
        normed = normed.to(weight.dtype)
    return normed * weight


def time_embedding(state: State, timestep: Tensor, dtype: torch.dtype) -> Tensor:
    """Sigmas [B] in 0..1 -> [B, dim]. They are rounded to dtype first; the waves are float32."""
    frequencies = torch.exp(-math.log(10000.0) * torch.arange(128, device=timestep.device) / 128)
    angles = 1000.0 * (timestep.to(dtype).float()[:, None] * frequencies)
    waves = torch.cat([angles.cos(), angles.sin()], dim=-1).to(dtype)
    hidden = functional.silu(linear(state, "time_text_embed.timestep_embedder.linear_1", waves))
    return linear(state, "time_text_embed.timestep_embedder.linear_2", hidden)


def rotary_angles(axes: Sequence[int], grid: Grid, text_tokens: int, device: torch.device | str) -> Tensor:
    """Angles [N+S, D/2] in float32, image tokens first; the axes are frame, height, width."""
    frame = torch.zeros(1, dtype=torch.int64, device=device)
    rows, columns = (torch.arange(size, device=device) - (size - size // 2) for size in grid)
    image = torch.cartesian_prod(frame, rows, columns)
    text = torch.arange(text_tokens, device=device)[:, None].expand(-1, 3) + max(grid[0] // 2, grid[1] // 2)
    positions = torch.cat([image, text]).float()
    angles = []
    for axis, size in enumerate(axes):
        frequencies = 10000.0 ** -(torch.arange(0, size, 2, device=device, dtype=torch.float32) / size)
        angles.append(positions[:, axis, None] * frequencies)
    return torch.cat(angles, dim=1)


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn each pair (x[2k], x[2k+1]) of [B, N+S, heads, D] by rotation, complex64 [N+S, D/2]; in float32."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotation[:, None]).flatten(-2).to(x.dtype)


def joint_attention(
    state: State, prefix: str, image: Tensor, text: Tensor, rotation: Tensor, bias: Tensor | None, head_dim: int
) -> tuple[Tensor, Tensor]:
    """Both streams attend to both; image [B, N, dim] and text [B, S, dim] come back projected."""
    queries, keys, values = [], [], []
    for x, qkv, norm_q, norm_k in (
        (image, "img_qkv", "norm_q", "norm_k"),
        (text, "txt_qkv", "norm_added_q", "norm_added_k"),
    ):
        query, key, value = linear(state, f"{prefix}{qkv}", x).unflatten(-1, (3, -1, head_dim)).unbind(2)
        queries.append(rms_norm(query, state[f"{prefix}{norm_q}.weight"], NORM_EPS))
        keys.append(rms_norm(key, state[f"{prefix}{norm_k}.weight"], NORM_EPS))
        values.append(value)
    query, key = rotate(torch.cat(queries, dim=1), rotation), rotate(torch.cat(keys, dim=1), rotation)
    attended = functional.scaled_dot_product_attention(
        query.transpose(1, 2), key.transpose(1, 2), torch.cat(values, dim=1).transpose(1, 2), attn_mask=bias
    )
    image, text = attended.transpose(1, 2).flatten(2).split([image.shape[1], text.shape[1]], dim=1)
    return linear(state, f"{prefix}to_out.0", image), linear(state, f"{prefix}to_add_out", text)


def swiglu(state: State, name: str, x: Tensor) -> Tensor:
    """The gated MLP: w2(silu(w1 x) * (w3 x))."""
    return linear(state, f"{name}.w2", functional.silu(linear(state, f"{name}.w1", x)) * linear(state, f"{name}.w3", x))


def block_forward(
    state: State, prefix: str, image: Tensor, text: Tensor, time: Tensor, **attention: Any
) -> tuple[Tensor, Tensor]:
    """One block on image [B, N, dim] and text [B, S, dim]; time is SiLU of the time embedding, [B, 1, dim].

    attention is what `joint_attention` takes besides: rotation, bias and head_dim.
    """

    def modulated(x: Tensor, norm: str, shift: Tensor, scale: Tensor) -> Tensor:
        return rms_norm(x, state[f"{prefix}{norm}.weight"], NORM_EPS) * (1 + scale) + shift

    image_mods = linear(state, f"{prefix}img_mod.1", time).chunk(6, dim=-1)
    text_mods = linear(state, f"{prefix}txt_mod.1", time).chunk(6, dim=-1)
    image_shift1, image_scale1, image_gate1, image_shift2, image_scale2, image_gate2 = image_mods
    text_shift1, text_scale1, text_gate1, text_shift2, text_scale2, text_gate2 = text_mods
    image_normed = modulated(image, "img_norm1", image_shift1, image_scale1)
    text_normed = modulated(text, "txt_norm1", text_shift1, text_scale1)
    image_attended, text_attended = joint_attention(state, f"{prefix}attn.", image_normed, text_normed, **attention)
    image = image + image_gate1 * image_attended
    text = text + text_gate1 * text_attended
    image_normed = modulated(image, "img_norm2", image_shift2, image_scale2)
    text_normed = modulated(text, "txt_norm2", text_shift2, text_scale2)
    image = image + image_gate2 * swiglu(state, f"{prefix}img_mlp", image_normed)
    text = text + text_gate2 * swiglu(state, f"{prefix}txt_mlp", text_normed)
    return image, text


def attention_bias(mask: Tensor, image_tokens: int, dtype: torch.dtype) -> Tensor:
    """Mask [B, S], True where the text is valid -> what is added to the scores, [B, 1, 1, N+S]: 0 or -inf."""
    bias = torch.zeros(mask.shape[0], 1, 1, image_tokens + mask.shape[1], dtype=torch.float32, device=mask.device)
    bias[..., image_tokens:].masked_fill_(~mask.bool()[:, None, None, :], -math.inf)
    return bias.to(dtype)


def transformer_forward(
    state: State,
    config: Mapping[str, Any],
    hidden_states: Tensor,
    encoder_hidden_states: Sequence[Tensor],
    mask: Tensor | None,
    timestep: Tensor,
    grid: Grid,
) -> Tensor:
    """Velocity [B, N, patch*patch*out_channels].

    hidden_states [B, N, in_channels] and encoder_hidden_states, a [B, S, enc_hidden_dim] for each selected layer, in
    the state's dtype; mask [B, S], True where the text is valid, or None if it all is; timestep [B], sigmas in 0..1.
    Only the variant that was released: rms_norm, gate_mlp and multi_layer_encoder_feature all true.
    """
    image = linear(state, "img_in", hidden_states)
    weights = [state[f"txt_norm.{i}.weight"] for i in range(len(config["selected_layer_index"]))]
    normed = [rms_norm(x, weight, TEXT_FEATURE_EPS) for x, weight in zip(encoder_hidden_states, weights, strict=True)]
    text = linear(state, "txt_in", torch.cat(normed, dim=-1))
    time = functional.silu(time_embedding(state, timestep, image.dtype))[:, None]
    angles = rotary_angles(config["axes_dims_rope"], grid, text.shape[1], image.device)
    attention = {
        "rotation": torch.polar(torch.ones_like(angles), angles),
        "bias": None if mask is None else attention_bias(mask, image.shape[1], image.dtype),
        "head_dim": config["attention_head_dim"],
    }
    for i in range(config["num_layers"]):
        image, text = block_forward(state, f"transformer_blocks.{i}.", image, text, time, **attention)
    scale, shift = linear(state, "norm_out.linear", time).chunk(2, dim=-1)
    image = functional.layer_norm(image, image.shape[-1:], eps=NORM_EPS) * (1 + scale) + shift
    return linear(state, "proj_out", image)


def mu(tokens: int, steps: int) -> float:
    """The time shift's exponent, for h*w tokens: two fitted lines (10 and 200 steps) and what lies between them."""
    at_200 = 0.00016927 * tokens + 0.45666666
    if tokens > 4300:
        return at_200
    at_10 = 8.73809524e-5 * tokens + 1.89833333
    slope = (at_200 - at_10) / 190
    return slope * steps + at_200 - 200 * slope


def sigmas(tokens: int, steps: int) -> list[float]:
    """The noise levels, from 1 down, steps of them, and a trailing 0; in double precision."""
    factor = math.exp(mu(tokens, steps))
    return [factor / (factor + 1 / sigma - 1) for sigma in np.linspace(1.0, 1 / steps, steps).tolist()] + [0.0]


def guided(cond: Tensor, uncond: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance [B, N, C], each token brought back to the norm that cond has there."""
    combined = uncond + scale * (cond - uncond)
    cond_norm, norm = cond.norm(dim=-1, keepdim=True), combined.norm(dim=-1, keepdim=True)
    factor = torch.where(norm > 0, cond_norm / norm.clamp_min(1e-12), 1.0)
    return combined * factor


def sample(velocity: Callable[[Tensor, float], Tensor], latents: Tensor, sigmas: Sequence[float]) -> Tensor:
    """Euler's method from sigmas[0] to sigmas[-1]; float32, whatever dtype velocity answers in."""
    latents = latents.float()
    for sigma, following in pairwise(sigmas):
        latents = latents + (following - sigma) * velocity(latents, sigma).float()
    return latents


def decode_latents(packed: Tensor, h: int, w: int, mean: Tensor, var: Tensor, eps: float) -> Tensor:
    """Packed [B, h*w, C*4] -> what the VAE decodes, [B, C, 2h, 2w]; C is 32. In the dtype of mean and var, [C*4].

    A token's channels are (latent channel, row in the patch, column in the patch).
    """
    latents = packed.to(mean.dtype) * torch.sqrt(var + eps) + mean
    patches = latents.unflatten(1, (h, w)).unflatten(-1, (-1, 2, 2))
    return patches.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


def to_uint8(image: Tensor) -> Tensor:
    """Image [B, 3, H, W] in -1..1 -> uint8 [B, H, W, 3]; clamped, scaled in its own dtype, and cut, not rounded."""
    return ((image.clamp(-1, 1) + 1) * 127.5).to(torch.uint8).permute(0, 2, 3, 1)


def gpt_oss_residuals(model: Any, input_ids: Tensor, attention_mask: Tensor, layers: Sequence[int]) -> list[Tensor]:
    """What these decoder layers (from 0) of a GptOssForCausalLM put out, before any final norm: each [B, S, hidden]."""
    found: dict[int, Tensor] = {}

    def keep(layer: int, _module: Any, _inputs: Any, output: Tensor) -> None:
        found[layer] = output

    handles = [model.model.layers[layer].register_forward_hook(partial(keep, layer)) for layer in layers]
    try:
        with torch.no_grad():
            model.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return [found[layer] for layer in layers]
