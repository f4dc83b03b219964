"""Threads that work while the main thread waits for them, and can be interrupted.

An exception from a signal's handler can come between any two steps of the main thread. If it comes while a thread is
started, that thread is lost, and the process waits for it at its end, for ever; if it comes while a lock is taken, the
lock is never released. So signals are held back while threads are started and waited for, and handled in between.
"""

from __future__ import annotations

import inspect
import signal
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from types import FrameType
from typing import Any, TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

#: Signals that have a handler which may raise: Python's own, those that stop a command, and the alarm.
_HELD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)
#: Seconds between two checks of the threads, when Ctrl-C is noticed and the display is refreshed.
_POLL_SECONDS = 0.1
#: Seconds that a thread gets to end when the main thread is interrupted.
_STOP_SECONDS = 1.0


class HeldSignals:
    """Holds signals back while the block runs, except when the block calls ``handle``.

    Outside of the main thread it does nothing: handlers run in the main thread only.
    """

    def __init__(self) -> None:
        self._handlers: dict[signal.Signals, Callable[[int, FrameType | None], Any]] = {}
        self._arrived: list[signal.Signals] = []

    def handle(self) -> None:
        """Run the handlers of the signals that have arrived; what they raise is raised here."""
        while self._arrived:
            number = self._arrived.pop(0)
            self._handlers[number](number, inspect.currentframe())

    def __enter__(self) -> HeldSignals:
        if threading.current_thread() is threading.main_thread():
            for number in _HELD:
                handler = signal.getsignal(number)
                if callable(handler):
                    self._handlers[number] = handler
                    signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            # A handler that has run may have set another one for further signals.
            if signal.getsignal(number) == self._note:
                signal.signal(number, handler)
        self.handle()

    def _note(self, number: int, _: FrameType | None) -> None:
        self._arrived.append(signal.Signals(number))


def wait_for(future: Future[_Result]) -> _Result:
    """Wait for the result of a thread; what it raised is raised here, and so is what a signal's handler raises."""
    with HeldSignals() as signals:
        while not wait([future], timeout=_POLL_SECONDS).done:
            signals.handle()
    return future.result()


def begin(function: Callable[[], _Result], name: str) -> Future[_Result]:
    """Call a function in a thread that nobody has to wait for; the future gets what it returns or raises."""
    future: Future[_Result] = Future()

    def work() -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # noqa: BLE001 - raised in the thread that waits
            future.set_exception(error)

    threading.Thread(target=work, name=name, daemon=True).start()
    return future


def run_beside(function: Callable[[], _Result], *, refresh: Callable[[], None], stop: Callable[[], None]) -> _Result:
    """Call a function in a thread; an interrupt need not wait for its end.

    Args:
        function: what the thread calls.
        refresh: called in this thread, a few times a second.
        stop: called when this thread is interrupted, to shorten the call. What does not end soon is left alone.

    Returns:
        What the call returned.

    Raises:
        BaseException: what the call or ``refresh`` raised; what a signal's handler raises.
    """
    with HeldSignals() as signals:
        future = begin(function, "beside")
        try:
            while not wait([future], timeout=_POLL_SECONDS).done:
                refresh()
                signals.handle()
        except BaseException:
            stop()
            wait([future], timeout=_STOP_SECONDS)
            raise
    return future.result()


def run_in_threads(
    function: Callable[[_Item], _Result],
    items: Iterable[_Item],
    *,
    workers: int,
    name: str,
    refresh: Callable[[], None],
    stop: Callable[[], None] = lambda: None,
) -> list[_Result]:
    """Call a function with every item, in threads; return when all threads have ended.

    Args:
        function: what the threads call.
        items: one for each call.
        workers: how many threads.
        name: of the threads.
        refresh: called in the main thread, a few times a second.
        stop: called when no further call is wanted, to shorten those that run; also called at the end.

    Returns:
        What the calls returned, in the order of the items.

    Raises:
        BaseException: what the first failed call raised, after which no other is begun; what a signal's handler
            raises.
    """
    with HeldSignals() as signals, ThreadPoolExecutor(workers, thread_name_prefix=name) as pool:
        try:
            futures = [pool.submit(function, item) for item in items]
            waiting = set(futures)
            while waiting:
                done, waiting = wait(waiting, timeout=_POLL_SECONDS, return_when=FIRST_EXCEPTION)
                refresh()
                signals.handle()
                if any(future.exception() for future in done):
                    break
        finally:
            # First of all, so that a thread whose call is shortened does not begin the next one.
            pool.shutdown(wait=False, cancel_futures=True)
            stop()
            pool.shutdown()
    # Items are begun in their order, so that the failed call comes before the cancelled ones.
    return [future.result() for future in futures]
