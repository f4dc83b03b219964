"""The local Hub as a server on 127.0.0.1, and as a process that another process starts."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING

from converter.console import Console
from converter.errors import LensconvError, UsageError, reason_of
from converter.extras import require_extra
from converter.rehearsal.settings import HubSettings

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from converter.rehearsal.hub import Hub

#: Seconds that a connection may be idle.
_IDLE_SECONDS = 30


def serve(
    settings: HubSettings,
    ready: Callable[[str], None],
    application: Callable[[Hub], ASGIApp] | None = None,
    *,
    until_stdin_ends: bool = False,
) -> None:
    """Serve a local Hub until a signal comes.

    Args:
        settings: how it works.
        ready: called with the endpoint once the Hub accepts requests.
        application: makes the ASGI application of the Hub; by default ``make_application``.
        until_stdin_ends: whether the end of stdin stops the server, too.

    Raises:
        DependencyError: a package is missing.
        UsageError: the port is taken.
        OutputError: the folder cannot be used.
    """
    require_extra("rehearsal")
    import uvicorn

    from converter.rehearsal.application import make_application
    from converter.rehearsal.hub import Hub

    with _listen(settings.port) as listener:
        hub = Hub(settings, listener.getsockname()[1])
        with closing(hub.database.connection):
            config = uvicorn.Config(
                (application or make_application)(hub),
                http="h11",
                loop="asyncio",
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="critical",
                timeout_keep_alive=_IDLE_SECONDS,
                timeout_graceful_shutdown=1,
            )
            server = uvicorn.Server(config)

            def stop_with_stdin() -> None:
                sys.stdin.read()
                server.should_exit = True

            if until_stdin_ends:
                threading.Thread(target=stop_with_stdin, daemon=True).start()
            # From now on, connections wait in the socket until the server is ready.
            ready(hub.endpoint)
            server.run(sockets=[listener])


def _listen(port: int) -> socket.socket:
    """Return a socket on 127.0.0.1 that accepts connections.

    Raises:
        UsageError: the port is taken.
    """
    # Only if the protocol is named does asyncio set TCP_NODELAY; without that, each answer takes 40 ms longer.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise UsageError(f"port {port}: {reason_of(error)}", "Choose another one with --port.") from error
    return listener


def main(application: Callable[[Hub], ASGIApp] | None = None) -> int:
    """Serve until the process that started this ends; return the exit code.

    It reads settings from stdin, as they contain tokens, which any user of the machine could read on a command line.

    Args:
        application: makes the ASGI application of the Hub; by default that of ``serve``.
    """
    console = Console(as_json=True)

    try:
        settings = HubSettings.from_json(sys.stdin.readline())
        serve(settings, lambda endpoint: console.result({"endpoint": endpoint}), application, until_stdin_ends=True)
    except LensconvError as error:
        console.error(error)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
