"""Encoded prompts on disk, so that the 20B text encoder is not loaded for a prompt that was encoded before.

The name of a file is a checksum of everything that its content depends on: the prompt, the date, the files of the
encoder and of the tokenizer, the selected layers, the dtype, the kind of device and the libraries. A file that is
damaged or has other content counts as missing and is replaced.
"""

from __future__ import annotations

import hashlib
import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from converter.checkpoint.source import Checkpoint
from converter.checkpoint.writer import write_error
from converter.errors import OutputError
from converter.models.lens.features import PromptFeatures

_MASK = "mask"
#: Version of the content of a file; a new one gives new names.
_FORMAT = 1


class FeatureCache:
    """A folder of features.

    Args:
        folder: created when features are kept.
        identity: everything but the prompt that features depend on, as JSON values.
        layers: number of tensors of a prompt.
        width: channels of each.

    Raises:
        OutputError: the path of the folder is a file.
    """

    def __init__(self, folder: Path, identity: dict[str, Any], *, layers: int, width: int) -> None:
        if folder.exists() and not folder.is_dir():
            raise OutputError(f"{folder}: is not a folder, which --features needs")
        self.folder = folder
        self._identity = identity
        self._layers = layers
        self._width = width

    def find(self, prompt: str) -> PromptFeatures | None:
        """Return the features of a prompt, if their file exists and is valid."""
        try:
            tensors = load_file(self._file(prompt))
        except (OSError, SafetensorError):
            return None
        names = [str(index) for index in range(self._layers)]
        if tensors.keys() != {*names, _MASK}:
            return None
        mask, embeds = tensors[_MASK], tuple(tensors[name] for name in names)
        shape = (1, mask.shape[-1], self._width)
        if mask.dtype != torch.bool or mask.shape != shape[:2]:
            return None
        if not all(embed.shape == shape and bool(embed.isfinite().all()) for embed in embeds):
            return None
        return PromptFeatures(embeds, mask)

    def keep(self, prompt: str, features: PromptFeatures) -> None:
        """Write the features of one prompt to a file, whole or not at all.

        Raises:
            OutputError: it cannot be written.
            DiskError: the disk is full.
        """
        file = self._file(prompt)
        draft = file.with_name(f".{file.name}.{os.getpid()}")
        tensors = {str(index): embed.cpu().contiguous() for index, embed in enumerate(features.embeds)}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                draft.write_bytes(save({**tensors, _MASK: features.mask.cpu()}))
                draft.replace(file)
            finally:
                draft.unlink(missing_ok=True)
        except OSError as error:
            raise write_error(file, error) from error

    def _file(self, prompt: str) -> Path:
        content = json.dumps([_FORMAT, self._identity, prompt], sort_keys=True)
        return self.folder / f"{hashlib.sha256(content.encode()).hexdigest()}.safetensors"


def encoder_identity(encoder: Checkpoint, tokenizer: Path, **choices: Any) -> dict[str, Any]:
    """Return everything that features depend on, except the prompt.

    Weights are identified by their headers, sizes and times; reading 14 GB would take longer than encoding.

    Args:
        encoder: the text encoder's files.
        tokenizer: its folder.
        choices: what the caller chooses: the layers, the date, the dtype, the device.
    """
    return {
        "config": encoder.config,
        "weights": [[header.sha256, header.file_bytes, header.file.stat().st_mtime_ns] for header in encoder.headers],
        "tokenizer": {
            file.name: hashlib.sha256(file.read_bytes()).hexdigest()
            for file in sorted(tokenizer.iterdir())
            if file.is_file()
        },
        "transformers": version("transformers"),
        "torch": version("torch"),
        **choices,
    }
