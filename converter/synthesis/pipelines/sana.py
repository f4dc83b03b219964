"""Sana: linear attention over latents of 32 pixels per side, with Gemma 2 as its text encoder."""

from __future__ import annotations

from converter.synthesis.models import ModelKind
from converter.synthesis.pipelines.description import Model, Pipeline, Tokenizer
from converter.synthesis.pipelines.text_encoders import GEMMA_VOCABULARY
from converter.synthesis.pipelines.tokenizers import gemma_tokenizer

_WIDTH = 128
_CHANNELS = [8, 16, 32, 32, 32, 32]
_BLOCKS = ["ResBlock", "ResBlock", "ResBlock", "EfficientViTBlock", "EfficientViTBlock", "EfficientViTBlock"]
_SCALES: list[list[int]] = [[], [], [], [5], [5], [5]]

SANA = Pipeline(
    "SanaPipeline",
    models=(
        Model(
            "text_encoder",
            ModelKind("transformers", "Gemma2Model"),
            {
                "attn_logit_softcapping": 50.0,
                "bos_token_id": 2,
                "eos_token_id": 1,
                "final_logit_softcapping": 30.0,
                "head_dim": 32,
                "hidden_activation": "gelu_pytorch_tanh",
                "hidden_size": _WIDTH,
                "intermediate_size": 2 * _WIDTH,
                "max_position_embeddings": 8192,
                "num_attention_heads": 4,
                "num_hidden_layers": 2,
                "num_key_value_heads": 2,
                "pad_token_id": 0,
                "query_pre_attn_scalar": 32,
                "rms_norm_eps": 1e-06,
                "sliding_window": 4096,
                "vocab_size": GEMMA_VOCABULARY,
            },
            "BF16",
        ),
        Model(
            "transformer",
            ModelKind("diffusers", "SanaTransformer2DModel"),
            {
                "attention_bias": False,
                "attention_head_dim": 32,
                "caption_channels": _WIDTH,
                "cross_attention_dim": _WIDTH,
                "cross_attention_head_dim": 32,
                "in_channels": 32,
                "mlp_ratio": 2.5,
                "norm_elementwise_affine": False,
                "norm_eps": 1e-06,
                "num_attention_heads": _WIDTH // 32,
                "num_cross_attention_heads": _WIDTH // 32,
                "num_layers": 3,
                "out_channels": 32,
                "patch_size": 1,
                # From this, the pipeline knows which sizes of images the model has learned.
                "sample_size": 32,
            },
        ),
        Model(
            "vae",
            ModelKind("diffusers", "AutoencoderDC"),
            {
                "attention_head_dim": 16,
                "decoder_act_fns": "silu",
                "decoder_block_out_channels": _CHANNELS,
                "decoder_block_types": _BLOCKS,
                "decoder_layers_per_block": [1] * len(_CHANNELS),
                "decoder_norm_types": "rms_norm",
                "decoder_qkv_multiscales": _SCALES,
                "downsample_block_type": "conv",
                "encoder_block_out_channels": _CHANNELS,
                "encoder_block_types": _BLOCKS,
                "encoder_layers_per_block": [1] * len(_CHANNELS),
                "encoder_qkv_multiscales": _SCALES,
                "in_channels": 3,
                "latent_channels": 32,
                "scaling_factor": 0.41407,
                "upsample_block_type": "interpolate",
            },
        ),
    ),
    tokenizers=(Tokenizer("tokenizer", "GemmaTokenizerFast", gemma_tokenizer),),
    scheduler="DPMSolverMultistepScheduler",
    scheduler_config={
        "algorithm_type": "dpmsolver++",
        "final_sigmas_type": "zero",
        "flow_shift": 3.0,
        "lower_order_final": True,
        "num_train_timesteps": 1000,
        "prediction_type": "flow_prediction",
        "solver_order": 2,
        "solver_type": "midpoint",
        "use_flow_sigmas": True,
    },
)
