"""The parent's side of a worker: start it, read its events, end it."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from converter.errors import LensconvError, printable
from converter.libraries import waiting_environment
from converter.measurement.benchmark.job import ABORTED, FAILED, Job, Task
from converter.threads import HeldSignals

#: Seconds between two refreshes of the progress.
_REFRESH = 0.5
#: Bytes at the end of a worker's output in which a reason is looked for.
_TAIL_BYTES = 4000
_PIPE_BYTES = 1 << 16


class Worker(Protocol):
    """A worker, wherever it runs."""

    def events(self) -> Iterator[dict[str, Any]]:
        """Yield its events."""


class WorkerProcess:
    """A worker, as a context manager that always ends it.

    Args:
        job: its work.
        timeout: seconds without an event after which it counts as hanging.
        tick: called while waiting.
        is_fed: whether it waits for further tasks after those of its job.
    """

    def __init__(self, job: Job, timeout: float, tick: Callable[[], None], *, is_fed: bool = False) -> None:
        self._timeout = timeout
        self._tick = tick
        package = str(Path(__file__).resolve().parents[3])
        # -P keeps the current folder off the module path; the package is added last, so that it shadows nothing.
        start = (
            f"import sys; sys.path.append({package!r}); from converter.measurement.benchmark.worker import main; main()"
        )
        # The file is in memory, since nothing is written outside of the output folder.
        self._log, self._input = (os.fdopen(os.memfd_create(name), "w+b") for name in ("log", "job"))
        self._input.write(job.to_json().encode())
        self._input.seek(0)
        try:
            with HeldSignals():
                self._pipe, writer = os.pipe()
                fed, feed = os.pipe() if is_fed else (None, None)
                self._feed = None if feed is None else os.fdopen(feed, "wb", buffering=0)
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-c", start, str(os.getpid()), *map(str, filter(None, (writer, fed)))],
                    stdin=self._input,
                    stdout=self._log,
                    stderr=self._log,
                    pass_fds=tuple(filter(None, (writer, fed))),
                    start_new_session=True,
                    env={**os.environ, **waiting_environment()},
                )
                for descriptor in filter(None, (writer, fed)):
                    os.close(descriptor)
        except KeyboardInterrupt:
            self.stop()
            raise

    def feed(self, task: Task) -> None:
        """Give it another task; if it has died, ``events`` says so."""
        if self._feed is not None:
            with suppress(BrokenPipeError):
                self._feed.write(f"{task.to_json()}\n".encode())

    def events(self) -> Iterator[dict[str, Any]]:
        """Yield its events; if it dies or hangs, the last one is ``FAILED``, with ``died`` and ``hung``."""
        buffer = b""
        while True:
            content = self._read()
            if content is None:
                self.stop()
                reason = f"was stopped: no progress for {self._timeout:g} s (--timeout)"
                yield {"event": FAILED, "reason": reason, "died": True, "hung": True}
                return
            if not content:
                break
            *lines, buffer = (buffer + content).split(b"\n")
            for line in lines:
                yield json.loads(line)
        code = self._process.wait()
        if code != 0:
            yield {"event": FAILED, "reason": self._reason(code), "died": True}

    def stop(self) -> None:
        """Kill it, and all processes that it started."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _read(self) -> bytes | None:
        """Read more of its output; empty at the end, None when it hangs."""
        deadline = time.monotonic() + self._timeout
        with selectors.DefaultSelector() as selector:
            selector.register(self._pipe, selectors.EVENT_READ)
            while (left := deadline - time.monotonic()) > 0:
                if selector.select(min(_REFRESH, left)):
                    return os.read(self._pipe, _PIPE_BYTES)
                self._tick()
        return None

    def _reason(self, code: int) -> str:
        if code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
            return f"killed by {name}" + (", perhaps because memory ran out" if name == "SIGKILL" else "")
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - _TAIL_BYTES))
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return f"ended with exit code {code}" + (f": {printable(lines[-1])}" if lines else "")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with HeldSignals():
            self.stop()
            os.close(self._pipe)
            if self._feed is not None:
                self._feed.close()
            self._log.close()
            self._input.close()


def raise_if_aborted(event: Mapping[str, Any]) -> None:
    """Raise the error that ended the work of a worker, if the event is about one.

    Raises:
        LensconvError: as the worker raised it; it has nothing to do with the model.
    """
    if event["event"] == ABORTED:
        raise LensconvError.from_dict(event)
