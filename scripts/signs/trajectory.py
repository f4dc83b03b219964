"""The error of a quantized model's velocity along the original's own trajectory, step by step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass
class Trace:
    """What the transformer was given and returned in each step of one batch of prompts."""

    inputs: list[dict[str, Any]] = field(default_factory=list)
    velocities: list[torch.Tensor] = field(default_factory=list)


@contextmanager
def tracing(transformer: torch.nn.Module) -> Iterator[Trace]:
    """Record the calls of a transformer."""
    trace = Trace()

    def note(_module: Any, _positional: Any, inputs: dict[str, Any], output: tuple[torch.Tensor]) -> None:
        trace.inputs.append(dict(inputs))
        trace.velocities.append(output[0].clone())

    handle = transformer.register_forward_hook(note, with_kwargs=True)
    try:
        yield trace
    finally:
        handle.remove()


def velocity_errors(transformer: torch.nn.Module, trace: Trace) -> list[float]:
    """The relative error of each step, over the whole batch, of a transformer that is given what the original was."""
    errors = []
    for inputs, expected in zip(trace.inputs, trace.velocities, strict=True):
        with torch.no_grad():
            found = transformer(**inputs)[0]
        errors.append(float((found - expected).double().norm() / expected.double().norm()))
    return errors
