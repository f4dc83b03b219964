"""FLUX.1 and FLUX.2: transformers of double and single blocks, with CLIP and T5, and with Mistral."""

from __future__ import annotations

from converter.synthesis.models import ModelKind
from converter.synthesis.pipelines.autoencoders import FLUX_AUTOENCODER
from converter.synthesis.pipelines.description import Model, Pipeline, Tokenizer
from converter.synthesis.pipelines.text_encoders import MISTRAL_VOCABULARY, clip_encoder, t5_encoder
from converter.synthesis.pipelines.tokenizers import IMAGE_TOKEN, clip_tokenizer, mistral_tokenizer, t5_tokenizer
from converter.synthesis.tiny import read_config

_WIDTH = 128
#: How the schedulers of FLUX shift their steps to images of different sizes.
_SCHEDULER_CONFIG = {
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "max_image_seq_len": 4096,
    "max_shift": 1.15,
    "num_train_timesteps": 1000,
    "shift": 3.0,
    "use_dynamic_shifting": True,
}

FLUX = Pipeline(
    "FluxPipeline",
    models=(
        clip_encoder("text_encoder", width=_WIDTH, projects=False, act="quick_gelu"),
        t5_encoder("text_encoder_2", "T5EncoderModel", width=_WIDTH),
        Model(
            "transformer",
            ModelKind("diffusers", "FluxTransformer2DModel"),
            {
                "attention_head_dim": 32,
                "axes_dims_rope": [8, 12, 12],
                "guidance_embeds": True,
                "in_channels": 64,
                "joint_attention_dim": _WIDTH,
                "num_attention_heads": 4,
                "num_layers": 2,
                "num_single_layers": 3,
                "patch_size": 1,
                "pooled_projection_dim": _WIDTH,
            },
        ),
        FLUX_AUTOENCODER,
    ),
    tokenizers=(
        Tokenizer("tokenizer", "CLIPTokenizer", clip_tokenizer),
        Tokenizer("tokenizer_2", "T5TokenizerFast", t5_tokenizer),
    ),
    scheduler="FlowMatchEulerDiscreteScheduler",
    scheduler_config=_SCHEDULER_CONFIG,
    settings={"feature_extractor": [None, None], "image_encoder": [None, None]},
)

#: The pipeline reads the states behind these layers of the text encoder, one after another in one row.
_READ_LAYERS = (10, 20, 30)

FLUX2 = Pipeline(
    "Flux2Pipeline",
    models=(
        Model(
            "text_encoder",
            ModelKind("transformers", "Mistral3ForConditionalGeneration"),
            {
                "image_token_index": IMAGE_TOKEN,
                "multimodal_projector_bias": False,
                "projector_hidden_act": "gelu",
                "spatial_merge_size": 2,
                "text_config": {
                    "head_dim": 32,
                    "hidden_act": "silu",
                    "hidden_size": _WIDTH,
                    "intermediate_size": 2 * _WIDTH,
                    "max_position_embeddings": 131072,
                    "model_type": "mistral",
                    "num_attention_heads": 4,
                    "num_hidden_layers": max(_READ_LAYERS),
                    "num_key_value_heads": 2,
                    "rms_norm_eps": 1e-05,
                    "rope_parameters": {"rope_theta": 1000000000.0, "rope_type": "default"},
                    "sliding_window": None,
                    "tie_word_embeddings": False,
                    "vocab_size": MISTRAL_VOCABULARY,
                },
                "tie_word_embeddings": False,
                "vision_config": {
                    "head_dim": 32,
                    "hidden_act": "silu",
                    "hidden_size": _WIDTH,
                    "image_size": 112,
                    "intermediate_size": 2 * _WIDTH,
                    "model_type": "pixtral",
                    "num_attention_heads": 4,
                    "num_channels": 3,
                    "num_hidden_layers": 1,
                    "patch_size": 14,
                    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
                },
                "vision_feature_layer": -1,
            },
        ),
        Model(
            "transformer",
            ModelKind("diffusers", "Flux2Transformer2DModel"),
            {
                "attention_head_dim": 32,
                "axes_dims_rope": [8, 8, 8, 8],
                "eps": 1e-06,
                "in_channels": 128,
                "joint_attention_dim": len(_READ_LAYERS) * _WIDTH,
                "mlp_ratio": 3.0,
                "num_attention_heads": 4,
                "num_layers": 2,
                "num_single_layers": 3,
                "patch_size": 1,
                "rope_theta": 2000,
                "timestep_guidance_channels": 64,
            },
        ),
        # Lens has the same one.
        Model("vae", ModelKind("diffusers", "AutoencoderKLFlux2"), read_config("vae_config")),
    ),
    # The real repo has a PixtralProcessor, which needs torchvision even for text. Its tokenizer is of this class and
    # does with text what the processor does.
    tokenizers=(Tokenizer("tokenizer", "PreTrainedTokenizerFast", mistral_tokenizer),),
    scheduler="FlowMatchEulerDiscreteScheduler",
    scheduler_config=_SCHEDULER_CONFIG,
)
