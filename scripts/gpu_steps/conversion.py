"""Steps 1a and 1b: conversions on the device give the bytes that the CPU gives, and how fast they are."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from converter.conversion.convert import convert
from converter.conversion.options import ConvertOptions
from converter.conversion.recipe.recipe import find_recipe
from converter.conversion.release.manifest import MANIFEST_NAME
from converter.libraries import load_library
from converter.models.lens.layout import CLASS_NAME
from scripts.gpu_steps import models
from scripts.gpu_steps.process import StepRun

#: Recipes and the dtype that weights are quantized from.
_RECIPES = (
    ("lens-uint4-static", "bfloat16"),
    ("lens-uint4-static", "float32"),
    ("sdnq-uint4", "bfloat16"),
    ("sdnq-int8", "bfloat16"),
)
#: Blocks of real width.
_BLOCKS = 4


def compare_bytes(run: StepRun) -> None:
    """Step 1a: convert models on the CPU and on the device, and compare the files."""
    # As in ``models.quantized``.
    load_library("sdnq")
    sources = [models.tiny_transformer(run), models.hostile_transformer(run)]
    if not run.is_small:
        sources.append(models.transformer(run, _BLOCKS))
    for source in sources:
        for recipe, dtype in _RECIPES:
            name = f"{source.name}, {recipe} from {dtype}"
            outputs = run.work / "cpu", run.work / "device"
            for output, options in zip(outputs, (ConvertOptions(), models.on_device(run)), strict=True):
                chosen = find_recipe(recipe, CLASS_NAME)
                convert(source, output, chosen, replace(options, quantize_from=dtype))
            differing, promised = _differing_bytes(*outputs), _is_promised(outputs[1])
            run.record(differing_bytes={name: differing}, promised={name: promised})
            run.check(not (promised and differing), f"{name}: {differing} bytes differ from the CPU's")
            for output in outputs:
                shutil.rmtree(output)


def measure_speed(run: StepRun) -> None:
    """Step 1b: make a model of full depth, convert it on the CPU and on the device, compare and time both."""
    load_library("sdnq")
    started = time.perf_counter()
    source = models.transformer(run)
    run.record(synth_s=round(time.perf_counter() - started, 2))
    cpu, device = run.work / f"{source.name}-uint4", run.work / "device"
    for name, output, options in (("cpu", cpu, ConvertOptions()), ("device", device, models.on_device(run))):
        report = convert(source, output, None, options)
        run.record(**{name: {"seconds": round(report.elapsed_s, 2), "gb_s": round(report.bytes_read_per_s / 1e9, 2)}})
    differing = _differing_bytes(cpu, device)
    run.record(differing_bytes=differing)
    run.check(not differing or not _is_promised(device), f"{differing} bytes differ from the CPU's")
    shutil.rmtree(device)


def _is_promised(release: Path) -> bool:
    """Whether the release promises the CPU's bytes: its manifest names no device for any component."""
    content: dict[str, Any] = json.loads((release / MANIFEST_NAME).read_text())
    return not any("device" in component for component in content["components"])


def _differing_bytes(first: Path, second: Path) -> int:
    """How many bytes of the weights differ."""
    names = sorted(file.name for file in first.glob("*.safetensors"))
    if names != sorted(file.name for file in second.glob("*.safetensors")):
        raise ValueError(f"{names} are not the files of both conversions")
    return sum(_differing(first / name, second / name) for name in names)


def _differing(first: Path, second: Path) -> int:
    if first.stat().st_size != second.stat().st_size:
        return abs(first.stat().st_size - second.stat().st_size)
    pieces = (np.memmap(file, np.uint8, "r") for file in (first, second))
    return int(np.count_nonzero(np.not_equal(*pieces)))
