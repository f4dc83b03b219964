"""The process of a local Hub that another one starts: settings on stdin, and it ends when stdin does.

Settings hold tokens, which everybody on the machine could read on a command line.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable

from converter.console import Console
from converter.errors import LensconvError
from converter.rehearsal.server import serve
from converter.rehearsal.settings import HubSettings


def main() -> int:
    """Serve until whoever started this is gone; gives the exit code."""
    console = Console(as_json=True)

    def watch(stop: Callable[[], None]) -> None:
        def wait() -> None:
            sys.stdin.read()
            stop()

        threading.Thread(target=wait, daemon=True).start()

    try:
        settings = HubSettings.from_json(sys.stdin.readline())
        serve(settings, lambda endpoint: console.result({"endpoint": endpoint}), watch)
    except LensconvError as error:
        console.error(error)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
