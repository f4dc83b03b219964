"""SDNQ's plan from a second process, while the first one converts already.

The process reads a pickled target from stdin and writes a pickled answer to stdout. Both ends are this module;
nothing else is ever unpickled.
"""

from __future__ import annotations

import ctypes
import gc
import os
import pickle
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from converter.conversion.planning.plan import Plan
from converter.conversion.request import Target
from converter.libraries import require_library_memory
from converter.memory import peak_rss_bytes
from converter.threads import HeldSignals, wait_for

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class PlanAnswer:
    """A plan, and whether lensconv's kernel gives SDNQ's bytes with the installed versions."""

    plan: Plan
    kernel_agrees: bool
    peak_rss_bytes: int = 0
    """Peak memory of the second process; 0 if the plan was made in this one."""


class PlannerProcess:
    """A second process that plans.

    Args:
        target: what to plan.
    """

    def __init__(self, target: Target) -> None:
        package = str(Path(__file__).resolve().parents[2])
        # -P keeps the current folder off the module path; the package is added last, so that it shadows nothing.
        start = (
            f"import sys; sys.path.append({package!r}); from converter.conversion.planner_process import main; main()"
        )
        with HeldSignals():
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", start],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            # Read by a thread, so that the process can end, and free its memory, as soon as it has answered.
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="planner")
            self._content = self._pool.submit(self._process.communicate, pickle.dumps(target))

    def answer(self) -> PlanAnswer | None:
        """Wait for the plan; None when the process failed, for any reason."""
        content, _ = wait_for(self._content)
        if self._process.returncode != 0:
            return None
        answer = pickle.loads(content)  # noqa: S301 - from our own process
        return answer if isinstance(answer, PlanAnswer) else None

    def stop(self) -> None:
        """End the process if it still runs."""
        self._process.kill()
        self._pool.shutdown()


def plan_here(target: Target) -> PlanAnswer:
    """Plan with SDNQ in this process.

    Raises: what ``plan_with_sdnq`` raises.
    """
    require_library_memory()
    # Imported here: it imports torch, which a process with a predicted plan does without.
    from converter.conversion.kernels.selfcheck import kernel_agrees
    from converter.conversion.planning.planner import plan_with_sdnq

    plan = plan_with_sdnq(target.checkpoint, target.recipe)
    return PlanAnswer(plan, kernel_agrees(plan))


def main() -> None:
    """Answer once."""
    # Everything that is allocated here lives to the end; the garbage collector would take a tenth of the time.
    gc.disable()
    # When the parent is killed, this process ends too.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    target = pickle.loads(sys.stdin.buffer.read())  # noqa: S301 - from our own process
    # The output of libraries must not mix with the answer.
    answer_stream = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    answer = plan_here(target)
    with answer_stream:
        answer_stream.write(pickle.dumps(replace(answer, peak_rss_bytes=peak_rss_bytes())))
    # Unloading the libraries properly would take a tenth of the conversion's time.
    os._exit(0)
