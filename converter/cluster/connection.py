"""Opening and closing a connection to Ray, or a cluster of this machine alone."""

from __future__ import annotations

import atexit
import contextlib
import os
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from converter.cluster.cluster import Cluster
from converter.cluster.heads import touch
from converter.cluster.processes import processes_with
from converter.console import SILENT, Reporter
from converter.errors import ClusterError, UsageError, first_line, printable, reason_of
from converter.extras import require_extra
from converter.temporary import temporary_folder
from converter.threads import HeldSignals, begin

#: The address of a cluster that exists while the command runs, on this machine.
LOCAL = "local"
#: The address by which Ray finds a cluster that was started on this machine.
AUTO = "auto"
#: Seconds after which a cluster that has not answered does not answer; Ray itself tries for two minutes, and then ends
#: the process.
_CONNECTING = 45
#: What a cluster of this machine is started with. Statistics are not sent to Ray's makers. Without a token, everyone on
#: this machine could run programs as this user; by default, Ray writes one into the home folder.
_LOCAL_VARIABLES = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    # It would end a process whose child uses the memory; the system ends the child, which costs one figure.
    "RAY_memory_monitor_refresh_ms": "0",
    # Otherwise everything else on the machine comes first, which would lengthen measured times.
    "RAY_worker_niceness": "0",
}
_SECRET = "RAY_AUTH_TOKEN"  # noqa: S105 - its name
#: Where ``auto`` looks first.
_ADDRESS = "RAY_ADDRESS"
#: The function by which Ray prints what happens on nodes.
_PRINTING = "print_to_stdstream"
#: Seconds in which a head that does not answer is given up; Ray itself waits for a minute, and then ends the process.
_GIVING_UP = 8.0
#: Ports that there are.
_PORTS = range(1, 1 << 16)
_MEMBER = "and run this on a machine of the cluster"
#: Bytes of memory for values on their way, by default a third of all.
_LOCAL_STORE_BYTES = 2 << 30
_START = "Start one with `ray start --head`, or use --ray local."
#: Connects as this process will, and ends; what Ray does when nobody answers must not end this process.
_TRY = "import sys, ray; ray.init(address=sys.argv[1], log_to_driver=False, logging_level='CRITICAL'); ray.shutdown()"
#: Where the files of a cluster of this machine are: paths of sockets have 107 characters at most, and Ray adds 61.
_SHORT = Path("/tmp")  # noqa: S108 - only this user may read the folder in it


def check_address(address: str) -> None:
    """Refuse what is not an address of Ray, and a missing package, without connecting.

    Raises:
        UsageError: it is not an address.
        DependencyError: Ray is not installed.
    """
    host, _, port = address.rpartition(":")
    if address == AUTO and "://" in os.environ.get(_ADDRESS, ""):
        raise UsageError(f"--ray auto: {_ADDRESS} is an address for clients", f"Give HOST:PORT, {_MEMBER}.")
    is_place = bool(host) and "/" not in host and port.isdecimal() and int(port) in _PORTS
    if address not in (LOCAL, AUTO) and not is_place:
        raise UsageError(
            f"--ray {printable(address)}: is not an address of Ray",
            f"Use {LOCAL}, {AUTO} or HOST:PORT, {_MEMBER}.",
        )
    require_extra("ray")


@contextmanager
def opened_cluster(address: str, reporter: Reporter = SILENT) -> Iterator[Cluster]:
    """Connect to a cluster for the block, or start one on this machine.

    Args:
        address: ``local``, ``auto``, or ``HOST:PORT`` of a cluster that this machine belongs to.
        reporter: is told what is waited for.

    Raises:
        UsageError: it is not an address.
        DependencyError: Ray is not installed.
        ClusterError: no cluster answers there, or none can be started.
    """
    check_address(address)
    # Ray lets processes on nodes import modules from the current folder, which can contain anything.
    with temporary_folder(_SHORT if address == LOCAL else None) as folder, _kept_environment():
        if address == LOCAL:
            os.environ.update({**_LOCAL_VARIABLES, _SECRET: secrets.token_hex(32), **os.environ})
        else:
            _require_answer(address)
        with _silent_ray():
            cluster = Cluster(_connect(address, folder), tell=reporter.note)
            try:
                yield cluster
            finally:
                # Processes on nodes end before the connection does.
                cluster.stop()
                cluster.clean()
                _shut_down(cluster, folder)


def _connect(address: str, folder: Path) -> Any:
    """Import Ray and connect; Ray replaces handlers of signals.

    Raises:
        ClusterError: it fails.
    """
    import ray

    options: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": "CRITICAL"}
    if address == LOCAL:
        options |= {"include_dashboard": False, "object_store_memory": _LOCAL_STORE_BYTES, "_temp_dir": str(folder)}
    with HeldSignals(), _kept_handlers(), contextlib.chdir(folder):
        try:
            ray.init(**options)
        except (OSError, RuntimeError, ValueError) as error:
            ray.shutdown()
            raise ClusterError(
                f"Ray does not start: {first_line(error)}", "See `ray status` and Ray's logs."
            ) from error
    return ray


def _shut_down(cluster: Cluster, folder: Path) -> None:
    """Disconnect, and end what is left of a cluster whose files are in a folder; Ray leaves some for half a minute."""
    with HeldSignals(), _kept_handlers():
        # Those that Ray's own processes started have other command lines, and other parents afterwards.
        processes = list(processes_with(str(folder)))
        if cluster.has_head:
            cluster.ray.shutdown()
        else:
            wait([begin(cluster.ray.shutdown, "shutdown")], _GIVING_UP)
            # It is called again at the end of the process, and would wait again.
            atexit.unregister(cluster.ray.shutdown)
        for process in processes:
            process.kill()


def _require_answer(address: str) -> None:
    """Connect once in a process of its own.

    Raises:
        ClusterError: nothing answers as Ray does.
    """
    if address != AUTO:
        try:
            touch(address)
        except OSError as error:
            raise ClusterError(f"--ray {printable(address)}: {reason_of(error)}", _START) from error
    command = [sys.executable, "-P", "-c", _TRY, address]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=_CONNECTING,
            check=False,
            start_new_session=True,
        )
    except subprocess.TimeoutExpired as error:
        raise ClusterError(
            f"--ray {printable(address)}: nothing answered as Ray does in {_CONNECTING} s", _START
        ) from error
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        reason = f": {printable(lines[-1])}" if lines else ""
        raise ClusterError(f"--ray {printable(address)}: cannot connect to a cluster of Ray{reason}", _START)


@contextmanager
def _silent_ray() -> Iterator[None]:
    """Keep Ray's messages about processes that ended off stdout for the block; ``log_to_driver`` is about others."""
    from ray._private import worker

    # Not a part of its interface; another version may do without.
    function = getattr(worker, _PRINTING, None)
    setattr(worker, _PRINTING, lambda *_, **__: None)
    try:
        yield
    finally:
        setattr(worker, _PRINTING, function)


@contextmanager
def _kept_environment() -> Iterator[None]:
    """Undo changes of the environment after the block; Ray makes some."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def _kept_handlers() -> Iterator[None]:
    """Set the handler of SIGTERM back after the block; in other threads, Ray leaves it alone."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)
