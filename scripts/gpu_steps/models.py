"""The models that steps work with; each is made once, by the first step that needs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from converter.conversion.convert import convert
from converter.conversion.kernels.fused import GROUP
from converter.conversion.options import ConvertOptions
from converter.libraries import load_library
from converter.synthesis.synthesize import synthesize
from scripts.gpu_steps.process import StepRun

#: Blocks of microsoft/Lens.
FULL_DEPTH = 48
#: Groups with this maximum and minimum have another scale if the division is a multiplication by the reciprocal.
_MAXIMUM, _MINIMUM = 4384.0, -11.0


def transformer(run: StepRun, layers: int = FULL_DEPTH) -> Path:
    """A Lens transformer in F32 with random weights, of real width; in the small form of a step, the tiny one."""
    if run.is_small:
        return tiny_transformer(run)
    return _make(run.work / f"Lens-{layers}", lambda output: synthesize(output, layers=layers))


def tiny_transformer(run: StepRun) -> Path:
    """A Lens transformer with four blocks of width 192, in F32."""
    return _make(
        run.work / "tiny-transformer", lambda output: synthesize(output, preset="tiny", component="transformer")
    )


def tiny_pipeline(run: StepRun) -> Path:
    """A whole pipeline with random weights that generates in seconds."""
    return _make(run.work / "tiny", lambda output: synthesize(output, preset="tiny"))


def quantized(run: StepRun, source: Path) -> Path:
    """What the CPU makes of a model, with the default recipe."""
    # If SDNQ is loaded, the conversion does not start a process that loads it.
    load_library("sdnq")
    return _make(run.work / f"{source.name}-uint4", lambda output: convert(source, output))


def on_device(run: StepRun) -> ConvertOptions:
    """Options for a conversion on the device; on a CPU, its name with an index selects the same code."""
    return ConvertOptions(device="cpu:0" if run.is_small else run.device)


def hostile_transformer(run: StepRun) -> Path:
    """The tiny transformer with weights whose rounding is delicate: ties, zeros of both signs, heavy tails."""
    return _make(run.work / "hostile", lambda output: _write_hostile(tiny_transformer(run), output))


def _make(output: Path, function: Any) -> Path:
    if not output.exists():
        function(output)
    return output


def _write_hostile(source: Path, output: Path) -> None:
    from safetensors.numpy import load_file, save_file

    (file,) = source.glob("*.safetensors")
    tensors = load_file(file)
    generator = np.random.default_rng(0)
    for name, weight in tensors.items():
        if weight.ndim == 2 and weight.size % GROUP == 0:
            tensors[name] = _hostile_groups(weight.reshape(-1, GROUP), generator).reshape(weight.shape)
    output.mkdir()
    (output / "config.json").write_text(json.dumps(json.loads((source / "config.json").read_text())))
    save_file(tensors, output / file.name)


def _hostile_groups(groups: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Replace all groups but every eighth; ``groups`` is float32, ``[groups, 64]``."""
    found = groups.copy()
    count = len(found[1::8])
    steps = np.arange(GROUP, dtype=np.float32) / 4 - 8
    found[1::8] = steps * np.exp2(generator.integers(-12, 3, (count, 1))).astype(np.float32)
    found[2::8] = np.where(np.arange(GROUP) % 2, -0.0, 0.0)
    found[3::8] = generator.standard_normal((len(found[3::8]), 1))
    found[4::8] = np.clip(generator.standard_t(1, found[4::8].shape), -1e30, 1e30)
    found[5::8] = generator.uniform(_MINIMUM, _MAXIMUM, found[5::8].shape)
    found[5::8, :2] = _MAXIMUM, _MINIMUM
    found[6::8, 0] = 1e4
    found[7::8] *= np.float32(1e-38)
    return found.astype(np.float32)
