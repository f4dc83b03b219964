"""A whole Lens pipeline small enough for a CPU: the layout and every config of microsoft/Lens, in small numbers.

Real are the scheduler, the layers that are read from the text encoder, its chat format with 97 tokens before a prompt,
the latent channels and patches, and the transformer's head size; widths and depths are not.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from converter.checkpoint.layout import TensorSpec
from converter.checkpoint.source import PIPELINE_INDEX
from converter.libraries import load_library
from converter.models.lens.layout import PIPELINE_CLASS_NAME, LensConfig

#: The version of diffusers that microsoft/Lens was saved with; part of its configs.
DIFFUSERS_VERSION = "0.37.1"
#: Wide enough for SDNQ to quantize what it quantizes in the real model; widths and hidden widths are whole groups.
TRANSFORMER = LensConfig(num_layers=4, num_attention_heads=3, inner_dim=192, enc_hidden_dim=64)
#: As in microsoft/Lens.
SCHEDULER_CONFIG: dict[str, Any] = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "_diffusers_version": DIFFUSERS_VERSION,
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "invert_sigmas": False,
    "max_image_seq_len": 4096,
    "max_shift": 1.15,
    "num_train_timesteps": 1000,
    "shift": 3.0,
    "shift_terminal": None,
    "stochastic_sampling": False,
    "time_shift_type": "exponential",
    "use_beta_sigmas": False,
    "use_dynamic_shifting": True,
    "use_exponential_sigmas": False,
    "use_karras_sigmas": False,
}
MODEL_INDEX: dict[str, Any] = {
    "_class_name": PIPELINE_CLASS_NAME,
    "_diffusers_version": DIFFUSERS_VERSION,
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "LensGptOssEncoder"],
    "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
    "transformer": ["diffusers", "LensTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKLFlux2"],
}
#: The real autoencoder with few channels; ``sample_size`` is the side of the image that suits it.
_VAE_CONFIG: dict[str, Any] = {
    "_class_name": "AutoencoderKLFlux2",
    "_diffusers_version": DIFFUSERS_VERSION,
    "act_fn": "silu",
    "batch_norm_eps": 1e-4,
    "batch_norm_momentum": 0.1,
    "block_out_channels": [16, 16, 16, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 32,
    "layers_per_block": 1,
    "mid_block_add_attention": True,
    "norm_num_groups": 4,
    "out_channels": 3,
    "patch_size": [2, 2],
    "sample_size": 256,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "use_post_quant_conv": True,
    "use_quant_conv": True,
}
_TEXT_ENCODER_CONFIG: dict[str, Any] = {
    "architectures": ["GptOssForCausalLM"],
    "attention_bias": True,
    "attention_dropout": 0.0,
    "dtype": "bfloat16",
    "head_dim": 16,
    "hidden_act": "silu",
    "hidden_size": TRANSFORMER.enc_hidden_dim,
    "initial_context_length": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 64,
    "layer_types": ["sliding_attention", "full_attention"] * 12,
    "max_position_embeddings": 131072,
    "model_type": "gpt_oss",
    "num_attention_heads": 4,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "num_local_experts": 4,
    "output_router_logits": False,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "rope_theta": 150000.0,
        "rope_type": "yarn",
        "truncate": False,
    },
    "router_aux_loss_coef": 0.9,
    "sliding_window": 128,
    "swiglu_limit": 7.0,
    "tie_word_embeddings": False,
    "use_cache": True,
}


def vae_weights() -> tuple[tuple[TensorSpec, ...], dict[str, Any]]:
    """Tensors of the autoencoder in F32, and its config."""
    model_class = load_library("diffusers").AutoencoderKLFlux2
    with load_library("accelerate").init_empty_weights():
        model = model_class.from_config(_VAE_CONFIG)
    state = model.state_dict()
    return tuple(
        TensorSpec(name, "F32" if tensor.is_floating_point() else "I64", tuple(tensor.shape))
        for name, tensor in state.items()
    ), _VAE_CONFIG


def text_encoder_weights(tokenizer: Any) -> tuple[tuple[TensorSpec, ...], dict[str, Any]]:
    """Tensors of the text encoder in BF16, and its config.

    Args:
        tokenizer: whose vocabulary it has.
    """
    transformers = load_library("transformers")
    config = {
        **_TEXT_ENCODER_CONFIG,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "vocab_size": len(tokenizer),
    }
    with load_library("accelerate").init_empty_weights():
        model = transformers.GptOssForCausalLM(transformers.GptOssConfig.from_dict(config))
    state = model.state_dict()
    return tuple(TensorSpec(name, "BF16", tuple(tensor.shape)) for name, tensor in state.items()), config


def small_files(tokenizer: Any) -> dict[str, bytes]:
    """Everything of the pipeline that is neither weights nor the config beside them, by its path.

    Args:
        tokenizer: to be saved.
    """
    generation = {
        "bos_token_id": tokenizer.bos_token_id,
        "do_sample": True,
        "eos_token_id": [tokenizer.eos_token_id],
        "pad_token_id": tokenizer.pad_token_id,
    }
    files = {
        PIPELINE_INDEX: MODEL_INDEX,
        "scheduler/scheduler_config.json": SCHEDULER_CONFIG,
        "text_encoder/generation_config.json": generation,
    }
    found = {name: (json.dumps(content, indent=2) + "\n").encode() for name, content in files.items()}
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer.save_pretrained(scratch)
        found |= {f"tokenizer/{file.name}": file.read_bytes() for file in sorted(Path(scratch).iterdir())}
    return found
