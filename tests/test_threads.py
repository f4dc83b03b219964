"""Threads and signals: nothing hangs, whenever a signal comes."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from converter.conversion.execution.budget import MemoryBudget
from converter.threads import HeldSignals, run_in_threads, wait_for
from tests.conftest import run_python, time_limit


def test_results_come_in_the_order_of_the_items() -> None:
    def work(item: int) -> int:
        time.sleep(0.002 * (item % 3))
        return item * item

    refreshed: list[None] = []
    results = run_in_threads(work, range(50), workers=4, name="t", refresh=lambda: refreshed.append(None))
    assert results == [item * item for item in range(50)]
    assert refreshed


def test_a_failure_stops_the_rest() -> None:
    begun: list[int] = []
    called_off = threading.Event()

    def work(item: int) -> None:
        begun.append(item)
        if item == 3:
            raise ValueError(item)
        if item > 3:
            called_off.wait(60)

    with time_limit(), pytest.raises(ValueError, match="3"):
        run_in_threads(work, range(100), workers=3, name="t", refresh=lambda: None, stop=called_off.set)
    assert len(begun) < 100


def test_no_more_bytes_are_shared_out_than_there_are() -> None:
    budget, entered, held = MemoryBudget(10), threading.Event(), threading.Event()

    def take(size: int) -> None:
        with budget.share(size):
            entered.set()
            assert held.wait(60)

    for sizes, fits in (((6, 4), True), ((6, 5), False), ((3, 3, 5), False), ((10, 1), False), ((1, 99), False)):
        with time_limit(), ThreadPoolExecutor(3) as pool:
            futures = []
            for size in sizes:
                entered.clear()
                futures.append(pool.submit(take, size))
                came = entered.wait(5 if fits or size is not sizes[-1] else 0.05)
            assert came == fits, sizes
            held.set()
            assert [future.result(60) for future in futures] == [None] * len(sizes)
            held.clear()


def test_signals_are_held_back_and_handed_on() -> None:
    steps = []
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - the order of the steps is the matter
        with HeldSignals() as signals:
            signal.raise_signal(signal.SIGINT)
            steps.append("held")
            with pytest.raises(KeyboardInterrupt):
                signals.handle()
            signal.raise_signal(signal.SIGINT)
            steps.append("held again")
        steps.append("not reached")
    assert steps == ["held", "held again"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_all_signals_that_may_raise_are_held_and_handled_as_they_came() -> None:
    numbers, handled = (signal.SIGTERM, signal.SIGHUP, signal.SIGALRM, signal.SIGINT), list[int]()
    previous = [signal.signal(number, lambda number, _: handled.append(number)) for number in numbers]
    with HeldSignals() as signals:
        held = [*map(signal.raise_signal, numbers), *handled]
        signals.handle()
        assert (held, handled) == ([None] * 4, [*numbers])
    assert len([*map(signal.signal, numbers, previous)]) == 4


def test_a_handler_may_choose_what_becomes_of_further_signals() -> None:
    def once(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    previous = signal.signal(signal.SIGTERM, once)
    try:
        with HeldSignals() as signals:
            signal.raise_signal(signal.SIGTERM)
            signals.handle()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, previous)


def test_another_thread_has_no_signals_to_hold() -> None:
    def work(_: int) -> list[int]:
        return run_in_threads(abs, [-1, -2], workers=2, name="inner", refresh=lambda: None)

    assert run_in_threads(work, [0], workers=1, name="outer", refresh=lambda: None) == [[1, 2]]


@contextmanager
def ctrl_c() -> Iterator[None]:
    """Send SIGINT to this process in a moment, and expect it to end the block."""
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with time_limit(), pytest.raises(KeyboardInterrupt):
        yield
    timer.join()


def test_ctrl_c_ends_the_wait() -> None:
    with ctrl_c():
        wait_for(Future())


def test_ctrl_c_ends_the_work() -> None:
    called_off = threading.Event()
    finished: list[int] = []

    def work(item: int) -> None:
        called_off.wait(60)
        finished.append(item)

    def call_off() -> None:
        called_off.set()
        # Long enough for the threads to begin what they should not.
        time.sleep(0.1)

    with ctrl_c():
        run_in_threads(work, range(100), workers=2, name="t", refresh=lambda: None, stop=call_off)
    assert finished in ([0, 1], [1, 0])


HAMMERED = """
import signal, threading, time
from converter.conversion.execution.budget import MemoryBudget
from converter.threads import run_in_threads

def stopped(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGALRM, stopped)
ended = 0
for delay in range(0, 4000, 8):
    try:
        signal.setitimer(signal.ITIMER_REAL, 1e-6 + delay * 1e-6)
        run_in_threads(time.sleep, [1e-4] * 4, workers=3, name="t", refresh=lambda: None)
        time.sleep(0.1)
    except KeyboardInterrupt:
        ended += 1
    assert threading.active_count() == 1, threading.enumerate()
print(ended)
"""


def test_no_thread_is_lost_whenever_the_signal_comes() -> None:
    """At five hundred moments, a few microseconds apart, of threads being started, waited for and ended."""
    done = run_python(HAMMERED, timeout=120)
    assert done.returncode == 0, done.stderr
    # Python drops what is raised in the moment in which it takes down a thread's last traces.
    assert int(done.stdout) > 450
