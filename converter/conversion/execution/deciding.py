"""Recipes whose dtypes depend on the weights: quantize first, lay out afterwards.

SDNQ's dynamic quantization tries one dtype after the other on each weight, so that sizes are known only when all
weights have been read. The results are spooled next to the release; then the layout is fixed, and the spooled parts
are copied into their slots.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter.checkpoint.header import TensorEntry, encode_header, read_header
from converter.checkpoint.journal import Finished
from converter.checkpoint.reader import TensorReader, open_reader
from converter.checkpoint.staging import SPOOLED, StagedComponent
from converter.checkpoint.writer import writing
from converter.console import Reporter
from converter.conversion.adapters.weights import start
from converter.conversion.execution.arithmetic import refuse_nonfinite
from converter.conversion.execution.jobs import Job
from converter.conversion.execution.pieces import add_adapters
from converter.conversion.execution.randomness import seeded_randomness
from converter.conversion.execution.work import Work
from converter.conversion.kernels.devices import Device
from converter.conversion.kernels.host import Host
from converter.conversion.kernels.sdnq import QuantizedParts, count_nonfinite, quantize_with_sdnq
from converter.conversion.planning.plan import Plan, PlannedModule
from converter.conversion.planning.planner import plan_with_sdnq
from converter.conversion.request import Target
from converter.errors import InputError
from converter.models.classes import SAFETENSORS_NAMES


@dataclass(frozen=True)
class Decision:
    """What the weights decided."""

    plan: Plan
    spooled: Mapping[str, Path]
    """The spool file of each quantized tensor, by its name in the source."""
    finished: Finished
    """What an interrupted run had finished and this run can use."""
    bytes_read: int
    """Bytes of the source that this run has quantized."""


def _spool_is_complete(plan: Plan, staged: StagedComponent, finished: Finished) -> bool:
    """Whether the spool still has every file that an interrupted run noted."""
    for number, module in enumerate(plan.modules.values()):
        noted = finished.get(SPOOLED + module.source)
        if noted is None or not noted["spooled"]:
            continue
        try:
            read_header(_spool_file(staged, number))
        except InputError:
            return False
    return True


def _spool_file(staged: StagedComponent, number: int) -> Path:
    return staged.spool / f"{number}.safetensors"


def decide(
    target: Target, work: Work, staged: StagedComponent, finished: Finished, reporter: Reporter, device: Host | Device
) -> Decision:
    """Quantize every module into a spool, as SDNQ decides, and plan again with what it decided.

    Args:
        target: source, recipe and options.
        work: planned with the smallest dtype for every module.
        staged: where the spool is; its journal notes every finished tensor.
        finished: what an interrupted run had finished.
        reporter: shows progress.
        device: where weights are quantized.

    Raises:
        NonFiniteWeight: a weight contains such numbers, and they are not allowed.
        OutputError: the spool cannot be written.
        DiskError: the disk is full.
    """
    plan, tensors = work.plan, target.checkpoint.tensors
    jobs = {job.tensor.entry.name: job for job in work.jobs}
    if finished and not _spool_is_complete(plan, staged, finished):
        finished = staged.forget(keeps_spooled=False)
    total = sum(tensors[source].entry.bytes for source in plan.modules)
    config = dict(plan.quantization_config)
    files: dict[str, Path] = {}
    bytes_read = 0
    with (
        writing(staged.folder),
        reporter.progress("deciding", total) as progress,
        seeded_randomness(target, finished, device) as random_state,
        open_reader(target.checkpoint) as reader,
    ):
        staged.spool.mkdir(parents=True, exist_ok=True)
        for number, module in enumerate(plan.modules.values()):
            file = _spool_file(staged, number)
            tensor = tensors[module.source]
            noted = finished.get(SPOOLED + module.source)
            if noted is None:
                noted = _spool(target, module, jobs[module.source], reader, file, device)
                if random_state is not None:
                    noted["random_state"] = random_state()
                staged.note(SPOOLED + module.source, **noted)
                progress.advance(tensor.entry.bytes)
                bytes_read += tensor.entry.bytes
            else:
                progress.skip(tensor.entry.bytes)
            progress.refresh()
            if noted["spooled"]:
                files[module.source] = file
            config = _merge(config, noted["decisions"])
    return Decision(plan_with_sdnq(target.checkpoint, target.recipe, config), files, finished, bytes_read)


def _spool(
    target: Target,
    module: PlannedModule,
    job: Job,
    reader: TensorReader,
    file: Path,
    device: Host | Device,
) -> dict[str, Any]:
    """Quantize one weight and write its parts to a file, if there are any; returns what to note of it."""
    options, tensor = target.options, job.tensor
    data = reader.read_all(tensor)
    if job.addition is not None:
        data = add_adapters(start(job.addition), tensor, data, 0)
    nonfinite = count_nonfinite(data, job.dtype, as_bfloat16=not options.from_float32)
    refuse_nonfinite(job, nonfinite, options)
    result = quantize_with_sdnq(
        data,
        job.dtype,
        module.shape,
        module.options,
        from_float32=options.from_float32,
        device=device.torch_device,
    )
    if result.parts:
        _write_spool(file, result)
    noted = {
        "outputs": max(1, len(result.parts)),
        "decisions": result.decisions,
        "spooled": bool(result.parts),
    }
    return {**noted, "nonfinite": nonfinite} if nonfinite else noted


def _write_spool(file: Path, result: QuantizedParts) -> None:
    entries = []
    position = 0
    for part, tensor in result.parts.items():
        size = tensor.numel() * tensor.itemsize
        entries.append(
            TensorEntry(part, SAFETENSORS_NAMES[tensor.dtype], tuple(tensor.shape), position, position + size)
        )
        position += size
    with file.open("wb") as stream:
        stream.write(encode_header(entries, {}))
        for part in result.parts:
            stream.write(result.bytes_of(part).data)


def _merge(config: Mapping[str, Any], decisions: Mapping[str, Any]) -> dict[str, Any]:
    """Add what one weight decided to SDNQ's configuration."""
    merged = dict(config)
    for name in ("modules_to_not_convert", "modules_to_not_use_matmul"):
        merged[name] = sorted({*merged[name], *decisions[name]})
    by_dtype = {dtype: list(names) for dtype, names in merged["modules_dtype_dict"].items()}
    for dtype, names in decisions["modules_dtype_dict"].items():
        by_dtype[dtype] = sorted({*by_dtype.get(dtype, ()), *names})
    merged["modules_dtype_dict"] = by_dtype
    return merged
