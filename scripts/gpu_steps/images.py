"""Steps 4 and 5: a tiny pipeline gives the same image in each mode, and its benchmark adds up."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from converter.extras import require_extra
from converter.measurement.generation.generate import generate
from converter.measurement.generation.options import OFFLOADS, GenerateOptions
from scripts.gpu_steps import models
from scripts.gpu_steps.process import StepRun

PROMPT = 'a tin kettle with a label that says "TEA"'
#: Small images, because the pipeline is tiny.
_HEIGHT, _WIDTH = 64, 96
_STEPS = 2
#: The most that the times of stages may differ from the time of the whole, in seconds: figures are rounded.
_ROUNDING_S = 0.01
#: Seconds after which an image of the tiny pipeline hangs.
_IMAGE_TIMEOUT = 60.0
#: Prompts of the benchmark, on a GPU and on a CPU.
_PROMPTS = (2, 1)


def compare_images(run: StepRun) -> None:
    """Step 4: draw with the original and the quantized pipeline in each mode of offloading; compare the pixels."""
    from PIL import Image

    source = models.tiny_pipeline(run)
    for repo in (source, models.quantized(run, source)):
        expected = None
        for offload in OFFLOADS:
            options = replace(_drawing(run), offload=offload, overwrite=True)
            name = f"{repo.name}, {offload}"
            report = generate(repo, PROMPT, run.work / "image.png", options)
            with Image.open(report.image) as image:
                pixels = image.tobytes()
            expected = expected or pixels
            run.record(seconds={name: round(report.elapsed_s, 2)}, equal={name: pixels == expected})
            run.check(pixels == expected, f"{name}: the pixels differ from those without offloading")


def run_benchmark(run: StepRun) -> None:
    """Step 5: run ``bench`` in all modes, on a CPU in standard mode; compare its figures with each other."""
    require_extra("measure")
    # Without the extra, these cannot be imported.
    from converter.measurement.benchmark.bench import bench
    from converter.measurement.benchmark.journal import JOURNAL_NAME
    from converter.measurement.benchmark.options import MODES, BenchOptions
    from converter.measurement.prompts.suite import PromptSuite, SuitePrompt

    source = models.tiny_pipeline(run)
    count = _PROMPTS[run.is_small]
    prompts = tuple(SuitePrompt(f"P{number}", "A Kettle", number, PROMPT, ("TEA",)) for number in range(count))
    options = BenchOptions(
        mode="standard" if run.is_small else ",".join(MODES),
        pairs=1,
        skip_baseline=True,
        timeout=_IMAGE_TIMEOUT,
        trajectory_prompts=0 if run.is_small else BenchOptions.trajectory_prompts,
    )
    output = run.work / "evidence"
    report = bench(
        source, models.quantized(run, source), output, PromptSuite("kettle", prompts), options, _drawing(run)
    )
    run.record(images=report.images, seconds=round(report.elapsed_s, 1))
    for failure in report.failed:
        run.check(False, f"{failure['model']}, {failure['mode']}: {failure['reason']}")
    peaks: dict[str, dict[str, float]] = {}
    for line in (output / JOURNAL_NAME).read_text().splitlines()[1:]:
        entry = json.loads(line)
        if "stages" in entry:
            name = f"{entry['model']}, {entry['mode']}"
            check_figures(run, f"{name}, {entry['key']}", entry)
            peaks.setdefault(entry["model"], {})[entry["mode"]] = entry.get("peak_allocated_gb", 0.0)
            run.record(time_s={name: entry["time_s"]})
    run.record(peak_allocated_gb=peaks)
    for model, found in peaks.items():
        check_offload(run, model, found)


def _drawing(run: StepRun) -> GenerateOptions:
    return GenerateOptions(device=run.device, steps=_STEPS, height=_HEIGHT, width=_WIDTH)


def check_figures(run: StepRun, name: str, figures: Mapping[str, Any]) -> None:
    """Check the figures of one image: stages add up, and memory that is allocated is reserved and exists."""
    total = sum(stage["time_s"] for stage in figures["stages"].values())
    time_s = figures["time_s"]
    run.check(abs(total - time_s) <= _ROUNDING_S, f"{name}: stages take {total:.3f} s, the whole {time_s:.3f} s")
    if run.is_small:
        return
    size = torch.cuda.get_device_properties(run.device).total_memory / 1e9
    sizes = [figures["peak_allocated_gb"], figures["peak_reserved_gb"], size]
    run.check(sizes == sorted(sizes), f"{name}: allocated, reserved and existing memory are {sizes} GB")


def check_offload(run: StepRun, model: str, peaks: Mapping[str, float]) -> None:
    """Check that offloading components needs less device memory.

    Args:
        run: the step.
        model: its name.
        peaks: in GB by mode.
    """
    if not run.is_small and {"standard", "offload"} <= peaks.keys():
        first, second = peaks["standard"], peaks["offload"]
        run.check(second < first, f"{model}: with offloading, the peak is {second:.3f} GB, and {first:.3f} GB without")


def pipeline_with(folder: Path, parts: Mapping[str, Path]) -> Path:
    """Make a pipeline repo from the folders of others, by links to their files.

    Args:
        folder: which is made.
        parts: folders and files to link to, by their names in the repo.
    """
    folder.mkdir()
    for name, part in parts.items():
        (folder / name).symlink_to(part)
    return folder
