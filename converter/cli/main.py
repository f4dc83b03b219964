"""The command ``lensconv``: it finds the subcommand, and turns errors into messages and exit codes.

A subcommand is imported when it is called, and its libraries when it needs them. Help and checks of headers therefore
start in a fraction of a second.
"""

from __future__ import annotations

import errno
import importlib
import os
import resource
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType
from typing import NoReturn

import click

from converter._version import __version__
from converter.cli.supervision import supervise
from converter.console import Console
from converter.errors import (
    InputError,
    Interrupted,
    LensconvError,
    MemoryLimitError,
    ResourceError,
    UsageError,
    lacking,
    reason_of,
)
from converter.libraries import missing_package

#: Subcommands in the order in which they are used.
COMMANDS = (
    "plan",
    "convert",
    "verify",
    "reproduce",
    "generate",
    "prompts",
    "ablate",
    "search",
    "bench",
    "grid",
    "charts",
    "report",
    "compare",
    "evidence",
    "card",
    "publish",
    "hub",
    "synth",
)
#: Signals that tell a command to stop.
_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: Seconds until the next try, if a signal came during an import or a finalizer.
_POLL_SECONDS = 0.02
#: What Python says if the system refuses a thread; it has no class of errors for that.
_NO_THREAD = "can't start new thread"
#: Signals that have told the command to stop.
_stops: list[int] = []


class LazyGroup(click.Group):
    """A group whose commands are in modules of the same name, imported on demand."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Return the names of the commands."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - likewise
        """Return the command of that name; None if it does not exist."""
        return importlib.import_module(f"converter.cli.{cmd_name}").command if cmd_name in COMMANDS else None


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Typical workflow: lensconv plan SOURCE, lensconv convert SOURCE OUT, lensconv verify OUT --against SOURCE, "
    "lensconv bench SOURCE OUT --out DIR, lensconv report DIR, lensconv card OUT --evidence DIR, "
    "lensconv publish OUT OWNER/NAME.",
)
@click.version_option(__version__, prog_name="lensconv")
def cli() -> None:
    """Convert the denoising transformer of an image model to SDNQ uint4, check it, measure it and publish it.

    The output has the same bytes that SDNQ itself writes. An interrupted conversion continues with the same command.
    """


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command and exit with its code."""
    _open_closed_streams()
    _allow_open_files()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    console = Console(as_json="--json" in arguments, quiet="--quiet" in arguments)
    supervise(console, _STOPPING)
    sys.unraisablehook = _stop_later
    try:
        for number in _STOPPING:
            # A signal that the shell ignores on purpose (nohup, background jobs) stays ignored.
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, _interrupt)
        code = run(arguments, console)
    except BrokenPipeError:
        # The reader of the output is gone.
        code = 1
    except KeyboardInterrupt:
        # The signal came before the command began, or while its error was printed.
        failure = Interrupted("interrupted")
        console.error(failure)
        code = failure.exit_code
    _ignore_signals()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            # Python would try to write the rest at exit, and change the exit code.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    if code == Interrupted.exit_code:
        # Python would wait for threads, and one may be reading from SDNQ's process. And `python -m` would end by a
        # SIGINT of its own if the interrupt came while compiled text was run, for example to make a named tuple.
        os._exit(code)
    sys.exit(code)


def run(arguments: Sequence[str], console: Console) -> int:
    """Run the command and return its exit code; every expected error becomes a message."""
    _stops.clear()
    try:
        result = cli.main(list(arguments), prog_name="lensconv", standalone_mode=False, obj=console)
        return result if isinstance(result, int) else 0
    except LensconvError as error:
        failure = error
    except click.ClickException as error:
        failure = _usage_error(error)
    except (click.Abort, KeyboardInterrupt):
        failure = Interrupted("interrupted")
    except MemoryError:
        lower = ", or lower --memory and --jobs" if "convert" in arguments[:1] else ""
        failure = MemoryLimitError("there is not enough memory", f"Close other programs{lower}.")
    except BrokenPipeError:
        raise
    except OSError as error:
        failure = _system_error(error)
    except ImportError as error:
        failure = missing_package("a package is missing", error)
    except Exception as error:
        if str(error) == _NO_THREAD:
            failure = _no_process()
        elif _stops:
            # If a signal comes during torch's own code, torch turns the KeyboardInterrupt into an error of its own.
            failure = Interrupted("interrupted")
        else:
            raise
    if _stops and not isinstance(failure, Interrupted):
        failure = Interrupted("interrupted")
    console.error(failure)
    return failure.exit_code


def _interrupt(number: int, frame: FrameType | None) -> None:
    _stops.append(number)
    # Cleaning up takes a moment, and a second signal would interrupt it.
    _ignore_signals()
    if _is_importing(frame):
        _interrupt_soon()
    else:
        raise KeyboardInterrupt


def _interrupt_soon() -> None:
    signal.signal(signal.SIGALRM, _interrupt)
    signal.setitimer(signal.ITIMER_REAL, _POLL_SECONDS)


def _stop_later(unraisable: sys.UnraisableHookArgs) -> None:
    """Try again when Python drops the exception, as it does in finalizers."""
    if unraisable.exc_type is KeyboardInterrupt:
        _interrupt_soon()
    else:
        sys.__unraisablehook__(unraisable)


def _is_importing(frame: FrameType | None) -> bool:
    """Return whether a module is being imported: libraries catch what is raised then, and continue without a part."""
    while frame is not None and frame.f_code is not run.__code__:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def _ignore_signals() -> None:
    # The alarm of a signal that was postponed may still come.
    for number in (*_STOPPING, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)


def _open_closed_streams() -> None:
    """Open empty standard streams in a process that was started without them.

    If they stayed closed, an output file could get the number of a stream, and with it the text that libraries print.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))


def _allow_open_files() -> None:
    """Raise the limit on open files as far as this user may. The usual one is low, for programs that use ``select``."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # The system may have lowered its own limit since.
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _no_process() -> ResourceError:
    return ResourceError(
        "the system refuses another thread or process",
        "Raise the limit on processes: ulimit -u, or that of the container.",
    )


def _usage_error(error: click.ClickException) -> LensconvError:
    context = error.ctx if isinstance(error, click.UsageError) else None
    path = context.command_path if context is not None else "lensconv"
    return UsageError(error.format_message().removesuffix("."), f"See {path} --help.")


def _system_error(error: OSError) -> LensconvError:
    """Turn an error of the system into one of lensconv, if no other module has done so."""
    if error.errno == errno.EAGAIN:
        return _no_process()
    message = f"{error.filename}: {reason_of(error)}" if error.filename else reason_of(error)
    return lacking(error) or InputError(message, "Check the path and its permissions.")
