"""Recipes whose dtypes depend on the weights: quantize first, lay out afterwards.

SDNQ's dynamic quantization tries one dtype after the other on each weight, so that sizes are known only when all
weights have been seen. What it makes of them is spooled beside the release; then the layout is fixed, and the
spooled parts go into their slots.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from converter.checkpoint.header import TensorEntry, encode_header, read_header
from converter.checkpoint.reader import TensorReader
from converter.checkpoint.source import Checkpoint
from converter.checkpoint.staging import SPOOLED, Staging
from converter.console import Progress
from converter.conversion.execution.workers import Numerics, refuse_nonfinite
from converter.conversion.kernels.sdnq import QuantizedParts, count_nonfinite, open_device, quantize_with_sdnq
from converter.conversion.planning.plan import Plan
from converter.conversion.planning.planner import SAFETENSORS_NAMES
from converter.errors import InputError


def spool_is_whole(plan: Plan, staging: Staging, finished: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether the spool still holds all that an interrupted run noted as being there."""
    for number, module in enumerate(plan.modules.values()):
        noted = finished.get(SPOOLED + module.source)
        if noted is None or not noted["spooled"]:
            continue
        try:
            read_header(_spool_file(staging, number))
        except InputError:
            return False
    return True


def _spool_file(staging: Staging, number: int) -> Path:
    return staging.folder / "spool" / f"{number}.safetensors"


def decide(
    plan: Plan,
    checkpoint: Checkpoint,
    staging: Staging,
    finished: Mapping[str, Mapping[str, Any]],
    numerics: Numerics,
    progress: Progress,
    random_state: Callable[[], str] | None,
) -> tuple[dict[str, Any], dict[str, Path]]:
    """Quantize every module into a spool, as SDNQ decides.

    Args:
        plan: with the smallest dtype for every module.
        checkpoint: the source.
        staging: where the spool is; its journal is told of every finished tensor.
        finished: what an interrupted run had finished.
        numerics: how numbers are treated.
        progress: is told how many bytes of the source are done.
        random_state: where SDNQ draws random numbers, what to note after each tensor.

    Returns:
        SDNQ's configuration with everything that the weights decided, and the spool file of each quantized tensor.

    Raises:
        NonFiniteWeight: a weight holds such numbers, and they are not allowed.
        OSError: the spool cannot be written.
    """
    (staging.folder / "spool").mkdir(exist_ok=True)
    config = dict(plan.quantization_config)
    files: dict[str, Path] = {}
    device = open_device(numerics.device)
    with TensorReader() as reader:
        for number, module in enumerate(plan.modules.values()):
            file = _spool_file(staging, number)
            noted = finished.get(SPOOLED + module.source)
            tensor = checkpoint.tensors[module.source]
            if noted is None:
                data = reader.read_all(tensor)
                nonfinite = count_nonfinite(data, tensor.entry.dtype, as_bfloat16=not numerics.from_float32)
                refuse_nonfinite(tensor, nonfinite, numerics)
                result = quantize_with_sdnq(
                    data,
                    tensor.entry.dtype,
                    module.shape,
                    module.options,
                    from_float32=numerics.from_float32,
                    device=device,
                )
                if result.parts:
                    _write_spool(file, result)
                facts: dict[str, Any] = {
                    "outputs": max(1, len(result.parts)),
                    "decisions": result.decisions,
                    "spooled": bool(result.parts),
                }
                if nonfinite:
                    facts["nonfinite"] = nonfinite
                if random_state is not None:
                    facts["random_state"] = random_state()
                staging.note(SPOOLED + module.source, **facts)
                noted = facts
                progress.advance(tensor.entry.bytes)
            else:
                progress.skip(tensor.entry.bytes)
            progress.refresh()
            if noted["spooled"]:
                files[module.source] = file
            config = _merge(config, noted["decisions"])
    return config, files


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
