"""Checkpoints with random weights and the exact layout of real ones, for tests, demos and benchmarks.

Names, shapes, dtype and shards are those of microsoft/Lens; the numbers are drawn so that they look like a model's:
linears scaled by their fan-in, norms near one. A tensor's numbers depend on the seed and its name alone, so that a
model of fewer layers begins like a deeper one, however many threads draw them.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from converter.checkpoint.layout import DEFAULT_SHARD_BYTES, Layout, TensorSpec, lay_out
from converter.checkpoint.reader import ranges
from converter.checkpoint.writer import SlotWriter, write_error
from converter.console import Progress
from converter.conversion.release import CONFIG_NAME, encode_json, write_file
from converter.conversion.staging import Staging
from converter.errors import OutputError, UsageError, printable
from converter.lens.layout import CLASS_NAME, MAXIMUM_LAYERS, LensConfig, lens_family, lens_tensors
from converter.threads import run_in_threads

#: Numbers drawn at a time.
PIECE_ELEMENTS = 1 << 20
#: The version of diffusers that microsoft/Lens was saved with; part of its ``config.json``.
DIFFUSERS_VERSION = "0.37.1"
#: Standard deviation of norm weights around one, and of biases around zero.
SPREAD = 0.02


@dataclass(frozen=True)
class SynthReport:
    """What was written."""

    output: Path
    files: tuple[tuple[str, int], ...]
    """Names and sizes in bytes."""
    tensors: int
    total_bytes: int
    """Of tensor storage."""
    parameters: int
    seed: int
    elapsed_s: float

    def to_dict(self) -> dict[str, Any]:
        """As ``lensconv synth --json`` shows it."""
        return {
            "output": str(self.output),
            "files": [{"name": name, "bytes": size} for name, size in self.files],
            "tensors": self.tensors,
            "total_bytes": self.total_bytes,
            "parameters": self.parameters,
            "seed": self.seed,
            "elapsed_s": self.elapsed_s,
        }


def synthesize(
    output: Path,
    *,
    layers: int | None = None,
    seed: int = 0,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    overwrite: bool = False,
    progress: Callable[[str, int], Progress] = Progress,
) -> SynthReport:
    """Write a Lens transformer in float32 with random weights.

    Args:
        output: the component folder to make; it appears as a whole or not at all.
        layers: blocks; 48, as the real one has, by default.
        seed: of the numbers.
        shard_bytes: a file holds at most so many bytes of tensors.
        overwrite: whether a folder in the output's place may be replaced.
        progress: opens a display for a label and a number of bytes.

    Raises:
        UsageError: the number of layers is out of range.
        OutputError: the output exists or cannot be written.
        DiskError: there is not enough space.
    """
    started = time.monotonic()
    config = LensConfig()
    if layers is not None:
        if not 1 <= layers <= MAXIMUM_LAYERS:
            raise UsageError(f"--layers {layers}: must be between 1 and {MAXIMUM_LAYERS}")
        config = replace(config, num_layers=layers)
    specs = tuple(TensorSpec(name, "F32", shape) for name, shape in lens_tensors(config))
    layout = lay_out(specs, stem="diffusion_pytorch_model", shard_bytes=shard_bytes)
    content = {"_class_name": CLASS_NAME, "_diffusers_version": DIFFUSERS_VERSION, **config.to_dict()}
    staging = Staging(output, {"synth": [config.to_dict(), seed, shard_bytes]}, overwrite=overwrite)
    published = False
    with staging:
        staging.open()
        if staging.is_taken_by_another_command:
            raise OutputError(
                f"{printable(str(output))}: an interrupted conversion is in the way",
                f"Finish it, or delete the folder {printable(staging.folder.name)} beside it.",
            )
        staging.begin("")
        try:
            total = sum(spec.bytes for spec in specs)
            with progress("drawing", total) as shown:
                _write_weights(staging.release, specs, layout, seed, shown)
            write_file(staging.release, CONFIG_NAME, encode_json(content))
            if layout.index:
                write_file(staging.release, layout.index_name, layout.index)
            staging.publish()
            published = True
        except OSError as error:
            raise write_error(output, error) from error
        finally:
            if not published:
                staging.discard()
    return SynthReport(
        output=output,
        files=tuple((file.name, file.total_bytes) for file in layout.files),
        tensors=len(specs),
        total_bytes=total,
        parameters=sum(math.prod(spec.shape) for spec in specs),
        seed=seed,
        elapsed_s=time.monotonic() - started,
    )


def _write_weights(folder: Path, specs: tuple[TensorSpec, ...], layout: Layout, seed: int, progress: Progress) -> None:
    workers = len(os.sched_getaffinity(0))
    with SlotWriter(folder, layout) as writer:
        write = partial(_write_tensor, writer, layout, seed=seed, progress=progress)
        run_in_threads(write, specs, workers=workers, name="synth", refresh=progress.refresh)
        writer.sync()


def _write_tensor(writer: SlotWriter, layout: Layout, spec: TensorSpec, seed: int, progress: Progress) -> None:
    key = int.from_bytes(hashlib.sha256(spec.name.encode()).digest()[:8], "little")
    generator = np.random.Generator(np.random.SFC64([seed, key]))
    slot = layout.slots[spec.name]
    for start, stop in ranges(math.prod(spec.shape), PIECE_ELEMENTS):
        numbers = generator.standard_normal(stop - start, dtype=np.float32)
        if len(spec.shape) > 1:
            numbers *= np.float32(1 / math.sqrt(spec.shape[1]))
        else:
            numbers *= np.float32(SPREAD)
            if lens_family(spec.name) == "norm":
                numbers += np.float32(1)
        writer.write(slot.file, slot.offset + start * numbers.itemsize, numbers.data)
        progress.advance(numbers.nbytes)
