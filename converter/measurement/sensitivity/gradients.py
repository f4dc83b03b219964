"""Harm by gradients: what small changes of each weight would do to the denoiser's output, for all of them at once.

A change ``dW`` of a weight changes the output by ``J dW``, to first order. For a random direction ``r`` of the output,
with independent normal numbers, one backward pass gives ``g = d(r·v)/dW``, and ``<g, dW> = r·(J dW)``. The mean of its
square over directions is the squared norm of ``J dW``: without bias, and with all terms that numbers of one weight
have in common. Divided by the squared norm of the output ``v``, it estimates the squared relative error.

What is not in it: effects of higher order; and what int8 matmul does to the inputs of a layer. Rounding in bfloat16
does not disturb it as it disturbs measured harms: on the trained model of `synth --preset signs`, harms by gradients in
bfloat16 have the ranks of harms measured in float32 (Spearman 0.99, 4 directions for each of 24 calls).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from converter.console import SILENT, Reporter, readable_size
from converter.errors import ImageError, MemoryLimitError, UsageError, printable
from converter.measurement.generation.loading import blaming
from converter.measurement.sensitivity.calls import Call, compare, repeat
from converter.measurement.sensitivity.loaded import LoadedOriginal
from converter.measurement.sensitivity.parts import read_parts, restore
from converter.measurement.sensitivity.storage import Storage
from converter.memory import free_memory_bytes
from converter.models.classes import TORCH_DTYPES
from converter.models.empty import build_empty_model

#: Bytes that dot products take for each number of a weight besides its gradient: the change, the gradient and their
#: product, in float32.
_DOT_BYTES = 12
_LESS = "Use fewer or smaller images, gradient checkpointing, or harms by inputs, which need no gradients."


#: Harms by the tensor's name in the source, and the key of the storage.
Harms = Mapping[tuple[str, str], float]


def estimate_harms(
    loaded: LoadedOriginal,
    calls: Sequence[Call],
    storages: Iterable[Storage],
    spool: Path,
    *,
    probes: int = 4,
    seed: int = 0,
    checkpointing: bool = False,
    kept_bytes: int = 1 << 30,
    finished: Mapping[int, Harms] = MappingProxyType({}),
    note: Callable[[int, Harms], object] = lambda *_: None,
    reporter: Reporter = SILENT,
) -> dict[tuple[str, str], float]:
    """Estimate the harm of each way of storing a tensor, with one backward pass for each call and direction.

    Gradients have the dtype of the weights. They are freed once they are used, so the largest one counts, and what the
    denoiser keeps for the backward pass; that is not known before. Products are computed in float32 and added up in
    float64.

    Args:
        loaded: the original, unchanged.
        calls: recorded ones.
        storages: the candidates, each of any tensor of the denoiser.
        spool: folder with the parts of quantized weights.
        probes: random directions for each call; they share its forward pass.
        seed: of the first call's directions, which are drawn on the CPU; each call has the seed after that.
        checkpointing: whether blocks are computed again in the backward pass, which needs less memory.
        kept_bytes: bytes of changes that stay in memory; others are restored in each pass.
        finished: harms of single calls, by number, from an earlier run with the same calls, directions and seed; a call
            that lacks one is repeated.
        note: is called with the number and the harms of each call.
        reporter: shows progress.

    Returns:
        The mean over all calls and directions of the estimated squared relative error.

    Raises:
        UsageError: the denoiser does not offer checkpointing.
        MissingInput: the parts of a weight were not spooled.
        MalformedCheckpoint: they are not what the storage says.
        ImageError: a number is not finite, or the original's output is zero.
        UnsupportedCheckpoint: the denoiser cannot be differentiated.
        MemoryLimitError: there is not enough memory.
    """
    wanted = list(storages)
    keys = {(storage.source, storage.key) for storage in wanted}
    found = {number: finished[number] for number in range(len(calls)) if keys <= finished.get(number, {}).keys()}
    missing = [number for number in range(len(calls)) if number not in found]
    with reporter.progress("differentiating", len(missing) * probes, "passes") as shown:

        def passed() -> None:
            shown.advance(1)
            shown.refresh()

        if missing:
            gradients = Gradients(
                loaded, wanted, spool, probes=probes, checkpointing=checkpointing, kept_bytes=kept_bytes
            )
        for number in missing:
            found[number] = gradients.harms(calls[number], seed + number, passed)
            note(number, found[number])
    return mean_harms(keys, [found[number] for number in range(len(calls))])


def mean_harms(keys: Iterable[tuple[str, str]], calls: Sequence[Harms]) -> dict[tuple[str, str], float]:
    """The mean of harms in single calls, sorted by what they are of."""
    return {key: math.fsum(harms[key] for harms in calls) / len(calls) for key in sorted(keys)}


class Gradients:
    """Estimates harms in one call after the other; arguments are those of ``estimate_harms``.

    Raises:
        MemoryLimitError: the largest gradient does not fit.
    """

    def __init__(
        self,
        loaded: LoadedOriginal,
        storages: Iterable[Storage],
        spool: Path,
        *,
        probes: int,
        checkpointing: bool,
        kept_bytes: int = 1 << 30,
    ) -> None:
        self._loaded = loaded
        self._probes = probes
        self._checkpointing = checkpointing
        self._changes = _Changes(loaded, storages, spool, kept_bytes)
        _require_memory(self._changes.parameters, loaded.device)

    def harms(self, call: Call, seed: int, passed: Callable[[], object] = lambda: None) -> dict[tuple[str, str], float]:
        """The harm of each candidate in one call.

        Args:
            call: a recorded one.
            seed: of the directions. Each call has its own, so that a run that continues draws the same ones.
            passed: called after each backward pass.

        Raises: as ``estimate_harms``.
        """
        loaded, changes = self._loaded, self._changes
        sums = dict.fromkeys(changes.keys, 0.0)
        generator = torch.Generator().manual_seed(seed)
        with (
            _blaming_memory(),
            blaming(loaded.repo.folder),
            _differentiating(loaded.denoiser, changes.parameters, checkpointing=self._checkpointing),
        ):
            for dots in _passes(loaded, call, changes, self._probes, generator):
                for key, dot in dots.items():
                    sums[key] += _finite(dot, key, call)
                passed()
        return {key: total / self._probes for key, total in sums.items()}


def _finite(dot: float, key: tuple[str, str], call: Call) -> float:
    if not math.isfinite(dot):
        raise ImageError(
            f"{key[0]}: its gradient in prompt {printable(call.prompt)}, step {call.step}, is not finite",
            "Compute in another --dtype, or use harms by inputs, which need no gradients.",
        )
    return dot


class _Changes:
    """What candidates change in the weights of a denoiser."""

    def __init__(self, loaded: LoadedOriginal, storages: Iterable[Storage], spool: Path, kept_bytes: int) -> None:
        names = {source: name for name, source in build_empty_model(loaded.checkpoint).sources.items()}
        self._candidates: dict[str, dict[str, Storage]] = {}
        for storage in storages:
            self._candidates.setdefault(names[storage.source], {})[storage.key] = storage
        self.parameters: dict[str, Any] = {name: loaded.denoiser.get_parameter(name) for name in self._candidates}
        self._spool = spool
        self._kept: dict[tuple[str, str], torch.Tensor] = {}
        self._room = kept_bytes

    @property
    def keys(self) -> set[tuple[str, str]]:
        """The tensor's name in the source, and the key of the storage, of each candidate."""
        return {(found.source, key) for storages in self._candidates.values() for key, found in storages.items()}

    def dots(self, name: str, gradient: torch.Tensor) -> Iterator[tuple[tuple[str, str], torch.Tensor]]:
        """The product of a gradient and the change of each candidate, float64, by ``keys``."""
        numbers = gradient.float()
        for key, storage in self._candidates[name].items():
            product = numbers * self._change(name, storage)
            yield (storage.source, key), product.sum(dtype=torch.float64)

    def _change(self, name: str, storage: Storage) -> torch.Tensor:
        """The restored weight less that of the original, float32, where that is."""
        found = self._kept.get((name, storage.key))
        if found is not None:
            return found
        weight = self.parameters[name].detach()
        if storage.quantized is None:
            restored = weight.to(TORCH_DTYPES[storage.parts[""].dtype])
        else:
            parts = {part: tensor.to(weight.device) for part, tensor in read_parts(storage, self._spool).items()}
            restored = restore(storage, parts)
        change = restored.float() - weight.float()
        if change.nbytes <= self._room:
            self._room -= change.nbytes
            self._kept[name, storage.key] = change
        return change


def _passes(
    loaded: LoadedOriginal, call: Call, changes: _Changes, probes: int, generator: torch.Generator
) -> Iterator[dict[tuple[str, str], float]]:
    """Repeat a call, and differentiate its output in random directions.

    Yields:
        For each direction, the squared products of gradients and changes by the squared norm of the output.
    """
    dots: dict[tuple[str, str], torch.Tensor] = {}

    def hook_of(name: str) -> Callable[[Any], None]:
        def hook(parameter: Any) -> None:
            gradient, parameter.grad = parameter.grad, None
            dots.update(changes.dots(name, gradient))

        return hook

    with ExitStack() as hooks:
        for name, parameter in changes.parameters.items():
            hooks.callback(parameter.register_post_accumulate_grad_hook(hook_of(name)).remove)
        output = repeat(loaded.denoiser, call, loaded.device)
        found = compare(output, call)
        if found.reference == 0:
            raise ImageError(f"prompt {printable(call.prompt)}, step {call.step}: the denoiser's output is zero")
        for probe in range(probes):
            # On the CPU, so that a seed means the same on every device.
            directions = [torch.randn(part.shape, generator=generator).to(part) for part in output]
            torch.autograd.backward(output, directions, retain_graph=probe < probes - 1)
            yield {key: float(dot) ** 2 / found.reference for key, dot in dots.items()}


@contextmanager
def _differentiating(denoiser: Any, parameters: Mapping[str, Any], *, checkpointing: bool) -> Iterator[None]:
    """Let only these parameters of a denoiser have gradients, inside the block.

    Raises:
        UsageError: it does not offer checkpointing.
    """
    if checkpointing and not getattr(denoiser, "_supports_gradient_checkpointing", False):
        raise UsageError(f"{type(denoiser).__name__} does not offer gradient checkpointing")
    before = {name: parameter.requires_grad for name, parameter in denoiser.named_parameters()}
    try:
        for name, parameter in denoiser.named_parameters():
            parameter.requires_grad_(name in parameters)
        if checkpointing:
            denoiser.enable_gradient_checkpointing()
        with torch.enable_grad():
            yield
    finally:
        if checkpointing:
            denoiser.disable_gradient_checkpointing()
        for name, parameter in denoiser.named_parameters():
            parameter.requires_grad_(before[name])
            parameter.grad = None


def _require_memory(parameters: Mapping[str, Any], device: torch.device) -> None:
    """Refuse to begin where the largest gradient does not fit; activations are not known, and not counted.

    Raises:
        MemoryLimitError: it does not fit.
    """
    sizes = (parameter.numel() * (parameter.element_size() + _DOT_BYTES) for parameter in parameters.values())
    needed = max(sizes, default=0)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory_bytes()
    if needed > free:
        reason = f"gradients take at least {readable_size(needed)} more memory, but only {readable_size(free)} are free"
        raise MemoryLimitError(reason, _LESS)


@contextmanager
def _blaming_memory() -> Iterator[None]:
    """Say what needs less memory where a backward pass has used it up."""
    try:
        yield
    except MemoryLimitError as error:
        raise MemoryLimitError(f"gradients: {error.message}", _LESS) from error
