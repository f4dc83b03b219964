"""The modules of the Lens transformer, which released diffusers does not have.

The parameters are those of microsoft/Lens by name, shape and order, so that SDNQ and the loaders of diffusers treat
the model as they treat their own. What these modules compute is not here yet: this is the structure that planning,
loading and checking need.
"""

from __future__ import annotations

from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import TimestepEmbedding
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.normalization import AdaLayerNormContinuous, RMSNorm
from torch import nn

from converter.lens.layout import TIMESTEP_CHANNELS, LensConfig

#: Upstream's epsilons: of the text features' norms, and of every other norm.
_TEXT_NORM_EPSILON = 1e-5
_NORM_EPSILON = 1e-6


class LensTransformer2DModel(ModelMixin, ConfigMixin):
    """A transformer with an image and a text stream whose attention is joint, 48 blocks deep in microsoft/Lens.

    The constructor takes the keys of upstream's ``config.json``; ``inner_dim`` is registered and otherwise ignored,
    as upstream does.
    """

    _no_split_modules = ["LensTransformerBlock"]
    _repeated_blocks = ["LensTransformerBlock"]
    # SDNQ adds these to the modules that it leaves alone.
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
        self.transformer_blocks = nn.ModuleList(LensTransformerBlock(config) for _ in range(num_layers))
        self.norm_out = AdaLayerNormContinuous(width, width, elementwise_affine=False, eps=_NORM_EPSILON)
        self.proj_out = nn.Linear(width, patch_size**2 * out_channels)


class LensTransformerBlock(nn.Module):
    """Joint attention and a SwiGLU for each stream, both modulated by the timestep."""

    def __init__(self, config: LensConfig) -> None:
        super().__init__()
        width = config.width
        self.attn = _JointAttention(config)
        for stream in ("img", "txt"):
            self.add_module(f"{stream}_mod", nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width)))
            self.add_module(f"{stream}_norm1", RMSNorm(width, eps=_NORM_EPSILON))
            self.add_module(f"{stream}_norm2", RMSNorm(width, eps=_NORM_EPSILON))
            self.add_module(f"{stream}_mlp", _SwiGLU(width, config.mlp_width))


class _JointAttention(nn.Module):
    def __init__(self, config: LensConfig) -> None:
        super().__init__()
        width, head = config.width, config.attention_head_dim
        self.norm_q = RMSNorm(head, eps=_NORM_EPSILON)
        self.norm_k = RMSNorm(head, eps=_NORM_EPSILON)
        self.norm_added_q = RMSNorm(head, eps=_NORM_EPSILON)
        self.norm_added_k = RMSNorm(head, eps=_NORM_EPSILON)
        self.img_qkv = nn.Linear(width, 3 * width)
        self.txt_qkv = nn.Linear(width, 3 * width)
        self.to_out = nn.ModuleList([nn.Linear(width, width), nn.Identity()])
        self.to_add_out = nn.Linear(width, width)


class _SwiGLU(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(width, hidden, bias=False)
        self.w2 = nn.Linear(hidden, width, bias=False)
        self.w3 = nn.Linear(width, hidden, bias=False)


class _TimestepProjection(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.timestep_embedder = TimestepEmbedding(TIMESTEP_CHANNELS, width)
