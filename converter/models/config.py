"""The class and config of a checkpoint: what its ``config.json`` says, or what its tensors show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from converter.checkpoint.source import Checkpoint
from converter.models.lens.layout import CLASS_NAME, UNSEEN_FIELDS, infer_config


@dataclass(frozen=True)
class ModelConfig:
    """A class and the config to build it from."""

    class_name: str
    """Empty when neither config nor tensors show it."""
    content: Mapping[str, Any]
    """The values of ``config.json``."""
    assumed: Mapping[str, Any] = field(default_factory=dict)
    """The part of the content that was assumed; empty where ``config.json`` names a class."""


def model_config(checkpoint: Checkpoint) -> ModelConfig:
    """The class and config of a checkpoint.

    Where ``config.json`` is missing or names no class, a Lens transformer is recognised by its tensors. Its tensors
    do not show every value of its config; the others are assumed to be those of microsoft/Lens.
    """
    if checkpoint.class_name:
        return ModelConfig(checkpoint.class_name, checkpoint.config)
    inferred = infer_config(checkpoint.shapes)
    if inferred is None:
        return ModelConfig("", checkpoint.config)
    content = {"_class_name": CLASS_NAME, **inferred.to_dict()}
    return ModelConfig(CLASS_NAME, content, {name: content[name] for name in ("_class_name", *UNSEEN_FIELDS)})
