"""What a pipeline consists of: one value for each, without its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from converter.synthesis.models import ModelKind


@dataclass(frozen=True)
class Model:
    """A component with weights."""

    name: str
    """Of the component and its folder."""
    kind: ModelKind
    config: Mapping[str, Any]
    """What the class gets; all else is its default."""
    dtype: str = "F32"
    """Of its tensors of floating point numbers. Denoisers are in F32, so that a conversion begins with all digits. Text
    encoders are in BF16 where the real repo has that and the pipeline casts what they say; elsewhere a pipeline with
    two dtypes could not draw as it is, and they are in F32, too."""


@dataclass(frozen=True)
class Tokenizer:
    """A component that makes tokens of a prompt."""

    name: str
    class_name: str
    """As the pipeline's index names it."""
    build: Callable[[], Any]


@dataclass(frozen=True)
class Pipeline:
    """A pipeline's components and settings."""

    class_name: str
    models: tuple[Model, ...]
    tokenizers: tuple[Tokenizer, ...]
    scheduler: str
    """Name of its class."""
    scheduler_config: Mapping[str, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What else is in the pipeline's index: its options, and components that it lacks as ``[None, None]``."""
