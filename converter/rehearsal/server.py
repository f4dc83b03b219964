"""The local Hub as a server on 127.0.0.1."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from importlib import util
from typing import TYPE_CHECKING

from converter.errors import DependencyError, UsageError, reason_of
from converter.rehearsal.settings import HubSettings

if TYPE_CHECKING:
    from starlette.types import Scope

#: Packages of the extra, by the names that Python imports.
_PACKAGES = ("starlette", "uvicorn")
#: Seconds that a connection may be idle.
_IDLE_SECONDS = 30


def check_packages() -> None:
    """Check that the packages for a local Hub are there.

    Raises:
        DependencyError: one is missing.
    """
    for package in _PACKAGES:
        if util.find_spec(package) is None:
            raise DependencyError(f"{package} is missing", "Run pip install 'lensconv[rehearsal]'.")


def serve(
    settings: HubSettings, ready: Callable[[str], None], watch: Callable[[Callable[[], None]], None] | None = None
) -> None:
    """Serve a local Hub until a signal comes.

    Args:
        settings: how it works.
        ready: called with the endpoint once requests are taken.
        watch: called with a function that ends the server from any thread.

    Raises:
        DependencyError: a package is missing.
        UsageError: the port is taken.
        OutputError: the folder cannot be used.
    """
    check_packages()
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol

    from converter.rehearsal.application import Application
    from converter.rehearsal.hub import Hub

    connections: dict[tuple[str, int], asyncio.Transport] = {}

    class Protocol(H11Protocol):
        """Remembers its connection, so that a fault can drop it."""

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as its base  # type: ignore[override]
            """Note a new connection."""
            super().connection_made(transport)
            connections[transport.get_extra_info("peername")[:2]] = transport

        def connection_lost(self, exc: Exception | None) -> None:
            """Forget one that is gone."""
            connections.pop(self.transport.get_extra_info("peername")[:2], None)
            super().connection_lost(exc)

    def drop(scope: Scope) -> None:
        connections[scope["client"]].abort()

    with _listen(settings.port) as listener:
        port = listener.getsockname()[1]
        hub = Hub(settings, port)
        try:
            config = uvicorn.Config(
                Application(hub, drop),
                http=Protocol,
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
            # Connections wait in the socket from now on, whatever the server is still about to do.
            ready(hub.endpoint)
            server.run(sockets=[listener])
        finally:
            hub.close()


def _listen(port: int) -> socket.socket:
    """A socket on 127.0.0.1 that takes connections.

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
