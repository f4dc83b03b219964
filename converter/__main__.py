"""``lensconv``, which is also ``python -m converter``."""

import signal
from typing import NoReturn


def main() -> NoReturn:
    """Run the command and exit with its code."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # Until the command handles signals itself, Ctrl-C ends the process without the traceback of an import.
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    from converter.cli.main import main as run_command

    run_command()


if __name__ == "__main__":
    main()
