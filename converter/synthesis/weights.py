"""Random weights that look like a model's: linears scaled by their fan-in, norms near one; or trained ones.

The numbers of a tensor depend only on the seed and its name, so that a model with fewer layers begins like a deeper
one, and the number of threads does not matter. Where components of a pipeline have tensors of the same names, the
component is a part of the name.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from converter.checkpoint.layout import Layout, TensorSpec
from converter.checkpoint.reader import ranges
from converter.checkpoint.writer import SlotWriter
from converter.console import Progress
from converter.threads import run_in_threads

#: Numbers generated at a time.
PIECE_ELEMENTS = 1 << 20
#: Standard deviation of norm weights around one, and of biases around zero.
SPREAD = 0.02


def write_weights(
    folder: Path,
    specs: tuple[TensorSpec, ...],
    layout: Layout,
    seed: int,
    progress: Progress,
    trained: Mapping[str, np.ndarray] | None = None,
    prefix: str = "",
) -> None:
    """Generate tensors and write them into their slots.

    Args:
        folder: of the component.
        specs: F32, BF16 or I64; the last are zeros.
        layout: where each goes.
        seed: of the numbers.
        progress: counts bytes.
        trained: float32 arrays in place of random numbers.
        prefix: put before the names that the numbers follow from.

    Raises:
        OSError: a file cannot be written.
    """
    workers = len(os.sched_getaffinity(0))
    with SlotWriter(folder, layout) as writer:
        write = partial(
            _write_tensor, writer, layout, seed=seed, progress=progress, trained=trained or {}, prefix=prefix
        )
        run_in_threads(write, specs, workers=workers, name="synth", refresh=progress.refresh)
        writer.sync()


def _write_tensor(
    writer: SlotWriter,
    layout: Layout,
    spec: TensorSpec,
    seed: int,
    progress: Progress,
    trained: Mapping[str, np.ndarray],
    prefix: str,
) -> None:
    slot = layout.slots[spec.name]
    pieces = _pieces_of(trained[spec.name]) if spec.name in trained else _random_pieces(spec, seed, prefix)
    position = slot.offset
    for numbers in pieces:
        data = _encode(numbers, spec.dtype)
        writer.write(slot.file, position, data.data)
        position += data.nbytes
        progress.advance(data.nbytes)


def _pieces_of(numbers: np.ndarray) -> Iterator[np.ndarray]:
    for start, stop in ranges(numbers.size, PIECE_ELEMENTS):
        yield numbers.reshape(-1)[start:stop]


def _random_pieces(spec: TensorSpec, seed: int, prefix: str) -> Iterator[np.ndarray]:
    key = int.from_bytes(hashlib.sha256((prefix + spec.name).encode()).digest()[:8], "little")
    generator = np.random.Generator(np.random.SFC64([seed, key]))
    scale, centre = _distribution(spec)
    for start, stop in ranges(math.prod(spec.shape), PIECE_ELEMENTS):
        numbers = generator.standard_normal(stop - start, dtype=np.float32)
        numbers *= np.float32(scale)
        if centre:
            numbers += np.float32(centre)
        yield numbers


def _distribution(spec: TensorSpec) -> tuple[float, float]:
    """Standard deviation and mean of a tensor's numbers, by its name and shape."""
    parameter = spec.name.rpartition(".")[2]
    # Only norms have weights of one dimension; some of convolutions have more, all but the first of size one.
    if parameter in ("gamma", "running_var") or (parameter == "weight" and len(spec.shape) == 1):
        return SPREAD, 1
    if len(spec.shape) > 1:
        # The dimensions of an expert begin with the inputs, those of a convolution's kernel with the outputs.
        inputs = spec.shape[1] if len(spec.shape) == 3 else math.prod(spec.shape[1:])
        return 1 / math.sqrt(inputs), 0
    return SPREAD, 0


def _encode(numbers: np.ndarray, dtype: str) -> np.ndarray:
    """float32 numbers in the dtype of the file."""
    if dtype == "F32":
        return numbers
    if dtype == "BF16":
        bits = numbers.view(np.uint32)
        # Half of what is cut off, and one more where the last bit that stays is odd: to nearest, ties to even.
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.zeros(numbers.size, np.int64)
