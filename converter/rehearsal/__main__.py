"""The process of a local Hub that another process starts.

It reads settings from stdin and stops when stdin ends. Settings contain tokens, which any user of the machine could
read on a command line.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from converter.console import Console
from converter.errors import LensconvError
from converter.rehearsal.server import serve
from converter.rehearsal.settings import HubSettings

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from converter.rehearsal.hub import Hub


def main(application: Callable[[Hub], ASGIApp] | None = None) -> int:
    """Serve until the process that started this ends; return the exit code.

    Args:
        application: makes the ASGI application of the Hub; by default that of ``serve``.
    """
    console = Console(as_json=True)

    def watch(stop: Callable[[], None]) -> None:
        def wait() -> None:
            sys.stdin.read()
            stop()

        threading.Thread(target=wait, daemon=True).start()

    try:
        settings = HubSettings.from_json(sys.stdin.readline())
        serve(settings, lambda endpoint: console.result({"endpoint": endpoint}), watch, application)
    except LensconvError as error:
        console.error(error)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
