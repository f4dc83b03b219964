"""How far a quantized model's velocity is from the original's on the same latents, step by step.

The final images of two models drift apart: each step begins where the last one ended, so small errors add up. Here each
step of both models begins at the same latents, those of the original's own trajectory, with the original's features of
the prompt. What differs is what quantization does in that step.

The velocity is what the scheduler gets: after guidance. Both models run in their pipelines, so offloading, compiled
blocks and quantized layers work as they do for an image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from converter.errors import ImageError
from converter.models.lens.block_states import SHOWN_TOKENS, watching_blocks

#: What ``encode_prompt`` returns, as arguments of the pipeline.
FEATURES = ("prompt_embeds", "prompt_mask", "negative_prompt_embeds", "negative_prompt_mask")
METHOD = (
    "relative error of the velocity: the norm of the difference between both models' velocities by the norm of the "
    "original's, in float64, where the velocity is what the scheduler gets, after guidance; in every step both models "
    "get the latents of the original's own trajectory and the original's features of the prompt, so errors of earlier "
    "steps do not count; mean_error and max_error: over all steps of all prompts"
)
BLOCKS_METHOD = (
    f"; blocks: the same for the image's hidden states after a block, at {SHOWN_TOKENS} evenly spaced tokens, in the "
    "first, the middle and the last step together"
)


@dataclass(frozen=True)
class Step:
    """One step of the original, on the CPU."""

    sigma: float
    """The noise level, from 1 to 0."""
    latents: torch.Tensor
    """Before the step, ``[batch, tokens, channels]``."""
    velocity: torch.Tensor
    """What the scheduler got, of the same shape."""
    blocks: tuple[torch.Tensor, ...] = ()
    """The image's hidden states after each block, ``[batch, rows, width]``; empty where they were not asked for."""


@dataclass
class Trace:
    """The trajectory of one image of the original."""

    features: dict[str, Any] = field(default_factory=dict)
    """Those of ``FEATURES`` that are not None, on the CPU."""
    steps: list[Step] = field(default_factory=list)


@dataclass(frozen=True)
class Difference:
    """How far two tensors are from each other; differences can be added up."""

    error: float
    """Sum of the squares of the difference."""
    reference: float
    """Sum of the original's squares."""

    @property
    def relative(self) -> float:
        """The norm of the difference by the norm of the original.

        Raises:
            ImageError: the original's norm is zero, or a number is not finite.
        """
        if not (math.isfinite(self.error) and math.isfinite(self.reference)):
            raise ImageError("a velocity is not finite")
        if self.reference == 0:
            raise ImageError("the original's velocity is zero")
        return math.sqrt(self.error / self.reference)

    def __add__(self, other: Difference) -> Difference:
        return Difference(self.error + other.error, self.reference + other.reference)


@dataclass(frozen=True)
class StepError:
    """What quantization changes in one step."""

    step: int
    sigma: float
    error: float
    """The relative error of the velocity."""


@dataclass(frozen=True)
class TrajectoryErrors:
    """What quantization changes along one trajectory of the original."""

    steps: tuple[StepError, ...]
    blocks: tuple[float, ...]
    """Relative errors after each block; empty where they were not asked for."""


@contextmanager
def recording(pipeline: Any, *, blocks: Sequence[int] = ()) -> Iterator[Trace]:
    """Record the trajectory of the image that a pipeline draws inside the block.

    Args:
        pipeline: the original; it works as always.
        blocks: the steps after whose blocks hidden states are recorded.

    Yields:
        The trace, which is filled while the pipeline draws.
    """
    trace, states = Trace(), list[torch.Tensor]()
    encode, advance = pipeline.encode_prompt, pipeline.scheduler.step

    def encode_prompt(*arguments: Any, **options: Any) -> Any:
        found = encode(*arguments, **options)
        trace.features = {
            name: _on_cpu(value) for name, value in zip(FEATURES, found, strict=True) if value is not None
        }
        return found

    def step(velocity: torch.Tensor, timestep: Any, latents: torch.Tensor, **options: Any) -> Any:
        kept = tuple(states) if len(trace.steps) in blocks else ()
        states.clear()
        trace.steps.append(Step(float(timestep) / 1000, _on_cpu(latents), _on_cpu(velocity), kept))
        return advance(velocity, timestep, latents, **options)

    with (
        _replaced(pipeline, encode_prompt=encode_prompt),
        _replaced(pipeline.scheduler, step=step),
        watching_blocks(pipeline.transformer, states.append) if blocks else nullcontext(),
    ):
        yield trace


def replay(pipeline: Any, trace: Trace, **options: Any) -> TrajectoryErrors:
    """Let another pipeline take each step from the latents of a trace: one call of its transformer for each.

    Args:
        pipeline: the quantized one.
        trace: of the original.
        options: of the pipeline, as the trace was recorded: size, steps and guidance.

    Raises:
        ImageError: a velocity of the original is zero, or one of either is not finite.
        ValueError: the trace does not fit the pipeline or the options.
    """
    found, states = list[Difference](), list[torch.Tensor]()
    blocks: list[Difference] = []

    def step(velocity: torch.Tensor, _timestep: Any, latents: torch.Tensor, **_options: Any) -> Any:
        expected = trace.steps[len(found)]
        found.append(difference(velocity, expected.velocity))
        if expected.blocks:
            pairs = zip(states, expected.blocks, strict=True)
            after = [difference(*pair) for pair in pairs]
            blocks[:] = map(Difference.__add__, blocks, after) if blocks else after
        states.clear()
        following = trace.steps[len(found) :][:1]
        return (following[0].latents.to(latents) if following else latents,)

    with (
        _replaced(pipeline.scheduler, step=step),
        watching_blocks(pipeline.transformer, states.append)
        if any(known.blocks for known in trace.steps)
        else nullcontext(),
    ):
        pipeline(**trace.features, **options, latents=trace.steps[0].latents, output_type="latent")
    if len(found) != len(trace.steps):
        raise ValueError(f"the trace has {len(trace.steps)} steps, and the pipeline took {len(found)}")
    steps = (
        StepError(number, known.sigma, error.relative)
        for number, (known, error) in enumerate(zip(trace.steps, found, strict=True))
    )
    return TrajectoryErrors(tuple(steps), tuple(error.relative for error in blocks))


def trajectory_errors(original: Any, quantized: Any, prompt: str, **options: Any) -> TrajectoryErrors:
    """Measure the error of a quantized pipeline in each step of the original's trajectory.

    Args:
        original: a pipeline.
        quantized: another one, with a transformer of the same architecture.
        prompt: what the original draws.
        options: of the original's call, such as ``generator``; the quantized pipeline gets all of
            them but the prompts, the generator and the latents.

    Raises: as ``replay``.
    """
    with recording(original) as trace:
        original(prompt, **options, output_type="latent")
    for name in ("negative_prompt", "generator", "latents"):
        options.pop(name, None)
    return replay(quantized, trace, **options)


def difference(candidate: torch.Tensor, reference: torch.Tensor) -> Difference:
    """Compare two tensors of one shape, in float64 on the CPU."""
    found, expected = (tensor.detach().to("cpu", torch.float64) for tensor in (candidate, reference))
    return Difference(*(float(torch.linalg.vector_norm(tensor)) ** 2 for tensor in (found - expected, expected)))


def block_steps(steps: int) -> tuple[int, ...]:
    """Return the steps whose blocks are compared: the first, the middle and the last."""
    return tuple(sorted({0, steps // 2, steps - 1}))


@contextmanager
def _replaced(owner: Any, **methods: Any) -> Iterator[None]:
    """Replace methods of one object."""
    for name, method in methods.items():
        object.__setattr__(owner, name, method)
    try:
        yield
    finally:
        for name in methods:
            object.__delattr__(owner, name)


def _on_cpu(value: Any) -> Any:
    """Copy a tensor, or each of a list, to the CPU."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    return [_on_cpu(item) for item in value]
