"""What reaches each module of the original in its recorded calls: how large each input channel is, and the output.

Of an error of weights, that part counts which the input meets: with column noise ``n_j`` (the squared error of channel
``j``, over all outputs) and inputs ``x``, the output's error is ``sum n_j E[x_j^2]`` where channels do not depend on
each other. Divided by the output's energy it is comparable between modules. It ranks; how an error spreads through the
rest of the model is not in it.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from converter.errors import ImageError, UnsupportedCheckpoint, printable
from converter.measurement.generation.loading import blaming
from converter.measurement.sensitivity.calls import Call, repeat
from converter.measurement.sensitivity.loaded import LoadedOriginal
from converter.measurement.sensitivity.parts import read_column_noise
from converter.measurement.sensitivity.storage import Storage
from converter.models.classes import TORCH_DTYPES
from converter.models.empty import build_empty_model

#: Modules whose inputs are gathered; SDNQ quantizes a few others, which no denoiser has.
KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class ModuleInputs:
    """The inputs and outputs of a module in all calls."""

    mean_squares: torch.Tensor
    """Mean of the square of each input channel, float64, on the CPU: ``[in]``. Of a grouped convolution
    ``[in / groups]``, the mean over the groups, as its weight has as many columns."""
    output_energy: float
    """Mean of the squared norm of an output without the bias: of a row of a linear layer, of a place of a
    convolution."""
    rows: int
    """Number of these outputs."""

    def harm(self, column_noise: torch.Tensor, path: str) -> float:
        """The squared error of the output relative to its energy, for an error of the weight.

        It is 0 where the output has no error, also of a module that gets or computes nothing but zeros.

        Args:
            column_noise: the squared error of each input channel, of the shape of ``mean_squares``.
            path: of the module, for the message.

        Raises:
            ImageError: the output has an error, and is zero without it.
        """
        error = float((column_noise.double() * self.mean_squares).sum())
        if error and not self.output_energy:
            raise ImageError(f"{path}: its output is zero in all calls", "Use more prompts, or harms by weights.")
        return error / self.output_energy if error else 0.0


@dataclass(frozen=True)
class GatheredInputs:
    """What reached the modules of a denoiser."""

    modules: dict[str, ModuleInputs]
    """By path."""
    shares: dict[str, str]
    """Modules that always got the same tensor as another one, and the path of that one, which comes first."""
    absent: tuple[str, ...]
    """Paths of modules that were never called, or whose kind is not among ``KINDS``."""


@dataclass
class Sums:
    """Sums over all inputs and outputs of a module so far."""

    squares: torch.Tensor
    places: int = 0
    energy: float = 0.0
    rows: int = 0
    tensors: list[int] = field(default_factory=list)
    """Numbers of the tensors that it got."""

    def add(self, module: Any, states: torch.Tensor, output: torch.Tensor) -> None:
        """Add an input and what the module computes of it."""
        channels_first = states if isinstance(module, nn.Linear) else states.movedim(_channel_axis(module), -1)
        self.squares += channels_first.float().flatten(0, -2).square().sum(0, dtype=torch.float64).cpu()
        self.places += states.numel() // channels_first.shape[-1]
        results = (output if isinstance(module, nn.Linear) else output.movedim(_channel_axis(module), -1)).float()
        if module.bias is not None:
            results = results - module.bias.float()
        self.energy += float(results.square().sum(dtype=torch.float64))
        self.rows += results.numel() // results.shape[-1]

    def result(self, module: Any) -> ModuleInputs:
        """The means."""
        means = self.squares / self.places
        groups = getattr(module, "groups", 1)
        return ModuleInputs(means.reshape(groups, -1).mean(0), self.energy / self.rows, self.rows)


def gather_inputs(loaded: LoadedOriginal, paths: Collection[str], calls: Sequence[Call]) -> GatheredInputs:
    """Repeat the calls of the original, and add up what its modules get.

    Args:
        loaded: the original, unchanged.
        paths: of the denoiser's modules that can be quantized.
        calls: recorded ones.

    Raises:
        ImageError: an input or an output of a module is not finite.
        UnsupportedCheckpoint: the denoiser fails.
        MemoryLimitError: memory is used up.
    """
    modules = {path: module for path in paths if isinstance(module := loaded.denoiser.get_submodule(path), KINDS)}
    sums = {path: Sums(torch.zeros(_channels(module), dtype=torch.float64)) for path, module in modules.items()}
    numbers = TensorNumbers()

    def called(path: str, states: torch.Tensor, output: torch.Tensor) -> None:
        found = sums[path]
        found.add(modules[path], states, output)
        found.tensors.append(numbers.number(states))

    with watching(modules, called), torch.no_grad(), blaming(loaded.repo.folder):
        for call in calls:
            repeat(loaded.denoiser, call, loaded.device)
            _refuse_not_finite(sums, call)
    used = [path for path, found in sums.items() if found.rows]
    first: dict[tuple[Any, ...], str] = {}
    # Only linear modules have second moments, which one of them keeps for all.
    shares = {path: first.setdefault((type(modules[path]), *sums[path].tensors), path) for path in used}
    return GatheredInputs(
        {path: sums[path].result(modules[path]) for path in used},
        {path: other for path, other in shares.items() if path != other},
        tuple(sorted(set(paths) - set(used))),
    )


def harms_by_inputs(
    loaded: LoadedOriginal, calls: Sequence[Call], storages: Iterable[Storage], spool: Path
) -> dict[tuple[str, str], float]:
    """The squared error of each module's own output, by the inputs that it gets; 0 if it is never called.

    Args:
        loaded: the original, unchanged.
        calls: recorded ones.
        storages: of modules.
        spool: folder with the squared errors of the input channels of quantized weights.

    Raises:
        UnsupportedCheckpoint: a module is of another kind than linear layers and convolutions, or the denoiser fails.

    Raises also what ``gather_inputs`` and ``read_column_noise`` raise.
    """
    names = {
        source: name.removesuffix(".weight") for name, source in build_empty_model(loaded.checkpoint).sources.items()
    }
    wanted = list(storages)
    paths = {names[storage.source] for storage in wanted}
    for path in sorted(paths):
        if not isinstance(loaded.denoiser.get_submodule(path), KINDS):
            raise UnsupportedCheckpoint(
                f"{path}: scores by inputs are for linear layers and convolutions", "Use --score gradients."
            )
    gathered = gather_inputs(loaded, paths, calls).modules
    harms = {}
    for storage in wanted:
        path = names[storage.source]
        if storage.quantized is not None:
            noise = read_column_noise(storage, spool)
        else:
            weight = loaded.denoiser.get_submodule(path).weight.detach()
            error = weight.float() - weight.to(TORCH_DTYPES[storage.parts[""].dtype]).float()
            noise = error.square().transpose(0, 1).flatten(1).sum(1).cpu()
        harms[storage.source, storage.key] = gathered[path].harm(noise, path) if path in gathered else 0.0
    return harms


@contextmanager
def watching(modules: dict[str, Any], called: Callable[[str, torch.Tensor, torch.Tensor], object]) -> Iterator[None]:
    """Call a function with the path, the input and the output of each module that runs inside the block."""

    def hook_of(path: str) -> Callable[..., None]:
        def hook(_: Any, arguments: Any, options: Any, output: torch.Tensor) -> None:
            called(path, arguments[0] if arguments else options["input"], output)

        return hook

    hooks = [module.register_forward_hook(hook_of(path), with_kwargs=True) for path, module in modules.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class TensorNumbers:
    """Numbers tensors: the same one has the same number, as long as it lives and is not changed in place.

    A number is forgotten when its tensor is freed, since another one may get its memory.
    """

    def __init__(self) -> None:
        self._known: list[tuple[weakref.ref[Any], int, int]] = []
        self._count = 0

    def number(self, tensor: Any) -> int:
        """The number of a tensor as it is now."""
        self._known = [entry for entry in self._known if entry[0]() is not None]
        changes = tensor._version
        for reference, version, number in self._known:
            if reference() is tensor and version == changes:
                return number
        self._count += 1
        self._known.append((weakref.ref(tensor), changes, self._count))
        return self._count


def _channels(module: Any) -> int:
    return int(module.in_features if isinstance(module, nn.Linear) else module.in_channels)


def _channel_axis(module: Any) -> int:
    """The axis of the channels in the input and output of a convolution, which may lack a batch axis."""
    return -1 - len(module.kernel_size)


def _refuse_not_finite(sums: dict[str, Sums], call: Call) -> None:
    for path, found in sums.items():
        if not (bool(found.squares.isfinite().all()) and math.isfinite(found.energy)):
            raise ImageError(
                f"{path}: its input or output is not finite in prompt {printable(call.prompt)}, step {call.step}",
                "Check the weights with `lensconv verify`, or compute in another --dtype.",
            )
