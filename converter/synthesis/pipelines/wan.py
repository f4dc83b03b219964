"""Wan 2.2: video, with one transformer for the first steps and another one for the last."""

from __future__ import annotations

from typing import Any

from converter.synthesis.models import ModelKind
from converter.synthesis.pipelines.autoencoders import wan_autoencoder
from converter.synthesis.pipelines.description import Model, Pipeline, Tokenizer
from converter.synthesis.pipelines.text_encoders import t5_encoder
from converter.synthesis.pipelines.tokenizers import t5_tokenizer

_WIDTH = 128
_KIND = ModelKind("diffusers", "WanTransformer3DModel")
_TRANSFORMER: dict[str, Any] = {
    "added_kv_proj_dim": None,
    "attention_head_dim": 32,
    "cross_attn_norm": True,
    "eps": 1e-06,
    "ffn_dim": 2 * _WIDTH,
    "freq_dim": 128,
    "image_dim": None,
    "in_channels": 16,
    "num_attention_heads": _WIDTH // 32,
    "num_layers": 3,
    "out_channels": 16,
    "patch_size": [1, 2, 2],
    "qk_norm": "rms_norm_across_heads",
    "rope_max_seq_len": 1024,
    "text_dim": _WIDTH,
}

WAN = Pipeline(
    "WanPipeline",
    models=(
        t5_encoder("text_encoder", "UMT5EncoderModel", width=_WIDTH, dtype="BF16"),
        Model("transformer", _KIND, _TRANSFORMER),
        Model("transformer_2", _KIND, _TRANSFORMER),
        wan_autoencoder("AutoencoderKLWan"),
    ),
    tokenizers=(Tokenizer("tokenizer", "T5TokenizerFast", t5_tokenizer),),
    scheduler="UniPCMultistepScheduler",
    scheduler_config={
        "flow_shift": 3.0,
        "num_train_timesteps": 1000,
        "prediction_type": "flow_prediction",
        "solver_order": 2,
        "solver_type": "bh2",
        "use_flow_sigmas": True,
    },
    # The step from which the second transformer takes over, as a part of all; two steps use both.
    settings={"boundary_ratio": 0.875, "expand_timesteps": False},
)
