"""The calls of a denoiser: recorded while the original draws, and repeated with other weights.

A call is what the pipeline passes to the denoiser and what that returns, before guidance. Nothing of the pipeline or
its scheduler takes part when it is repeated, so any difference is one of the denoiser.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from converter.errors import ImageError, UnsupportedCheckpoint, printable
from converter.measurement.benchmark.repos import ImageSettings
from converter.measurement.comparison.trajectory import Difference, difference
from converter.measurement.sensitivity.loaded import LoadedOriginal
from converter.measurement.sensitivity.trees import change_tensors, numbers_in, tensors_in

#: What `ablate` and `search` say of the figures that ``replay`` gives.
METHOD = (
    "relative error of the denoiser's output: the norm of the difference between both outputs by the norm of the "
    "original's, in float64, for each recorded call of the denoiser with the original's own input, before guidance"
)


@dataclass(frozen=True)
class Call:
    """One call of the denoiser; tensors are on the CPU."""

    prompt: str
    """Key of the prompt."""
    step: int
    """Number of the denoising step, from 0. Pipelines that guide with two calls have two of one step."""
    arguments: tuple[Any, ...]
    options: Mapping[str, Any]
    """Its keyword arguments."""
    output: tuple[torch.Tensor, ...]
    """What it returned, without what are no floats: in most models one tensor."""


@dataclass
class TensorStore:
    """Keeps tensors on the CPU, equal ones once."""

    tensors: dict[tuple[Any, ...], torch.Tensor] = field(default_factory=dict)

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a contiguous copy of a tensor, or the one that was kept before."""
        # A tensor of one number may have any strides, and count as contiguous.
        copy = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        content = hashlib.sha256(copy.reshape(-1).view(torch.uint8).numpy()).digest()
        return self.tensors.setdefault((content, copy.dtype, copy.shape), copy)


def record_calls(loaded: LoadedOriginal, prompts: Mapping[str, ImageSettings], count: int) -> list[Call]:
    """Draw an image of each prompt, and record some of the denoiser's calls.

    Args:
        loaded: the original, unchanged.
        prompts: settings of the images, by the keys of their prompts.
        count: how many steps of each prompt are recorded, evenly chosen from those that call the denoiser; all where
            there are not more. All calls of a chosen step are.

    Raises:
        ImageError: a number in a call is not finite.
        UnsupportedCheckpoint: the denoiser has arguments that cannot be recorded, or is not called.

    Raises also what ``LoadedOriginal.draw`` raises.
    """
    store, chosen = TensorStore(), list[Call]()
    for key, settings in prompts.items():
        # Only what is chosen stays in memory.
        found = _choose(_record_prompt(loaded, key, settings), count)
        if not found:
            raise UnsupportedCheckpoint(f"{loaded.repo.folder}: drawing does not call {loaded.component}")
        chosen += [_kept(call, store) for call in found]
    return chosen


def replay(denoiser: torch.nn.Module, calls: Sequence[Call], device: torch.device) -> list[Difference]:
    """Repeat calls, and compare what the denoiser returns with what was recorded.

    Args:
        denoiser: with any weights.
        calls: of the original.
        device: where it runs.

    Returns:
        One difference for each call.

    Raises:
        ImageError: a number is not finite.
    """
    with torch.no_grad():
        return [compare(repeat(denoiser, call, device), call) for call in calls]


def repeat(denoiser: torch.nn.Module, call: Call, device: torch.device) -> tuple[torch.Tensor, ...]:
    """Call a denoiser as it was called; return its output as ``Call.output``, where it was computed."""

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        # A copy also on the CPU, as a model may change its input.
        return tensor.to(device, copy=True)

    arguments, options = (change_tensors(tree, moved) for tree in (call.arguments, call.options))
    return tuple(numbers_in(denoiser(*arguments, **options)))


def compare(output: Sequence[torch.Tensor], call: Call) -> Difference:
    """Compare the output of a repeated call with that of the original.

    Raises:
        ImageError: a number is not finite.
    """
    found = Difference(0.0, 0.0)
    for candidate, reference in zip(output, call.output, strict=True):
        found += difference(candidate, reference)
    if not math.isfinite(found.error):
        raise ImageError(f"{_place(call)}: the denoiser computed numbers that are not finite")
    return found


def _record_prompt(loaded: LoadedOriginal, key: str, settings: ImageSettings) -> list[Call]:
    """Draw an image, and record all calls of the denoiser; what several of them share is kept once."""
    calls, store, steps = list[Call](), TensorStore(), list[None]()

    def called(_: Any, arguments: Any, options: Any) -> None:
        # Before the denoiser runs, as it may change its input.
        calls.append(_kept(Call(key, len(steps), arguments, options, ()), store))

    def returned(_: Any, __: Any, output: Any) -> None:
        calls[-1] = _kept(replace(calls[-1], output=tuple(numbers_in(output))), store)

    with ExitStack() as hooks:
        hooks.callback(loaded.denoiser.register_forward_pre_hook(called, with_kwargs=True).remove)
        hooks.callback(loaded.denoiser.register_forward_hook(returned).remove)
        loaded.draw(settings, lambda: steps.append(None))
    return calls


def _choose(calls: Sequence[Call], count: int) -> list[Call]:
    """The calls of evenly chosen steps: the first and the last, and others between; the middle one of a single one."""
    steps = sorted({call.step for call in calls})
    if count < len(steps):
        last = len(steps) - 1
        places = {round(number * last / (count - 1)) for number in range(count)} if count > 1 else {last // 2}
        steps = [steps[place] for place in sorted(places)]
    return [call for call in calls if call.step in steps]


def _kept(call: Call, store: TensorStore) -> Call:
    """A copy of a call.

    Raises:
        ImageError: a number is not finite.
        UnsupportedCheckpoint: it has arguments that cannot be recorded.
    """
    try:
        trees = [change_tensors(tree, store.keep) for tree in (call.arguments, dict(call.options), call.output)]
    except TypeError as error:
        raise UnsupportedCheckpoint(
            f"{_place(call)}: the denoiser is called with {printable(str(error))}, which cannot be recorded"
        ) from error
    copy = Call(call.prompt, call.step, *trees)
    if not all(_is_finite(tensor) for tensor in tensors_in(trees)):
        raise ImageError(
            f"{_place(call)}: the denoiser's input or output is not finite",
            "Check the weights with `lensconv verify`, or compute in another --dtype.",
        )
    return copy


def _is_finite(tensor: torch.Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex()) or bool(tensor.isfinite().all())


def _place(call: Call) -> str:
    return f"prompt {printable(call.prompt)}, step {call.step}"
