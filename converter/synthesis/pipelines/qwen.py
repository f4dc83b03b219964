"""Qwen-Image and Z-Image, whose text encoders are models of the Qwen family."""

from __future__ import annotations

from typing import Any

from converter.synthesis.models import ModelKind
from converter.synthesis.pipelines.autoencoders import FLUX_AUTOENCODER, wan_autoencoder
from converter.synthesis.pipelines.description import Model, Pipeline, Tokenizer
from converter.synthesis.pipelines.text_encoders import QWEN_VOCABULARY
from converter.synthesis.pipelines.tokenizers import QWEN_TOKENS, qwen_tokenizer

_WIDTH = 128
_TOKENIZER = Tokenizer("tokenizer", "Qwen2Tokenizer", qwen_tokenizer)
#: What Qwen2.5 and Qwen3 have in common.
_TEXT_CONFIG: dict[str, Any] = {
    "bos_token_id": QWEN_TOKENS["<|endoftext|>"],
    "eos_token_id": QWEN_TOKENS["<|im_end|>"],
    "hidden_act": "silu",
    "hidden_size": _WIDTH,
    "intermediate_size": 2 * _WIDTH,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "vocab_size": QWEN_VOCABULARY,
}

QWEN_IMAGE = Pipeline(
    "QwenImagePipeline",
    models=(
        Model(
            "text_encoder",
            ModelKind("transformers", "Qwen2_5_VLForConditionalGeneration"),
            {
                "image_token_id": QWEN_TOKENS["<|image_pad|>"],
                "text_config": {
                    **_TEXT_CONFIG,
                    "max_position_embeddings": 128000,
                    "model_type": "qwen2_5_vl_text",
                    "rope_parameters": {"mrope_section": [4, 6, 6], "rope_theta": 1000000.0, "rope_type": "default"},
                },
                "tie_word_embeddings": False,
                "video_token_id": QWEN_TOKENS["<|video_pad|>"],
                "vision_config": {
                    "depth": 1,
                    "fullatt_block_indexes": [0],
                    "hidden_act": "silu",
                    "hidden_size": _WIDTH,
                    "in_channels": 3,
                    "intermediate_size": 2 * _WIDTH,
                    "model_type": "qwen2_5_vl",
                    "num_heads": 4,
                    "out_hidden_size": _WIDTH,
                    "patch_size": 14,
                    "spatial_merge_size": 2,
                    "temporal_patch_size": 2,
                    "window_size": 112,
                },
                "vision_end_token_id": QWEN_TOKENS["<|vision_end|>"],
                "vision_start_token_id": QWEN_TOKENS["<|vision_start|>"],
            },
        ),
        Model(
            "transformer",
            ModelKind("diffusers", "QwenImageTransformer2DModel"),
            {
                "attention_head_dim": 32,
                "axes_dims_rope": [8, 12, 12],
                "guidance_embeds": False,
                "in_channels": 64,
                "joint_attention_dim": _WIDTH,
                "num_attention_heads": 4,
                "num_layers": 3,
                "out_channels": 16,
                "patch_size": 2,
            },
        ),
        wan_autoencoder("AutoencoderKLQwenImage"),
    ),
    tokenizers=(_TOKENIZER,),
    scheduler="FlowMatchEulerDiscreteScheduler",
    scheduler_config={
        "base_image_seq_len": 256,
        "base_shift": 0.5,
        "max_image_seq_len": 8192,
        "max_shift": 0.9,
        "num_train_timesteps": 1000,
        "shift": 1.0,
        "shift_terminal": 0.02,
        "time_shift_type": "exponential",
        "use_dynamic_shifting": True,
    },
)

Z_IMAGE = Pipeline(
    "ZImagePipeline",
    models=(
        Model(
            "text_encoder",
            # The published files are those of the language model, whose last layer has no weights of its own.
            ModelKind("transformers", "Qwen3Model", prefix="model."),
            {
                **_TEXT_CONFIG,
                "architectures": ["Qwen3ForCausalLM"],
                "attention_bias": False,
                "head_dim": 32,
                "max_position_embeddings": 40960,
                "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"},
                "tie_word_embeddings": True,
            },
            "BF16",
        ),
        Model(
            "transformer",
            ModelKind("diffusers", "ZImageTransformer2DModel"),
            {
                "all_f_patch_size": [1],
                "all_patch_size": [2],
                "axes_dims": [8, 12, 12],
                "axes_lens": [1536, 512, 512],
                "cap_feat_dim": _WIDTH,
                "dim": 128,
                "in_channels": 16,
                "n_heads": 4,
                "n_kv_heads": 4,
                "n_layers": 3,
                "n_refiner_layers": 2,
                "norm_eps": 1e-05,
                "qk_norm": True,
                "rope_theta": 256.0,
                "t_scale": 1000.0,
            },
        ),
        FLUX_AUTOENCODER,
    ),
    tokenizers=(_TOKENIZER,),
    scheduler="FlowMatchEulerDiscreteScheduler",
    scheduler_config={"num_train_timesteps": 1000, "shift": 3.0, "use_dynamic_shifting": False},
)
