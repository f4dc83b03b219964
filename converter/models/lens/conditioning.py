"""From the prompts of a call to the features that the transformer is given: encoded, passed in, or blank."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Any

import torch
from diffusers.utils.torch_utils import unwrap_module

from converter.models.lens.features import PromptFeatures, encode_prompts, join_features, text_lengths
from converter.models.lens.layout import LensConfig
from converter.models.lens.modules import LensTransformer2DModel
from converter.models.lens.prompts import MAXIMUM_TOKENS


class LensPromptMixin:
    """``encode_prompt`` of the pipeline, whose components it uses."""

    text_encoder: Any
    tokenizer: Any
    transformer: Any
    _execution_device: Any
    #: The date that prompts are encoded with; None is the current one. Features, and so images, depend on it.
    prompt_date: date | None = None

    def encode_prompt(
        self,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = "",
        *,
        num_images_per_prompt: int = 1,
        do_classifier_free_guidance: bool = True,
        prompt_embeds: Sequence[torch.Tensor] | None = None,
        prompt_mask: torch.Tensor | None = None,
        negative_prompt_embeds: Sequence[torch.Tensor] | None = None,
        negative_prompt_mask: torch.Tensor | None = None,
        max_sequence_length: int = MAXIMUM_TOKENS,
        device: torch.device | None = None,
    ) -> tuple[list[torch.Tensor], torch.Tensor, list[torch.Tensor] | None, torch.Tensor | None]:
        """Encode prompts and negative prompts, and pad their features to one length.

        Embeddings that are passed in replace their prompts, and are not repeated. A pipeline without a transformer
        encodes for the layers of the releases, and leaves features in the dtype of the encoder.

        Returns:
            ``prompt_embeds`` (for each selected layer ``[images, tokens, hidden_size]``), ``prompt_mask`` (bool,
            ``[images, tokens]``), and both for the negative prompts, or None without guidance. If all negative prompts
            are blank, their features are zeros that are masked everywhere, and the encoder does not run for them.

        Raises:
            ValueError: there is neither a prompt nor embeddings, embeddings come without their mask, or the numbers of
                prompts do not fit.
        """
        device = device or self._execution_device
        if prompt_embeds is not None:
            positive = self._given_features(prompt_embeds, prompt_mask, "prompt", device)
            count = positive.batch
        elif prompt is None:
            raise ValueError("give prompt or prompt_embeds")
        else:
            prompts = [prompt] if isinstance(prompt, str) else list(prompt)
            if not prompts:
                raise ValueError("no prompts were given")
            count = len(prompts)
            positive = self._encode(prompts, max_sequence_length, device).repeat(num_images_per_prompt)
        if not do_classifier_free_guidance:
            return [*positive.embeds], positive.mask, None, None
        if negative_prompt_embeds is not None:
            negative = self._given_features(negative_prompt_embeds, negative_prompt_mask, "negative_prompt", device)
        else:
            texts = [negative_prompt] if isinstance(negative_prompt, str | None) else list(negative_prompt)
            texts = [text or "" for text in texts]
            if len(texts) not in (1, count):
                raise ValueError(f"{len(texts)} negative prompts for {count} prompts; give one, or one for each")
            if any(text.strip() for text in texts):
                negative = self._encode(texts, max_sequence_length, device).repeat(positive.batch // len(texts))
            else:
                negative = positive.blank()
        if negative.batch != positive.batch:
            raise ValueError(f"the negative prompts are for {negative.batch} images, the prompts for {positive.batch}")
        positive, negative = join_features(positive, negative)
        return [*positive.embeds], positive.mask, [*negative.embeds], negative.mask

    def _counted_tokens(self, mask: torch.Tensor, negative_mask: torch.Tensor | None) -> list[dict[str, Any]]:
        """Say which text tokens count, as arguments of the transformer: for the first branch alone, and for both.

        Nothing where all do. A mask makes attention slower, so it is left to what lengths cannot say, and to the
        transformers of others, which do not know lengths.
        """
        joint = mask if negative_mask is None else torch.cat((mask, negative_mask))
        lengths = text_lengths(joint)
        knows_lengths = isinstance(unwrap_module(self.transformer), LensTransformer2DModel)
        arguments: list[dict[str, Any]] = []
        for samples in (len(mask), len(joint)):
            if all(length == mask.shape[1] for length in lengths[:samples]):
                arguments.append({})
            elif knows_lengths and None not in lengths[:samples]:
                arguments.append({"text_lengths": lengths[:samples]})
            else:
                arguments.append({"encoder_hidden_states_mask": joint[:samples]})
        return arguments

    def _encode(self, prompts: list[str], maximum: int, device: torch.device) -> PromptFeatures:
        if maximum < 1:
            raise ValueError(f"max_sequence_length is {maximum}; at least one token is needed")
        if self.text_encoder is None or self.tokenizer is None:
            missing = "text encoder" if self.text_encoder is None else "tokenizer"
            raise ValueError(f"this pipeline has no {missing}; give prompt_embeds and negative_prompt_embeds")
        # Repeated here for an encoder that was set after construction.
        config = LensConfig() if self.transformer is None else self.transformer.config
        self.text_encoder.set_selected_layers(config.selected_layer_index)
        features = encode_prompts(
            self.tokenizer, self.text_encoder, prompts, maximum=maximum, day=self.prompt_date, device=device
        )
        return features.to(device, self._features_dtype)

    def _given_features(
        self, embeds: Sequence[torch.Tensor], mask: torch.Tensor | None, name: str, device: torch.device
    ) -> PromptFeatures:
        if mask is None:
            raise ValueError(f"{name}_embeds need a {name}_mask")
        return PromptFeatures(tuple(embeds), mask.bool()).to(device, self._features_dtype)

    @property
    def _features_dtype(self) -> torch.dtype | None:
        return None if self.transformer is None else self.transformer.dtype
