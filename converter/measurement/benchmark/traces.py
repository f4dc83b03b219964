"""Trajectories of the original on disk, until the quantized model has repeated their steps: the work of the workers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save

from converter.checkpoint.checksum import file_sha256
from converter.checkpoint.writer import replace_file
from converter.errors import DiskError, ImageError, OutputError
from converter.measurement.benchmark.job import Task
from converter.measurement.comparison.trajectory import Step, Trace, block_steps, recording, replay
from converter.measurement.evidence.trajectory import significant
from converter.measurement.generation.generate import call_arguments
from converter.measurement.generation.settings import Settings


@contextmanager
def tracing(pipeline: Any, task: Task) -> Iterator[dict[str, Any]]:
    """Record the trajectory of the image that is generated inside the block, if the task asks for it.

    Yields:
        Figures that are filled at the end: ``trace`` with ``sha256`` of the file and whether it has ``blocks``; or with
        ``failed``, the reason why it was not written; the image is still generated.
    """
    figures: dict[str, Any] = {}
    if task.trace is None:
        yield figures
        return
    steps = block_steps(task.settings["steps"]) if task.blocks else ()
    with recording(pipeline, blocks=steps) as trace:
        yield figures
    file = Path(task.trace)
    try:
        write_trace(trace, file)
        figures["trace"] = {"sha256": file_sha256(file), "blocks": task.blocks}
    except (DiskError, OutputError) as error:
        figures["trace"] = {"failed": error.message}


def replay_trace(pipeline: Any, task: Task) -> dict[str, Any]:
    """Repeat the steps of the trajectory that a task names.

    Returns:
        ``steps``, each with ``step``, ``sigma`` and ``error``; ``blocks``, each with ``block`` and ``error``, if the
        trace has them. Or ``failed``, the reason why an error cannot be computed.
    """
    options = call_arguments(Settings(**task.settings))
    del options["generator"]
    trace = read_trace(Path(str(task.replay)))
    try:
        found = replay(pipeline, trace, **options)
    except ImageError as error:
        return {"failed": error.message}
    steps = [
        {"step": step.step, "sigma": significant(step.sigma), "error": significant(step.error)} for step in found.steps
    ]
    blocks = [{"block": block, "error": significant(error)} for block, error in enumerate(found.blocks)]
    return {"steps": steps, "blocks": blocks} if blocks else {"steps": steps}


def write_trace(trace: Trace, file: Path) -> None:
    """Write a trace as a safetensors file, as a whole or not at all.

    Raises:
        OutputError: it cannot be written.
        DiskError: the disk is full.
    """
    tensors: dict[str, torch.Tensor] = {}
    for name, value in trace.features.items():
        tensors |= {name: value} if isinstance(value, torch.Tensor) else _named(name, value)
    for number, step in enumerate(trace.steps):
        prefix = f"steps.{number}"
        tensors |= {f"{prefix}.latents": step.latents, f"{prefix}.velocity": step.velocity}
        tensors |= _named(f"{prefix}.blocks", step.blocks)
    sigmas = {f"sigma.{number}": repr(step.sigma) for number, step in enumerate(trace.steps)}
    replace_file(file, save({name: tensor.contiguous() for name, tensor in tensors.items()}, sigmas))


def read_trace(file: Path) -> Trace:
    """Read what ``write_trace`` wrote."""
    trace = Trace()
    with safe_open(file, "pt") as stream:
        names, sigmas = list(stream.keys()), stream.metadata()

        def read_all(prefix: str) -> list[torch.Tensor]:
            found = [name for name in names if re.fullmatch(rf"{re.escape(prefix)}\.\d+", name)]
            return [stream.get_tensor(name) for name in sorted(found, key=lambda name: int(name.rpartition(".")[2]))]

        for kind in ("prompt", "negative_prompt"):
            if f"{kind}_mask" in names:
                trace.features[f"{kind}_mask"] = stream.get_tensor(f"{kind}_mask")
                trace.features[f"{kind}_embeds"] = read_all(f"{kind}_embeds")
        for number in range(len(sigmas)):
            prefix = f"steps.{number}"
            latents, velocity = (stream.get_tensor(f"{prefix}.{name}") for name in ("latents", "velocity"))
            blocks = tuple(read_all(f"{prefix}.blocks"))
            trace.steps.append(Step(float(sigmas[f"sigma.{number}"]), latents, velocity, blocks))
    return trace


def _named(prefix: str, tensors: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{prefix}.{number}": tensor for number, tensor in enumerate(tensors)}
