"""The Lens transformer, which released diffusers does not have.

Parameters, config and arithmetic are those of microsoft/Lens (upstream commit 5bf0f0c); the module ``golden`` compares
them with figures of upstream's own code. An image and a text stream pass through blocks of joint attention. Each stream
has its own modulation by the timestep and its own SwiGLU.

Planning and checking need only this module. ``converter.lens`` adds what users of the model need and what takes half a
second to import: adapters and the pipeline.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.attention import AttentionMixin
from diffusers.models.cache_utils import CacheMixin
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.normalization import AdaLayerNormContinuous, RMSNorm
from diffusers.utils import apply_lora_scale
from torch import nn
from torch.nn.functional import silu

from converter.models.lens.attention import LensAttention, TextRuns, drop_padding
from converter.models.lens.int8_rows import Int8Rows
from converter.models.lens.layout import TIMESTEP_CHANNELS, LensConfig
from converter.models.lens.quantized import apply_to_full_rows
from converter.models.lens.rotary import rotations

#: Upstream's epsilons: for norms of text features, and for all other norms.
_TEXT_NORM_EPSILON = 1e-5
_NORM_EPSILON = 1e-6
#: Timesteps are sigmas from 0 to 1; they are multiplied by this before the embedding.
_TIMESTEP_SCALE = 1000.0


class LensTransformer2DModel(ModelMixin, ConfigMixin, CacheMixin, AttentionMixin):
    """A transformer with an image and a text stream and joint attention; microsoft/Lens has 48 blocks.

    The constructor takes the keys of upstream's ``config.json``. Like upstream, it registers ``inner_dim`` and ignores
    it otherwise.

    Raises:
        ValueError: ``gate_mlp``, ``rms_norm`` or ``multi_layer_encoder_feature`` is false.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["LensTransformerBlock"]
    _repeated_blocks = ["LensTransformerBlock"]
    # SDNQ adds these to the modules that it does not quantize.
    _skip_layerwise_casting_patterns = ["pos_embed", "norm"]

    @register_to_config
    def __init__(
        self,
        patch_size: int = 2,
        in_channels: int = 128,
        out_channels: int = 32,
        num_layers: int = 48,
        attention_head_dim: int = 64,
        num_attention_heads: int = 24,
        inner_dim: int = 1536,
        enc_hidden_dim: int = 2880,
        axes_dims_rope: tuple[int, ...] = (8, 28, 28),
        gate_mlp: bool = True,
        rms_norm: bool = True,
        multi_layer_encoder_feature: bool = True,
        selected_layer_index: tuple[int, ...] = (5, 11, 17, 23),
    ) -> None:
        super().__init__()
        if not (gate_mlp and rms_norm and multi_layer_encoder_feature):
            raise ValueError("gate_mlp, rms_norm and multi_layer_encoder_feature must be true, as in every release")
        config = LensConfig(
            num_layers=num_layers,
            attention_head_dim=attention_head_dim,
            num_attention_heads=num_attention_heads,
        )
        width = config.width
        features = len(selected_layer_index)
        self.time_text_embed = _TimestepProjection(width)
        self.txt_norm = nn.ModuleList(RMSNorm(enc_hidden_dim, eps=_TEXT_NORM_EPSILON) for _ in range(features))
        self.txt_in = nn.Linear(enc_hidden_dim * features, width)
        self.img_in = nn.Linear(in_channels, width)
        self.transformer_blocks = nn.ModuleList(
            LensTransformerBlock(config, is_last=index == num_layers - 1) for index in range(num_layers)
        )
        self.norm_out = AdaLayerNormContinuous(width, width, elementwise_affine=False, eps=_NORM_EPSILON)
        self.proj_out = nn.Linear(width, patch_size**2 * out_channels)
        self.gradient_checkpointing = False

    @apply_lora_scale("attention_kwargs")
    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: Sequence[torch.Tensor],
        encoder_hidden_states_mask: torch.Tensor | None = None,
        timestep: torch.Tensor | None = None,
        img_shapes: Sequence[tuple[int, int, int]] | None = None,
        attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
        text_lengths: Sequence[int] | None = None,
    ) -> Any:
        """Predict the velocity of the latents.

        Args:
            hidden_states: ``[batch, height * width, in_channels]``, tokens row by row.
            encoder_hidden_states: for each selected layer of the encoder ``[batch, text tokens, enc_hidden_dim]``;
                there may be no text tokens.
            encoder_hidden_states_mask: bool, ``[batch, text tokens]``, true where a token counts; None when all do.
            timestep: ``[batch]``, sigma between 0 and 1.
            img_shapes: one ``(1, height, width)`` in tokens, which the batch shares.
            attention_kwargs: ``scale`` is that of LoRA adapters.
            return_dict: whether to return a ``Transformer2DModelOutput`` and not a tuple.
            text_lengths: how many of a sample's first text tokens count, in place of a mask that says the same.
                Attention then needs no mask, and samples at the end of the batch without tokens need no text stream.

        Returns:
            The velocity, ``[batch, height * width, patch_size ** 2 * out_channels]``, as ``sample`` or alone in a
            tuple.

        Raises:
            ValueError: shapes do not fit each other.
        """
        height, width = self._check_shapes(
            hidden_states, encoder_hidden_states, encoder_hidden_states_mask, timestep, img_shapes
        )
        text_runs = None
        if text_lengths is not None:
            _check_lengths(text_lengths, encoder_hidden_states[0], encoder_hidden_states_mask)
            encoder_hidden_states, text_runs = drop_padding(encoder_hidden_states, text_lengths)
        image = self.img_in(hidden_states)
        features = [norm(feature) for norm, feature in zip(self.txt_norm, encoder_hidden_states, strict=True)]
        text = self.txt_in(torch.cat(features, dim=-1))
        temb = self.time_text_embed(timestep.to(image.dtype), image.dtype)  # type: ignore[union-attr]  # checked above
        mask = None
        if encoder_hidden_states_mask is not None and text.shape[1]:
            everywhere = encoder_hidden_states_mask.new_ones(image.shape[:2], dtype=torch.bool)
            mask = torch.cat((everywhere, encoder_hidden_states_mask.bool()), dim=1)[:, None, None]
        rotary = rotations((height, width), text.shape[1], self.config.axes_dims_rope, image.device)
        for block in self.transformer_blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                text, image = self._gradient_checkpointing_func(block, image, text, temb, rotary, mask, text_runs)
            else:
                text, image = block(
                    hidden_states=image,
                    encoder_hidden_states=text,
                    temb=temb,
                    rotary=rotary,
                    attention_mask=mask,
                    text_runs=text_runs,
                )
        sample = self.proj_out(self.norm_out(image, temb))
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)

    def _check_shapes(
        self,
        hidden_states: torch.Tensor,
        features: Sequence[torch.Tensor],
        mask: torch.Tensor | None,
        timestep: torch.Tensor | None,
        img_shapes: Any,
    ) -> tuple[int, int]:
        """Refuse shapes that do not fit; return height and width in tokens."""
        config = self.config
        if sum(config.axes_dims_rope) != config.attention_head_dim or any(axis % 2 for axis in config.axes_dims_rope):
            raise ValueError(
                f"axes_dims_rope {tuple(config.axes_dims_rope)} must be even and add up to attention_head_dim, "
                f"{config.attention_head_dim}"
            )
        if hidden_states.ndim != 3 or hidden_states.shape[2] != config.in_channels:
            raise ValueError(
                f"hidden_states has shape {list(hidden_states.shape)}, not [batch, tokens, {config.in_channels}]"
            )
        batch, tokens = hidden_states.shape[:2]
        if not isinstance(features, (list, tuple)) or len(features) != len(self.txt_norm):
            raise ValueError(
                f"encoder_hidden_states must be a list of {len(self.txt_norm)} tensors, one for each selected layer"
            )
        length = features[0].shape[1] if features[0].ndim == 3 else "tokens"
        expected = [batch, length, config.enc_hidden_dim]
        for index, feature in enumerate(features):
            if list(feature.shape) != expected:
                raise ValueError(f"encoder_hidden_states[{index}] has shape {list(feature.shape)}, not {expected}")
        if mask is not None and list(mask.shape) != expected[:2]:
            raise ValueError(f"encoder_hidden_states_mask has shape {list(mask.shape)}, not {expected[:2]}")
        if timestep is None or timestep.shape != (batch,):
            found = None if timestep is None else list(timestep.shape)
            raise ValueError(f"timestep has shape {found}, not {[batch]}: one sigma for each sample")
        shapes = list(img_shapes or ())
        if not shapes or not all(isinstance(shape, (list, tuple)) and len(shape) == 3 for shape in shapes):
            raise ValueError(f"img_shapes must be one (1, height, width) for the whole batch, not {img_shapes}")
        if len(set(map(tuple, shapes))) > 1:
            raise ValueError(f"img_shapes differ, but the whole batch must share one: {img_shapes}")
        frames, height, width = shapes[0]
        if frames != 1 or height < 1 or height * width != tokens:
            raise ValueError(f"img_shapes {[(frames, height, width)]} do not make {tokens} tokens of one frame")
        return height, width


def _check_lengths(lengths: Sequence[int], feature: torch.Tensor, mask: torch.Tensor | None) -> None:
    if mask is not None:
        raise ValueError("give text_lengths or encoder_hidden_states_mask, not both")
    batch, tokens = feature.shape[:2]
    is_list = isinstance(lengths, (list, tuple)) and len(lengths) == batch
    if not is_list or not all(0 <= length <= tokens for length in lengths):
        raise ValueError(f"text_lengths must be a list of {batch} numbers from 0 to {tokens}, not {lengths}")


class LensTransformerBlock(nn.Module):
    """Joint attention and a SwiGLU for each stream, both modulated by the timestep.

    Args:
        config: widths.
        is_last: whether this is the last block, whose text output is not used. The SwiGLU of the text stream is then
            not computed, unless blocks are compiled; checkpoints contain its weights nevertheless.
    """

    #: Set by ``enable_int8_chain``: makes the inputs of quantized layers in int8.
    int8_chain: Any = None

    def __init__(self, config: LensConfig, *, is_last: bool = False) -> None:
        super().__init__()
        self.is_last = is_last
        width = config.width
        self.attn = LensAttention(config.num_attention_heads, config.attention_head_dim)
        for stream in ("img", "txt"):
            self.add_module(f"{stream}_mod", nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width)))
            self.add_module(f"{stream}_norm1", RMSNorm(width, eps=_NORM_EPSILON))
            self.add_module(f"{stream}_norm2", RMSNorm(width, eps=_NORM_EPSILON))
            self.add_module(f"{stream}_mlp", _SwiGLU(width, config.mlp_width))

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        temb: torch.Tensor,
        rotary: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        text_runs: TextRuns | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One block.

        Args:
            hidden_states: image stream, ``[batch, image tokens, width]``.
            encoder_hidden_states: text stream, ``[samples, text tokens, width]``, as for ``LensAttention``.
            temb: embedding of the timestep, ``[batch, width]``.
            rotary: as for ``LensAttention``.
            attention_mask: likewise.
            text_runs: likewise.

        Returns:
            The text stream and the image stream, in upstream's order.
        """
        has_text = encoder_hidden_states.shape[1] > 0
        image, text = hidden_states, encoder_hidden_states
        shift1, scale1, gate1, shift2, scale2, gate2 = self.img_mod(temb)[:, None].chunk(6, dim=-1)
        image_input = self._modulate(image, self.img_norm1, shift1, scale1, self.attn, self.attn.img_qkv)
        text_input: torch.Tensor | Int8Rows = text
        if has_text:
            # Kernels for quantized weights may fail with zero tokens.
            text_mod = self.txt_mod(temb[: len(text)])[:, None].chunk(6, dim=-1)
            text_input = self._modulate(
                text, self.txt_norm1, text_mod[0], text_mod[1], self.attn, self.attn.txt_qkv, pads=True
            )
        image_output, text_output = self.attn(image_input, text_input, rotary, attention_mask, text_runs)
        image = torch.addcmul(image, gate1, image_output)
        image_input = self._modulate(image, self.img_norm2, shift2, scale2, self.img_mlp, *self.img_mlp.children())
        image = torch.addcmul(image, gate2, self.img_mlp(image_input))
        # A graph that depended on ``is_last`` would be compiled twice for the repeated blocks.
        if has_text and (torch.compiler.is_compiling() or not self.is_last):
            text = torch.addcmul(text, text_mod[2], text_output[: len(text)])
            # The rows of the text vary with the prompt; those of the image do not, and copying them would cost more.
            text_input = self._modulate(
                text, self.txt_norm2, text_mod[3], text_mod[4], self.txt_mlp, *self.txt_mlp.children(), pads=True
            )
            text = torch.addcmul(text, text_mod[5], apply_to_full_rows(self.txt_mlp, text_input))
        return text, image

    def _modulate(
        self,
        states: torch.Tensor,
        norm: nn.Module,
        shift: torch.Tensor,
        scale: torch.Tensor,
        user: nn.Module,
        *layers: nn.Module,
        pads: bool = False,
    ) -> torch.Tensor | Int8Rows:
        """Norm and modulate; ``Int8Chain`` describes the arguments."""
        if self.int8_chain is not None and self.int8_chain.applies(states, norm, user, layers):
            return self.int8_chain.modulate(states, norm, shift, scale, pads=pads)
        return torch.addcmul(shift, norm(states), 1 + scale)


class _SwiGLU(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(width, hidden, bias=False)
        self.w2 = nn.Linear(hidden, width, bias=False)
        self.w3 = nn.Linear(width, hidden, bias=False)

    def forward(self, states: torch.Tensor | Int8Rows) -> torch.Tensor:
        if isinstance(states, Int8Rows):
            return states.swiglu(self.w1, self.w3, self.w2)
        result: torch.Tensor = self.w2(silu(self.w1(states)) * self.w3(states))
        return result


class _TimestepProjection(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.time_proj = Timesteps(
            TIMESTEP_CHANNELS, flip_sin_to_cos=True, downscale_freq_shift=0, scale=_TIMESTEP_SCALE
        )
        self.timestep_embedder = TimestepEmbedding(TIMESTEP_CHANNELS, width)

    def forward(self, timestep: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        embedding: torch.Tensor = self.timestep_embedder(self.time_proj(timestep).to(dtype))
        return embedding
