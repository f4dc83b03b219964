"""Steps for tests of scripts/gpu that need no torch, and the program that runs them."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

import scripts.gpu_runner
from scripts.gpu import main
from scripts.gpu_steps import Part, Step
from scripts.gpu_steps.process import StepRun

#: What the runner sets so that SDNQ tries few sizes of blocks.
FEW_SIZES = "SDNQ_TRITON_MM_BLOCK_SIZE_M_LIST"


def describe(run: StepRun) -> None:
    from converter.errors import DeviceError

    if run.device == "cuda:7":
        raise DeviceError("no such GPU", "Use another.")
    run.record(card="Imagined Card 9", free_device_gb=2.0)


def pass_on(run: StepRun) -> None:
    """Record what a step is given."""
    environment = {name: os.environ.get(name) for name in ("HF_HUB_OFFLINE", "SDNQ_USE_TORCH_COMPILE", FEW_SIZES)}
    run.record(environment=environment, small=run.is_small, earlier=run.earlier, file=str(run.work / "file"))


def hang(run: StepRun) -> None:
    """Start another process and hang; both are found by the file that is named in the environment."""
    child = os.fork()
    if child:
        Path(os.environ["PROCESSES"]).write_text(f"{os.getpid()} {child}")
        run.record(begun=True)
    time.sleep(600)


def die(run: StepRun) -> NoReturn:
    run.record(begun=True)
    os._exit(7)


def crash(_: StepRun) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def fail(run: StepRun) -> NoReturn:
    raise ValueError(f"{run.work}/model.safetensors is not there")


def lack(_: StepRun) -> NoReturn:
    from converter.errors import DependencyError

    raise DependencyError("nh3 is not installed", "Install it.")


def lack_compiler(_: StepRun) -> NoReturn:
    from converter.errors import CompilerError

    raise CompilerError("gcc fails", "Install another.")


def import_renamed(_: StepRun) -> None:
    from converter.errors import gone  # type: ignore[attr-defined] # noqa: F401


def find_problem(run: StepRun) -> None:
    run.check(True, "not this one")
    run.check(False, "1 byte differs")


def _step(name: str, function: str, cpu_seconds: float = 0.1, device_gb: float = 0.5) -> Step:
    return Step(name, f"test {name}", f"tests.gpu_steps:{function}", 1, cpu_seconds, device_gb)


STEPS = (
    _step("0", "describe"),
    Step(
        "parts",
        "test of parts",
        "tests.gpu_steps:pass_on",
        seconds=1,
        cpu_seconds=0.1,
        parts=(Part("first"), Part("second", {"SDNQ_USE_TORCH_COMPILE": "1"}), Part("third", needs_cuda=True)),
    ),
    _step("hang", "hang"),
    _step("die", "die"),
    _step("crash", "crash"),
    _step("fail", "fail"),
    _step("lack", "lack"),
    _step("compiler", "lack_compiler"),
    _step("renamed", "import_renamed"),
    _step("problem", "find_problem"),
    _step("long", "pass_on", cpu_seconds=1000.0),
    _step("large", "pass_on", device_gb=80.0),
    _step("last", "pass_on"),
)

if __name__ == "__main__":
    scripts.gpu_runner.EXTRA_SECONDS = 2.0
    sys.exit(main(steps=STEPS))
