"""A second process that says why a command ended, where a limit on memory may make the system kill it.

A process that is killed for its memory cannot say so itself. What a command takes at least is checked
before it begins; what it takes at most depends on the model and on libraries.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType

from converter.console import Console
from converter.errors import MemoryLimitError
from converter.memory import limit_text

_PR_SET_PDEATHSIG = 1


def supervise(console: Console, forwarded: Sequence[signal.Signals]) -> None:
    """Continue in a child process if the memory is limited; without a limit, return at once.

    This process waits for the child and ends like it. Called before any thread is started.

    Args:
        console: shows the error if the child is killed.
        forwarded: signals that tell the command to stop; the child gets them, and ignores those that it should ignore.
    """
    limit = limit_text()
    if not limit:
        return
    parent = os.getpid()
    # A signal in between waits until both processes know what to do with it.
    signal.pthread_sigmask(signal.SIG_BLOCK, forwarded)
    child = os.fork()
    if child == 0:
        # Imported here: it takes milliseconds.
        import ctypes

        # When the parent is killed, this process ends too.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, forwarded)
        return

    def forward(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - Python's signature
        with suppress(ProcessLookupError):
            os.kill(child, number)

    for number in forwarded:
        signal.signal(number, forward)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, forwarded)
    _, status = os.waitpid(child, 0)
    sys.exit(_exit_code(os.waitstatus_to_exitcode(status), limit, console))


def _exit_code(code: int, limit: str, console: Console) -> int:
    """The exit code of the child; a signal that ended it ends this process too, except one for the lack of memory."""
    if code == -signal.SIGKILL:
        failure = MemoryLimitError(
            f"the system killed this command, most likely because the memory ran out{limit}",
            "Raise the limit, then run the command again.",
        )
        console.error(failure)
        return failure.exit_code
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code
