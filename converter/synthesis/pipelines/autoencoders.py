"""The autoencoder that Stable Diffusion, FLUX.1 and Z-Image have in common, with eight pixels per latent."""

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
