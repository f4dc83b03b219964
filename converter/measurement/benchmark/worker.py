"""A process that loads one pipeline, generates images and measures both.

It reads its job from stdin, further tasks from a pipe if there are any, and reports events on another pipe, one JSON
object per line. What libraries print goes to stdout and stderr, which the parent chose. The first failure ends the
process, since an exception in the middle of an image may leave anything on the device; the parent starts another one
for the remaining images.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from converter.errors import CompilerError, DeviceError, DiskError, LensconvError, OutputError, UsageError
from converter.measurement.benchmark.job import (
    ABORTED,
    FAILED,
    GENERATED,
    GENERATING,
    LOADED,
    LOADING,
    PROBED,
    Job,
    Task,
)
from converter.measurement.benchmark.journal import is_image_key

_PR_SET_PDEATHSIG = 1
#: The system should rather kill a worker than the process that writes the journal; see proc(5).
_OUT_OF_MEMORY_SCORE = "1000"
_READ_BYTES = 1 << 22
#: Errors that have nothing to do with the measured model.
_ENVIRONMENT_ERRORS = (CompilerError, DeviceError, DiskError, OutputError, UsageError)


def main() -> None:
    """Do the job on stdin."""
    parent, descriptor, *fed = map(int, sys.argv[1:])
    # If the parent is killed, the kernel kills this process, too.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the parent process has ended")
    # Processes that libraries start must not keep the pipe open.
    for number in (descriptor, *fed):
        os.set_inheritable(number, False)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_OUT_OF_MEMORY_SCORE)
    job = Job.from_json(sys.stdin.read())
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:

        def say(event: str, **content: Any) -> None:
            stream.write(json.dumps({"event": event, **content}) + "\n")
            stream.flush()

        try:
            _work(job, say, _further_tasks(*fed))
        except LensconvError as error:
            if job.probe or isinstance(error, _ENVIRONMENT_ERRORS):
                say(ABORTED, **error.to_dict()["error"])
            else:
                say(FAILED, reason=error.message)
    # A regular exit of the libraries takes seconds.
    os._exit(0)


def _further_tasks(*descriptors: int) -> Iterator[Task]:
    """Yield the tasks that the parent sends later, one per line."""
    for descriptor in descriptors:
        with os.fdopen(descriptor, encoding="utf-8") as stream:
            yield from map(Task.from_json, stream)


def _work(job: Job, say: Callable[..., None], further: Iterable[Task]) -> None:
    # Importing these takes seconds.
    from converter.libraries import load_library

    if job.probe:
        machine = load_library("converter.measurement.benchmark.machine")
        say(PROBED, environment=machine.describe_machine(job.device))
        return
    session = load_library("converter.measurement.benchmark.session").Session(job)
    _warm_cache(session.repo.weight_files)
    say(LOADING)
    say(LOADED, **session.load())
    first, *others = job.tasks

    def draw(tasks: Iterable[Task]) -> None:
        for task in tasks:
            say(GENERATING, key=task.key)
            say(GENERATED, key=task.key, **(session.generate(task) if task.replay is None else session.replay(task)))

    draw([first])
    for task in session.warm_ups(first, [task for task in others if is_image_key(task.key)]):
        # If it fails, so would the image with this key.
        say(GENERATING, key=task.key)
        session.generate(task)
        say(GENERATED, key="")
    draw(others)
    draw(further)


def _warm_cache(files: list[Path]) -> None:
    """Read files, so that loading does not measure the disk."""
    buffer = bytearray(_READ_BYTES)
    for file in files:
        with file.open("rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass
