"""The local Hub as a server on 127.0.0.1."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import closing
from importlib import util
from typing import TYPE_CHECKING

from converter.errors import DependencyError, UsageError, reason_of
from converter.rehearsal.settings import HubSettings

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from converter.rehearsal.hub import Hub

#: Packages of the extra, by the names that Python imports.
_PACKAGES = ("lz4", "pathspec", "starlette", "uvicorn")
#: Seconds that a connection may be idle.
_IDLE_SECONDS = 30


def check_packages() -> None:
    """Check that the packages for a local Hub are installed.

    Raises:
        DependencyError: one is missing.
    """
    for package in _PACKAGES:
        if util.find_spec(package) is None:
            raise DependencyError(f"{package} is missing", "Run pip install 'lensconv[rehearsal]'.")


def serve(
    settings: HubSettings,
    ready: Callable[[str], None],
    watch: Callable[[Callable[[], None]], None] | None = None,
    application: Callable[[Hub], ASGIApp] | None = None,
) -> None:
    """Serve a local Hub until a signal comes.

    Args:
        settings: how it works.
        ready: called with the endpoint once the Hub accepts requests.
        watch: called with a function that stops the server from any thread.
        application: makes the ASGI application of the Hub; by default ``make_application``.

    Raises:
        DependencyError: a package is missing.
        UsageError: the port is taken.
        OutputError: the folder cannot be used.
    """
    check_packages()
    import uvicorn

    from converter.rehearsal.application import make_application
    from converter.rehearsal.hub import Hub

    with _listen(settings.port) as listener:
        hub = Hub(settings, listener.getsockname()[1])
        with closing(hub.database):
            config = uvicorn.Config(
                (application or make_application)(hub),
                http="h11",
                loop="asyncio",
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="critical",
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=_IDLE_SECONDS,
                timeout_graceful_shutdown=1,
            )
            server = uvicorn.Server(config)

            def stop() -> None:
                server.should_exit = True

            if watch is not None:
                watch(stop)
            # From now on connections wait in the socket, whatever the server is still about to do.
            ready(hub.endpoint)
            server.run(sockets=[listener])


def _listen(port: int) -> socket.socket:
    """Return a socket on 127.0.0.1 that accepts connections.

    Raises:
        UsageError: the port is taken.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise UsageError(f"port {port}: {reason_of(error)}", "Choose another one with --port.") from error
    return listener
