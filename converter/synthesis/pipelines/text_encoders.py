"""The text encoders that several pipelines have, and the sizes of their vocabularies.

A table of embeddings may be larger than the tokenizer's vocabulary, as in the real models, except CLIP's: it reads a
prompt at its end, which it takes to be the token with the largest number.
"""

from __future__ import annotations

from converter.synthesis.models import ModelKind
from converter.synthesis.pipelines.description import Model

CLIP_VOCABULARY = 514
T5_VOCABULARY = 256
QWEN_VOCABULARY = 640
GEMMA_VOCABULARY = 384
MISTRAL_VOCABULARY = 512


def clip_encoder(name: str, *, width: int, projects: bool, act: str) -> Model:
    """CLIP's text encoder.

    Args:
        name: of the component.
        width: of its states, and of what it projects them to.
        projects: whether it has the projection.
        act: activation function.
    """
    if projects:
        kind = ModelKind("transformers", "CLIPTextModelWithProjection")
    else:
        # The names in published files have a prefix that newer versions of transformers do without.
        kind = ModelKind("transformers", "CLIPTextModel", prefix="text_model.")
    config = {
        "bos_token_id": 0,
        # A mistake of the first configs, by which CLIP finds the end of a prompt as described above.
        "eos_token_id": 2,
        "hidden_act": act,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 77,
        "num_attention_heads": width // 32,
        "num_hidden_layers": 3,
        "pad_token_id": 1,
        "projection_dim": width,
        "vocab_size": CLIP_VOCABULARY,
    }
    return Model(name, kind, config)


def t5_encoder(name: str, class_name: str, *, width: int, dtype: str = "F32") -> Model:
    """The encoder of T5 1.1, or of UMT5, in which every layer has its own position biases.

    Args:
        name: of the component.
        class_name: ``T5EncoderModel`` or ``UMT5EncoderModel``.
        width: of its states.
        dtype: of its tensors.
    """
    config = {
        "d_ff": 2 * width,
        "d_kv": 32,
        "d_model": width,
        "eos_token_id": 1,
        "feed_forward_proj": "gated-gelu",
        "layer_norm_epsilon": 1e-06,
        "num_heads": width // 32,
        "num_layers": 2,
        "pad_token_id": 0,
        "relative_attention_max_distance": 128,
        "relative_attention_num_buckets": 32,
        "tie_word_embeddings": False,
        "vocab_size": T5_VOCABULARY,
    }
    return Model(name, ModelKind("transformers", class_name), config, dtype)
