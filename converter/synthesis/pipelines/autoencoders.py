"""Autoencoders that several pipelines have in common, with eight pixels per latent: AutoencoderKL, and that of Wan."""

from __future__ import annotations

from typing import Any

from converter.synthesis.models import ModelKind
from converter.synthesis.pipelines.description import Model

LEVELS = 4


def image_autoencoder(**settings: Any) -> Model:
    """AutoencoderKL.

    Args:
        settings: keys of its config in which models differ: latent channels, and how latents are scaled.
    """
    config = {
        "act_fn": "silu",
        "block_out_channels": [16] * LEVELS,
        "down_block_types": ["DownEncoderBlock2D"] * LEVELS,
        "in_channels": 3,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "out_channels": 3,
        "sample_size": 1024,
        "up_block_types": ["UpDecoderBlock2D"] * LEVELS,
    }
    return Model("vae", ModelKind("diffusers", "AutoencoderKL"), {**config, **settings})


#: The one of FLUX.1, which Z-Image uses, too.
FLUX_AUTOENCODER = image_autoencoder(
    force_upcast=True,
    latent_channels=16,
    scaling_factor=0.3611,
    shift_factor=0.1159,
    use_post_quant_conv=False,
    use_quant_conv=False,
)


def wan_autoencoder(class_name: str) -> Model:
    """The autoencoder of Wan, which Qwen-Image has under another name.

    The means and deviations of its 16 latent channels are those of the real one, by default.

    Args:
        class_name: of the autoencoder.
    """
    config = {
        "attn_scales": [],
        "base_dim": 8,
        "dim_mult": [1, 2, 4, 4],
        "dropout": 0.0,
        "num_res_blocks": 1,
        "temperal_downsample": [False, True, True],
        "z_dim": 16,
    }
    return Model("vae", ModelKind("diffusers", class_name), config)
