"""The first stage of an image: encode all prompts, then release the text encoder."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path

import torch
from accelerate import cpu_offload

from converter.measurement.generation.feature_cache import FeatureCache, encoder_identity
from converter.measurement.generation.loading import blaming, encoder_unpacking, load_text_encoder, load_tokenizer
from converter.measurement.generation.repo import PipelineRepo
from converter.measurement.generation.settings import Settings
from converter.models.lens.features import PromptFeatures, encode_prompts
from converter.models.lens.layout import LensConfig


@dataclass(frozen=True)
class PromptStage:
    """Encodes the prompts of an image, and keeps their features in files if it is asked to."""

    repo: PipelineRepo
    settings: Settings
    device: torch.device
    offload: str = "none"
    folder: Path | None = None
    """Where features are kept; None to keep none."""

    def find(self, prompts: Sequence[str]) -> dict[str, PromptFeatures]:
        """Find the features of prompts that were kept before, by prompt."""
        found = {prompt: self._cache.find(prompt) for prompt in prompts} if self._cache else {}
        return {prompt: features for prompt, features in found.items() if features is not None}

    def encode(self, prompts: Sequence[str]) -> dict[str, PromptFeatures]:
        """Load the text encoder, encode each prompt by itself, and release the encoder.

        Returns:
            Features of a batch of one on the CPU, by prompt.

        Raises:
            UnsupportedCheckpoint: the tokenizer or the encoder cannot be used.
            MalformedCheckpoint: tensors are missing.
            MemoryLimitError: there is not enough memory.
            OutputError: features cannot be kept.
        """
        tokenizer = load_tokenizer(self.repo)
        offloads = self.offload == "sequential" and self.device.type != "cpu"
        dtype: torch.dtype = getattr(torch, self.settings.dtype)
        loaded_on = torch.device("cpu") if offloads else self.device
        encoder = load_text_encoder(self.repo, dtype, loaded_on, unpacks=self.unpacks)
        if offloads:
            cpu_offload(encoder, self.device)
        encoder.set_selected_layers(self._config.selected_layer_index)
        encoded = {}
        for prompt in prompts:
            with blaming(self.repo.text_encoder.folder):
                day = date.fromisoformat(self.settings.date)
                features = encode_prompts(tokenizer, encoder, [prompt], day=day, device=self.device)
            features = features.to(torch.device("cpu"), dtype)
            if self._cache:
                self._cache.keep(prompt, features)
            encoded[prompt] = features
        del encoder
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return encoded

    @cached_property
    def unpacking(self) -> str:
        """Why the encoder is unpacked; empty if it is not. It is found out once, since what is kept depends on it."""
        return encoder_unpacking(self.repo, self.offload, self.device)

    @property
    def unpacks(self) -> bool:
        """Whether the encoder is stored in MXFP4 and is unpacked."""
        return bool(self.unpacking)

    @property
    def _config(self) -> LensConfig:
        return LensConfig.from_dict(self.repo.transformer.config)

    @cached_property
    def _cache(self) -> FeatureCache | None:
        if self.folder is None:
            return None
        identity = encoder_identity(
            self.repo.text_encoder,
            self.repo.folder / "tokenizer",
            layers=self._config.selected_layer_index,
            date=self.settings.date,
            dtype=self.settings.dtype,
            device=self.device.type,
            unpacks=self.unpacks,
        )
        layers = len(self._config.selected_layer_index)
        return FeatureCache(self.folder, identity, layers=layers, width=self._config.enc_hidden_dim)
