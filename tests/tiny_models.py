"""Tiny random-weight models of real classes, wide enough for SDNQ to quantize some of their modules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from converter import Recipe, convert

#: What most transformers are built with.
_HEADS: dict[str, Any] = {"num_layers": 2, "num_attention_heads": 4, "attention_head_dim": 32}
_PATCHES: dict[str, Any] = {"sample_size": 16, "patch_size": 2, "in_channels": 16}

#: Constructor arguments by class.
DIFFUSERS: dict[str, dict[str, Any]] = {
    "LensTransformer2DModel": {"num_layers": 2, "attention_head_dim": 64, "num_attention_heads": 3, "inner_dim": 192}
    | {"enc_hidden_dim": 64},
    "FluxTransformer2DModel": _HEADS
    | {"patch_size": 1, "in_channels": 16, "num_single_layers": 2, "joint_attention_dim": 64}
    | {"pooled_projection_dim": 64, "guidance_embeds": True, "axes_dims_rope": (8, 12, 12)},
    "Flux2Transformer2DModel": _HEADS
    | {"patch_size": 1, "in_channels": 16, "num_single_layers": 2, "joint_attention_dim": 64}
    | {"timestep_guidance_channels": 64, "axes_dims_rope": (8, 8, 8, 8)},
    "QwenImageTransformer2DModel": _HEADS
    | {"patch_size": 2, "in_channels": 16, "out_channels": 4, "joint_attention_dim": 64}
    | {"axes_dims_rope": (8, 12, 12)},
    "ZImageTransformer2DModel": {"in_channels": 16, "dim": 128, "n_layers": 2, "n_refiner_layers": 1}
    | {"n_heads": 4, "n_kv_heads": 4}
    | {"cap_feat_dim": 64, "axes_dims": [8, 12, 12], "axes_lens": [64, 32, 32]},
    "SD3Transformer2DModel": _HEADS
    | _PATCHES
    | {"joint_attention_dim": 64, "caption_projection_dim": 128, "pooled_projection_dim": 64}
    | {"out_channels": 16, "pos_embed_max_size": 16, "dual_attention_layers": (0,), "qk_norm": "rms_norm"},
    "WanTransformer3DModel": _HEADS
    | {"patch_size": (1, 2, 2), "in_channels": 16, "out_channels": 16, "text_dim": 64, "freq_dim": 64}
    | {"ffn_dim": 256, "cross_attn_norm": True, "rope_max_seq_len": 32},
    "PixArtTransformer2DModel": _HEADS
    | {"in_channels": 4, "out_channels": 8, "cross_attention_dim": 128, "sample_size": 16}
    | {"caption_channels": 64},
    "Lumina2Transformer2DModel": _PATCHES
    | {"hidden_size": 96, "num_layers": 2, "num_refiner_layers": 1, "num_attention_heads": 3}
    | {"num_kv_heads": 1, "multiple_of": 64, "axes_dim_rope": (8, 12, 12), "axes_lens": (64, 32, 32)}
    | {"cap_feat_dim": 64},
    "SanaTransformer2DModel": _HEADS
    | {"in_channels": 32, "out_channels": 32, "num_cross_attention_heads": 4}
    | {"cross_attention_head_dim": 32, "cross_attention_dim": 128, "caption_channels": 64, "sample_size": 8},
    "AuraFlowTransformer2DModel": {"sample_size": 8, "patch_size": 2, "in_channels": 4, "num_mmdit_layers": 1}
    | {"num_single_dit_layers": 2, "attention_head_dim": 32, "num_attention_heads": 4}
    | {"joint_attention_dim": 64, "caption_projection_dim": 128, "out_channels": 4}
    | {"pos_embed_max_size": 64},
    "CogVideoXTransformer3DModel": _HEADS
    | {"in_channels": 16, "out_channels": 16, "time_embed_dim": 64, "text_embed_dim": 64, "sample_width": 8}
    | {"sample_height": 8, "sample_frames": 5, "use_learned_positional_embeddings": True}
    | {"use_rotary_positional_embeddings": True},
    "UNet2DConditionModel": {"sample_size": 16, "in_channels": 4, "out_channels": 4, "block_out_channels": (64, 128)}
    | {"layers_per_block": 1, "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D")}
    | {"up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "cross_attention_dim": 64}
    | {"attention_head_dim": 8},
    "AutoencoderKL": {"in_channels": 3, "out_channels": 3, "block_out_channels": (64, 128)}
    | {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    | {"latent_channels": 4, "layers_per_block": 1, "sample_size": 32},
}

_ENCODER: dict[str, Any] = {"vocab_size": 512, "hidden_size": 128, "intermediate_size": 256}
_ENCODER |= {"num_hidden_layers": 2, "num_attention_heads": 4}
_DECODER: dict[str, Any] = {**_ENCODER, "num_key_value_heads": 4}
_VISION: dict[str, Any] = {"depth": 2, "hidden_size": 128, "intermediate_size": 256, "num_heads": 4}
_VISION |= {"out_hidden_size": 128, "fullatt_block_indexes": [1]}
_ROPE: dict[str, Any] = {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10000.0}
_T5: dict[str, Any] = {"vocab_size": 512, "d_model": 128, "d_kv": 32, "d_ff": 256, "num_layers": 2, "num_heads": 4}

#: Config class and its arguments by class.
TRANSFORMERS: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen3ForCausalLM": ("Qwen3Config", {**_DECODER, "head_dim": 32, "tie_word_embeddings": True}),
    "LlamaForCausalLM": ("LlamaConfig", {**_DECODER, "tie_word_embeddings": False}),
    "T5EncoderModel": ("T5Config", {**_T5, "feed_forward_proj": "gated-gelu"}),
    "CLIPTextModel": ("CLIPTextConfig", {**_ENCODER, "max_position_embeddings": 77, "projection_dim": 128}),
    "Qwen2_5_VLForConditionalGeneration": (
        "Qwen2_5_VLConfig",
        {"text_config": {**_DECODER, "rope_parameters": _ROPE}, "vision_config": _VISION}
        | {"image_token_id": 500, "video_token_id": 501, "vision_start_token_id": 502}
        | {"vision_end_token_id": 503, "tie_word_embeddings": False},
    ),
    "GptOssForCausalLM": (
        "GptOssConfig",
        _DECODER
        | {"intermediate_size": 128, "head_dim": 32, "num_local_experts": 4, "num_experts_per_tok": 2}
        | {"layer_types": ["sliding_attention", "full_attention"]},
    ),
}

ALL_CLASSES = (*DIFFUSERS, *TRANSFORMERS)
#: The file of weights that diffusers writes.
WEIGHTS = "diffusion_pytorch_model.safetensors"


def model_class(name: str) -> Any:
    """The class itself."""
    import diffusers
    import transformers

    if name == "LensTransformer2DModel":
        from converter.models.lens.modules import LensTransformer2DModel

        return LensTransformer2DModel
    return getattr(diffusers, name) if name in DIFFUSERS else getattr(transformers, name)


def build_model(name: str, **changes: Any) -> Any:
    """A model with random float32 weights, the same in every run."""
    import transformers

    torch.manual_seed(0)
    if name in DIFFUSERS:
        model = model_class(name)(**{**DIFFUSERS[name], **changes})
    else:
        config_name, arguments = TRANSFORMERS[name]
        model = model_class(name)(getattr(transformers, config_name)(**{**arguments, **changes}))
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        # Constructors leave zeros and ones behind; real weights are neither.
        if parameter.is_floating_point():
            parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    return model.float()


def save_model(
    folder: Path, name: str, *, dtype: torch.dtype = torch.float32, shard: str = "5GB", **changes: Any
) -> Path:
    """Write such a model as its library does; returns the folder."""
    build_model(name, **changes).to(dtype).save_pretrained(folder, max_shard_size=shard)
    return folder


def make_pipeline(folder: Path) -> Path:
    """A pipeline repo with a Lens transformer and two other components."""
    save_model(folder / "transformer", "LensTransformer2DModel")
    (folder / "vae").mkdir()
    (folder / "vae" / "config.json").write_text("{}")
    save_file({"x": torch.ones(5)}, folder / "vae" / WEIGHTS)
    (folder / "tokenizer" / "nested").mkdir(parents=True)
    (folder / "tokenizer" / "nested" / "vocabulary.txt").write_text("words\n")
    (folder / "README.md").write_text("not a component")
    (folder / "model_index.json").write_text(
        json.dumps(
            {"_class_name": "LensPipeline", "transformer": ["diffusers", "LensTransformer2DModel"]}
            | {"vae": ["diffusers", "AutoencoderKLFlux2"]}
            | {"tokenizer": ["transformers", "PreTrainedTokenizerFast"], "safety_checker": [None, None]}
        )
    )
    return folder


def convert_default(source: Path, output: Path, recipe: Recipe | None = None) -> Path:
    """Convert with all defaults, or another recipe; returns the output."""
    convert(source, output, recipe)
    return output
