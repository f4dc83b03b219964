"""Stable Diffusion XL and 3.5: UNet and transformer, with two CLIP encoders, and with T5 as a third."""

from __future__ import annotations

from functools import partial

from converter.synthesis.models import ModelKind
from converter.synthesis.pipelines.autoencoders import image_autoencoder
from converter.synthesis.pipelines.description import Model, Pipeline, Tokenizer
from converter.synthesis.pipelines.text_encoders import clip_encoder, t5_encoder
from converter.synthesis.pipelines.tokenizers import clip_tokenizer, t5_tokenizer

_WIDTHS = (128, 192)
#: Width of a number's embedding; SDXL tells its UNet six numbers about an image's size.
_NUMBER_WIDTH = 32

#: Both pipelines have the same two; the second one pads with another token.
_CLIP_TOKENIZERS = (
    Tokenizer("tokenizer", "CLIPTokenizer", clip_tokenizer),
    Tokenizer("tokenizer_2", "CLIPTokenizer", partial(clip_tokenizer, padding="!")),
)

SDXL = Pipeline(
    "StableDiffusionXLPipeline",
    models=(
        clip_encoder("text_encoder", width=_WIDTHS[0], projects=False, act="quick_gelu"),
        clip_encoder("text_encoder_2", width=_WIDTHS[1], projects=True, act="gelu"),
        Model(
            "unet",
            ModelKind("diffusers", "UNet2DConditionModel"),
            {
                "act_fn": "silu",
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": _NUMBER_WIDTH,
                "attention_head_dim": [1, 2, 4],
                "block_out_channels": [32, 64, 128],
                "cross_attention_dim": sum(_WIDTHS),
                "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
                "in_channels": 4,
                "layers_per_block": 1,
                "out_channels": 4,
                "projection_class_embeddings_input_dim": _WIDTHS[1] + 6 * _NUMBER_WIDTH,
                "sample_size": 128,
                "transformer_layers_per_block": [1, 1, 2],
                "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
                "use_linear_projection": True,
            },
        ),
        image_autoencoder(force_upcast=True, latent_channels=4, scaling_factor=0.13025),
    ),
    tokenizers=_CLIP_TOKENIZERS,
    scheduler="EulerDiscreteScheduler",
    scheduler_config={
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "interpolation_type": "linear",
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
        "steps_offset": 1,
        "timestep_spacing": "leading",
        "use_karras_sigmas": False,
    },
    settings={
        "feature_extractor": [None, None],
        "force_zeros_for_empty_prompt": True,
        "image_encoder": [None, None],
    },
)

SD3 = Pipeline(
    "StableDiffusion3Pipeline",
    models=(
        clip_encoder("text_encoder", width=_WIDTHS[0], projects=True, act="quick_gelu"),
        clip_encoder("text_encoder_2", width=_WIDTHS[1], projects=True, act="gelu"),
        # As wide as both together, or wider: the pipeline pads their states to its width.
        t5_encoder("text_encoder_3", "T5EncoderModel", width=sum(_WIDTHS)),
        Model(
            "transformer",
            ModelKind("diffusers", "SD3Transformer2DModel"),
            {
                "attention_head_dim": 32,
                "caption_projection_dim": 128,
                "dual_attention_layers": [0],
                "in_channels": 16,
                "joint_attention_dim": sum(_WIDTHS),
                "num_attention_heads": 4,
                "num_layers": 3,
                "out_channels": 16,
                "patch_size": 2,
                "pooled_projection_dim": sum(_WIDTHS),
                "pos_embed_max_size": 64,
                "qk_norm": "rms_norm",
                "sample_size": 128,
            },
        ),
        image_autoencoder(
            force_upcast=True,
            latent_channels=16,
            scaling_factor=1.5305,
            shift_factor=0.0609,
            use_post_quant_conv=False,
            use_quant_conv=False,
        ),
    ),
    tokenizers=(*_CLIP_TOKENIZERS, Tokenizer("tokenizer_3", "T5TokenizerFast", t5_tokenizer)),
    scheduler="FlowMatchEulerDiscreteScheduler",
    scheduler_config={"num_train_timesteps": 1000, "shift": 3.0, "use_dynamic_shifting": False},
    settings={"feature_extractor": [None, None], "image_encoder": [None, None]},
)
