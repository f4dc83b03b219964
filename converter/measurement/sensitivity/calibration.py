"""The second moments of the inputs of linear layers, gathered from recorded calls into a file for calibrated rounding.

For each layer that is ``H = mean(x·xᵀ)`` over all rows ``x`` of its inputs. All of them together are larger than the
model, so layers are taken in groups whose sums fit in the given memory, and the calls are repeated for each group.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from converter.checkpoint.layout import TensorSpec
from converter.checkpoint.source import Checkpoint
from converter.console import SILENT, Reporter
from converter.conversion.recipe.calibration import FORMAT
from converter.errors import ImageError
from converter.measurement.generation.loading import blaming
from converter.measurement.sensitivity.calls import Call, repeat
from converter.measurement.sensitivity.inputs import GatheredInputs, watching
from converter.measurement.sensitivity.loaded import LoadedOriginal
from converter.measurement.sensitivity.tensor_files import write_tensors

#: Most channels of a block, by default. Wider layers get a block-diagonal matrix, whose size grows linearly.
LIMIT = 4096
#: Rows that are multiplied at a time, in float32; products are added up in float64.
_ROWS = 4096
#: Bytes that a number of a sum takes while it is gathered: in float64, and the product that is added in float32.
_BYTES = 12


@dataclass(frozen=True)
class CalibrationFile:
    """What was written."""

    file: Path
    sha256: str
    passes: int
    """How often the calls were repeated."""
    absent: tuple[str, ...]
    """Modules without second moments: never called, or not linear."""


def write_calibration(
    loaded: LoadedOriginal,
    gathered: GatheredInputs,
    calls: Sequence[Call],
    file: Path,
    *,
    memory: int,
    limit: int = LIMIT,
    reporter: Reporter = SILENT,
) -> CalibrationFile:
    """Gather second moments, and write them to a safetensors file.

    The file has ``PATH.hessian`` for the path of each linear module, in F32: ``[in, in]``; or ``[blocks, size, size]``
    of the blocks on the diagonal, where there are more than ``limit`` channels. The metadata has ``format``,
    ``source`` (a JSON object: sha256 of the header of each weight file of the original) and ``shares`` (a JSON object:
    modules without a tensor of their own, and the module that always got the same inputs).

    Args:
        loaded: the original, unchanged.
        gathered: what ``gather_inputs`` found with the same calls.
        calls: recorded ones.
        file: to be written.
        memory: bytes that sums may take at a time, where the denoiser runs; the largest layer's are taken in any case.
        limit: most channels of a block.
        reporter: is told how often the calls are repeated.

    Raises:
        OutputError: the file cannot be written.
        DiskError: the disk is full.
        MemoryLimitError: memory is used up.
        ImageError: an input is not finite.
    """
    modules = {path: loaded.denoiser.get_submodule(path) for path in gathered.modules if path not in gathered.shares}
    shapes = {
        path: _shape(module.in_features, limit) for path, module in modules.items() if isinstance(module, nn.Linear)
    }
    groups = list(_groups(shapes, memory))
    if len(groups) > 1:
        reporter.note(f"the calls are repeated {len(groups)} times, as the inputs' second moments take much memory")

    def moments() -> Iterator[tuple[str, torch.Tensor]]:
        with reporter.progress("gathering inputs", len(groups) * len(calls), "calls") as shown:
            for group in groups:
                sums = {path: _Moments(shapes[path], loaded.device) for path in group}
                linear = {path: modules[path] for path in group}
                with watching(linear, _adding_to(sums)), torch.no_grad():
                    for call in calls:
                        with blaming(loaded.repo.folder):
                            repeat(loaded.denoiser, call, loaded.device)
                        shown.advance(1)
                        shown.refresh()
                for path in group:
                    yield f"{path}.hessian", sums.pop(path).mean(path)

    written = {path for path in gathered.modules if gathered.shares.get(path, path) in shapes}
    shares = {path: other for path, other in gathered.shares.items() if path in written}
    specs = [TensorSpec(f"{path}.hessian", "F32", shape) for path, shape in shapes.items()]
    metadata = {
        "format": FORMAT,
        "source": json.dumps(source_headers(loaded.checkpoint), sort_keys=True),
        "shares": json.dumps(shares, sort_keys=True),
    }
    checksum = write_tensors(file, specs, moments(), metadata)
    absent = sorted({*gathered.absent, *gathered.modules} - written)
    return CalibrationFile(file, checksum, len(groups), tuple(absent))


def source_headers(checkpoint: Checkpoint) -> dict[str, str]:
    """The sha256 of the header of each weight file of a component, by the file's name."""
    return {header.file.name: header.sha256 for header in checkpoint.headers}


class _Moments:
    """The sum of ``x·xᵀ`` over the inputs of a module so far."""

    def __init__(self, shape: tuple[int, ...], device: torch.device) -> None:
        self._shape = shape
        blocks = shape[0] if len(shape) > 2 else 1
        self._sum = torch.zeros(blocks, *shape[-2:], dtype=torch.float64, device=device)
        self._rows = 0

    def add(self, states: torch.Tensor) -> None:
        blocks, size = self._sum.shape[:2]
        rows = states.flatten(0, -2)
        self._rows += len(rows)
        for chunk in rows.split(_ROWS):
            # [blocks, rows, size]
            parts = chunk.float().unflatten(1, (blocks, size)).transpose(0, 1)
            self._sum += parts.transpose(1, 2) @ parts

    def mean(self, path: str) -> torch.Tensor:
        """H, float32, on the CPU.

        Raises:
            ImageError: an input is not finite.
        """
        found = (self._sum / self._rows).float().cpu().reshape(self._shape)
        if not found.isfinite().all():
            raise ImageError(
                f"{path}: its inputs are not finite, or too large",
                "Check the weights with `lensconv verify`, or compute in another --dtype.",
            )
        return found


def _adding_to(sums: Mapping[str, _Moments]) -> Callable[[str, torch.Tensor, torch.Tensor], None]:
    return lambda path, states, _: sums[path].add(states)


def _shape(channels: int, limit: int) -> tuple[int, ...]:
    """The shape of a module's second moments: with the fewest equal blocks that are small enough."""
    blocks = next(count for count in range(1, channels + 1) if channels % count == 0 and channels // count <= limit)
    size = channels // blocks
    return (size, size) if blocks == 1 else (blocks, size, size)


def _groups(shapes: Mapping[str, tuple[int, ...]], memory: int) -> Iterator[list[str]]:
    """The paths in groups, in their order, each as large as the memory allows."""
    group: list[str] = []
    taken = 0
    for path, shape in shapes.items():
        needed = torch.Size(shape).numel() * _BYTES
        if group and taken + needed > memory:
            yield group
            group, taken = [], 0
        group.append(path)
        taken += needed
    if group:
        yield group
