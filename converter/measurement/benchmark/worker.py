"""A process that loads one pipeline, draws images and measures that.

It reads its job from stdin and says what happens on a pipe of its own, a JSON object a line; whatever libraries print
goes where the parent put stdout and stderr. The first failure ends it, since nobody knows what an exception in the
middle of an image left on the device; the parent starts another one for what is left.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from converter.errors import DeviceError, DiskError, LensconvError, OutputError, UsageError
from converter.measurement.benchmark.job import ABORTED, DRAWING, DRAWN, FAILED, LOADED, LOADING, PROBED, Job

_PR_SET_PDEATHSIG = 1
#: The system should rather end a worker than the process that writes down what was measured; proc(5).
_OUT_OF_MEMORY_SCORE = "1000"
_READ_BYTES = 1 << 22
#: What says nothing of the model that is measured.
_ENVIRONMENT_ERRORS = (DeviceError, DiskError, OutputError, UsageError)


def main() -> None:
    """Do the job on stdin."""
    parent, descriptor = int(sys.argv[1]), int(sys.argv[2])
    # A parent that is killed takes this process with it.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the process that asked is gone")
    # Processes that libraries start must not keep the pipe open.
    os.set_inheritable(descriptor, False)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_OUT_OF_MEMORY_SCORE)
    job = Job.from_json(sys.stdin.read())
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:

        def say(event: str, **content: Any) -> None:
            stream.write(json.dumps({"event": event, **content}) + "\n")
            stream.flush()

        try:
            _work(job, say)
        except _ENVIRONMENT_ERRORS as error:
            say(ABORTED, **error.to_dict()["error"])
        except LensconvError as error:
            say(FAILED, reason=error.message)
    # Taking the libraries down in good order takes seconds.
    os._exit(0)


def _work(job: Job, say: Callable[..., None]) -> None:
    # Importing these takes seconds, and what is wrong with the job would have been said by then.
    from converter.libraries import load_library

    if job.probe:
        machine = load_library("converter.measurement.benchmark.machine", compiles=True)
        say(PROBED, environment=machine.describe_machine(job.device))
        return
    session = load_library("converter.measurement.benchmark.session", compiles=True).Session(job)
    _warm_cache(session.weight_files)
    say(LOADING)
    say(LOADED, **session.load())
    for task in job.tasks:
        say(DRAWING, key=task.key)
        say(DRAWN, key=task.key, **session.draw(task))


def _warm_cache(files: list[Path]) -> None:
    """Read files, so that loading does not measure the disk."""
    buffer = bytearray(_READ_BYTES)
    for file in files:
        with file.open("rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass
