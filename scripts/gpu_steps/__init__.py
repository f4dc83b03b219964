"""The steps of scripts/gpu; this module imports no library, because the process that runs the steps needs none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

#: Variables by which SDNQ decides, when it is imported, whether it compiles.
EAGER = {"SDNQ_USE_TORCH_COMPILE": "0"}
COMPILED = {"SDNQ_USE_TORCH_COMPILE": "1"}


@dataclass(frozen=True)
class Part:
    """A process of a step. SDNQ decides at its import what it compiles, so some steps need several processes."""

    name: str = ""
    """Key of its figures; those of a part without a name are the step's own."""
    environment: Mapping[str, str] = field(default_factory=dict)
    needs_cuda: bool = False
    compiles: bool = False
    """Whether it compiles for a long time; on a CPU, it then runs only if the budget is long."""


@dataclass(frozen=True)
class Step:
    """A check in processes of its own."""

    name: str
    title: str
    function: str
    """Module and function that the processes call."""
    seconds: float
    """What it takes on a GPU, at most."""
    cpu_seconds: float
    """What its small form takes on two cores of a CPU."""
    device_gb: float = 0.5
    """Free memory that it needs on the GPU."""
    parts: tuple[Part, ...] = (Part(),)


STEPS = (
    Step(
        "0",
        "device, versions, int8 product, ceilings",
        "scripts.gpu_steps.device:describe",
        seconds=25,
        cpu_seconds=4,
        parts=(Part(), Part("eager", EAGER, needs_cuda=True)),
    ),
    Step("1a", "same bytes as on the CPU", "scripts.gpu_steps.conversion:compare_bytes", seconds=30, cpu_seconds=6),
    Step("1b", "speed of the conversion", "scripts.gpu_steps.conversion:measure_speed", seconds=35, cpu_seconds=5),
    Step(
        "2",
        "products of a few blocks",
        "scripts.gpu_steps.transformer:check_products",
        seconds=35,
        cpu_seconds=5,
        device_gb=4,
        parts=(
            Part("eager", EAGER),
            Part("eager, torch kernel", {**EAGER, "SDNQ_USE_TRITON_MM": "0"}, needs_cuda=True),
            Part("compiled", COMPILED, compiles=True),
            Part("compiled, torch kernel", {**COMPILED, "SDNQ_USE_TRITON_MM": "0"}, needs_cuda=True),
        ),
    ),
    Step(
        "3",
        "time and memory of a guided step",
        "scripts.gpu_steps.transformer:measure_step",
        seconds=140,
        cpu_seconds=10,
        device_gb=16,
        parts=(Part("original", EAGER), Part("compiled", COMPILED, compiles=True), Part("eager", EAGER)),
    ),
    Step("4", "same image in each mode", "scripts.gpu_steps.images:compare_images", seconds=45, cpu_seconds=7),
    Step("5", "benchmark of a tiny pipeline", "scripts.gpu_steps.images:run_benchmark", seconds=75, cpu_seconds=14),
    Step(
        "6",
        "workers at full depth",
        "scripts.gpu_steps.workers:run_workers",
        seconds=95,
        cpu_seconds=7,
        device_gb=24,
    ),
)
