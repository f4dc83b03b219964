"""The first stage of drawing: all prompts are encoded, then the text encoder is gone."""

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
from converter.measurement.generation.loading import blaming, encoder_unpacks, load_text_encoder, load_tokenizer
from converter.measurement.generation.repo import PipelineRepo
from converter.models.lens.features import PromptFeatures, encode_prompts
from converter.models.lens.layout import LensConfig


@dataclass(frozen=True)
class PromptStage:
    """Encodes prompts with the text encoder of a repo, and remembers them on disk where it is asked to."""

    repo: PipelineRepo
    dtype: str
    """torch's name for it."""
    date: str
    """Day that the encoder is told."""
    device: torch.device
    offload: str = "none"
    folder: Path | None = None
    """Where features are kept; None keeps none."""

    def find(self, prompts: Sequence[str]) -> dict[str, PromptFeatures]:
        """The prompts that were kept before, and their features."""
        found = {prompt: self._cache.find(prompt) for prompt in prompts} if self._cache else {}
        return {prompt: features for prompt, features in found.items() if features is not None}

    def encode(self, prompts: Sequence[str]) -> dict[str, PromptFeatures]:
        """Load the text encoder, encode each prompt by itself, and drop the encoder.

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
        place = torch.device("cpu") if offloads else self.device
        encoder = load_text_encoder(self.repo, self._dtype, place, unpacks=self.unpacks)
        if offloads:
            cpu_offload(encoder, self.device)
        encoder.set_selected_layers(self._config.selected_layer_index)
        encoded = {}
        for prompt in prompts:
            with blaming(self.repo.text_encoder.folder):
                features = encode_prompts(
                    tokenizer, encoder, [prompt], day=date.fromisoformat(self.date), device=self.device
                ).to(torch.device("cpu"), self._dtype)
            if self._cache:
                self._cache.keep(prompt, features)
            encoded[prompt] = features
        del encoder
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return encoded

    @property
    def unpacks(self) -> bool:
        """Whether the encoder comes in MXFP4 and is unpacked."""
        return encoder_unpacks(self.repo, self.offload)

    @property
    def _dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

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
            date=self.date,
            dtype=self.dtype,
            device=self.device.type,
            unpacks=self.unpacks,
        )
        layers = len(self._config.selected_layer_index)
        return FeatureCache(self.folder, identity, layers=layers, width=self._config.enc_hidden_dim)
