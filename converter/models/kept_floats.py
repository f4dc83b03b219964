"""Which tensors diffusers keeps in float32, whatever dtype a model is loaded in; nothing is imported."""

from __future__ import annotations

_WAN = ("time_embedder", "scale_shift_table", "norm1", "norm2", "norm3")
#: Parts of names by class: ``_keep_in_fp32_modules`` of the models of diffusers 0.42, which a test compares. The
#: list of transformers counts for float16 only, and its strict one names no model that pipelines have.
KEPT_IN_FLOAT32: dict[str, tuple[str, ...]] = {
    "AnyFlowFARTransformer3DModel": _WAN,
    "AnyFlowTransformer3DModel": _WAN,
    "AutoencoderKLMiniMaxH3": ("encoder", "quant_conv", "norm1", "norm2", "norm_out", "scale1", "scale2"),
    "AutoencoderKLMiniMaxH3Audio": ("encoder", "decoder", "pre_block", "dec_in_proj", "mean_proj", "logs_proj"),
    "ChronoEditTransformer3DModel": _WAN,
    "Cosmos3OmniTransformer": ("time_embedder",),
    "CosmosControlNetModel": ("learnable_pos_embed",),
    "CosmosTransformer3DModel": ("learnable_pos_embed",),
    "Flux3Transformer2DModel": ("norm_q", "norm_k"),
    "HeliosTransformer3DModel": (*_WAN, "history_key_scale"),
    "JoyImageEditPlusTransformer3DModel": ("time_embedder", "norm1", "norm2", "norm_out"),
    "JoyImageEditTransformer3DModel": ("time_embedder", "norm1", "norm2", "norm_out"),
    "Kandinsky5Transformer3DModel": ("time_embeddings", "modulation", "visual_modulation", "text_modulation"),
    "Kandinsky6SRTransformer3DModel": ("time_embeddings", "pooled_bias", "modulation"),
    "Kandinsky6Transformer3DModel": ("time_embeddings", "modulation"),
    "Krea2Transformer2DModel": ("norm", "norm1", "norm2", "norm_q", "norm_k"),
    "MiniMaxH3Transformer3DModel": ("proj_in", "audio_proj_in", "time_embedder", "proj_out", "audio_proj_out", "rope"),
    "RFD4ProteinaAutoencoder": ("latent_decoder_mean_n_log_scale", "norm"),
    "RFD4ProteinaTransformer": ("cond_factory", "norm", "ln_out"),
    "SkyReelsV2Transformer3DModel": (*_WAN, "rope"),
    "WanAnimate2Transformer3DModel": (
        "time_embedding",
        "time_projection",
        "scale_shift_table",
        "norm1",
        "norm2",
        "norm3",
        "modulation",
    ),
    "WanAnimateTransformer3DModel": (*_WAN, "motion_synthesis_weight", "rope"),
    "WanTransformer3DModel": (*_WAN, "rope"),
    "WanVACETransformer3DModel": (*_WAN, "rope"),
}


def kept_in_float32(name: str, class_name: str) -> bool:
    """Whether diffusers keeps a tensor in float32, as ``load_model_dict_into_meta`` decides.

    Args:
        name: of the tensor.
        class_name: of the model.
    """
    return not set(name.split(".")).isdisjoint(KEPT_IN_FLOAT32.get(class_name, ()))
