"""The only module that prints.

Results go to stdout only with ``--json``, as exactly one object; everything for people goes to stderr. With ``--quiet``
only errors are printed. Text from files is printed as text, never as markup and never with control characters.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO, cast

from converter.errors import LensconvError, OutputError, printable, reason_of

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.console import OverflowMethod, RenderableType

#: Seconds between two lines of progress, if stderr is not a terminal.
LINE_INTERVAL = 5.0
#: Columns below which a width is not that of a terminal. Some programs set COLUMNS=0, with which rich prints nothing.
NARROWEST = 20
#: Columns where the width is unknown, as in ``shutil.get_terminal_size``.
DEFAULT_WIDTH = 80
#: Characters of one line for people; names from files can be very long.
LINE_LIMIT = 2000


class Progress:
    """How much of some work is done. This class shows nothing.

    Args:
        label: names the work.
        total: how much there is to do.
        unit: what is counted; empty for bytes.
        clock: returns seconds, from any start.
    """

    def __init__(
        self, label: str = "", total: int = 0, unit: str = "", clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.label = label
        self.total = total
        self.unit = unit
        self.done = 0
        self._clock = clock
        self._started = clock()
        self._skipped = 0
        self._lock = threading.Lock()

    def skip(self, size: int) -> None:
        """Count what was done before this run, and ignore it in the speed."""
        with self._lock:
            self.done += size
            self._skipped += size

    def advance(self, size: int) -> None:
        """Count work that was just done. Any thread may call this."""
        with self._lock:
            self.done += size

    @property
    def rate(self) -> float:
        """How much was done per second so far."""
        return (self.done - self._skipped) / max(self._clock() - self._started, 1e-9)

    def refresh(self) -> None:
        """Show the state, if the last one is old enough. Only the main thread calls this."""

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        self.refresh()


class LineProgress(Progress):
    """Print a line every few seconds, for logs.

    Args:
        write: prints one line.
    """

    def __init__(
        self,
        label: str,
        total: int,
        write: Callable[[str], None],
        unit: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(label, total, unit, clock)
        self._write = write
        self._next = self._started + LINE_INTERVAL

    def refresh(self) -> None:
        """Print a line if the last one is old enough."""
        now = self._clock()
        if now < self._next:
            return
        self._next = now + LINE_INTERVAL
        left = (self.total - self.done) / self.rate if self.done > self._skipped else None
        if self.unit:
            state = f"{self.done} of {self.total} {self.unit}"
        else:
            done, total, rate = (readable_size(size) for size in (self.done, self.total, int(self.rate)))
            state = f"{done} of {total}, {rate}/s"
        self._write(f"{self.label}: {state}" + (f", {left:.0f} s left" if left is not None else ""))


class BarProgress(Progress):
    """Draw a bar with the amount done, the speed (of bytes) and the time left, for terminals.

    Args:
        console: the terminal.
    """

    def __init__(self, label: str, total: int, console: RichConsole, unit: str = "") -> None:
        from rich import progress

        super().__init__(label, total, unit)
        counted: tuple[progress.ProgressColumn, ...] = (progress.DownloadColumn(), progress.TransferSpeedColumn())
        if unit:
            counted = (progress.MofNCompleteColumn(), progress.TextColumn(unit))
        self._bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            *counted,
            progress.TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
        )
        self._task = self._bar.add_task(label, total=total)

    def refresh(self) -> None:
        """Draw the bar."""
        self._bar.update(self._task, completed=self.done, description=self.label)

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.refresh()
        self._bar.stop()


class Reporter:
    """Receives the progress and the notes of some work. This class shows nothing."""

    def progress(self, label: str, total: int, unit: str = "") -> Progress:
        """Return a context manager that shows the progress of work on ``total`` bytes, or on ``total`` units."""
        return Progress(label, total, unit)

    def note(self, text: str) -> None:
        """Show a line that users want to know."""

    def confirm(self, question: str) -> bool:  # noqa: ARG002 - for those who can ask
        """Ask a yes-or-no question; return False if nobody can be asked."""
        return False


#: The default reporter of library calls.
SILENT = Reporter()


@dataclass
class Console(Reporter):
    """Prints the results, notes, errors and progress of a command."""

    as_json: bool = False
    """Whether the result is one JSON object on stdout."""
    quiet: bool = False
    """Whether to print errors only."""
    stdout: TextIO | None = None
    stderr: TextIO | None = None

    def result(self, payload: Mapping[str, Any], *render: RenderableType) -> None:
        """Print the result: the payload as JSON, or its rendering for people."""
        if self.as_json:
            self._write_json(payload)
        elif not self.quiet:
            for item in render:
                # Rich forgets of a text that it is not to be wrapped, unless it is told again.
                whole = getattr(item, "no_wrap", None) is True
                text = printable(item, LINE_LIMIT) if isinstance(item, str) else item
                self._rich().print(text, soft_wrap=whole)

    def note(self, text: str) -> None:
        """Print a line that people want to know, unless ``--quiet`` is given."""
        if not self.quiet:
            self._write(text)

    def confirm(self, question: str) -> bool:
        """Ask a yes-or-no question at the terminal; return False without a terminal, and with ``--quiet``."""
        import click

        if self.quiet or not (sys.stdin.isatty() and self._error_stream().isatty()):
            return False
        return click.confirm(printable(question, LINE_LIMIT), err=True)

    def warn(self, text: str) -> None:
        """Print a warning, unless ``--quiet`` is given."""
        if not self.quiet:
            self._write(f"warning: {text}")

    def error(self, error: LensconvError) -> None:
        """Print what went wrong, and what to do about it."""
        if self.as_json:
            with suppress(OutputError):
                self._write_json(error.to_dict())
                return
        self._write(f"error: {error.with_hint}")

    def progress(self, label: str, total: int, unit: str = "") -> Progress:
        """Show progress: as a bar on a terminal, as lines elsewhere."""
        if self.quiet:
            return Progress(label, total, unit)
        if self._error_stream().isatty():
            return BarProgress(label, total, self._rich(), unit)
        return LineProgress(label, total, self._write, unit)

    def _write(self, line: str) -> None:
        stream = self._error_stream()
        # One write for each line, so that lines of several processes do not mix.
        stream.write(printable(line, LINE_LIMIT) + "\n")
        stream.flush()

    def _write_json(self, payload: Mapping[str, Any]) -> None:
        stream = self.stdout or sys.stdout
        try:
            stream.write(json.dumps(payload, indent=2) + "\n")
            stream.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputError(f"the result cannot be written to stdout: {reason_of(error)}") from error

    def _error_stream(self) -> TextIO:
        return cast(TextIO, _Forgiving(self.stderr or sys.stderr))

    def _rich(self) -> RichConsole:
        from rich.console import Console as RichConsole

        rich = RichConsole(file=self._error_stream(), highlight=False, markup=False, emoji=False)
        if rich.width < NARROWEST:
            rich.width = DEFAULT_WIDTH
        return rich


class _Forgiving:
    """A stream that ignores errors when it writes: if the reader is gone, the work must continue.

    Args:
        stream: the stream to write to.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, if possible."""
        with suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, if possible."""
        with suppress(OSError, ValueError):
            self._stream.flush()


def readable_size(size: int) -> str:
    """Format a number of bytes for people: GB are 10^9 bytes."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            return f"{size / factor:.{3 if unit == 'GB' else 1}f} {unit}"
    return f"{size} B"


def verdict(text: str, *, ok: bool) -> RenderableType:
    """Return a line about something that was checked, with a mark before it."""
    from rich.text import Text

    mark = Text("  ok    ", style="green") if ok else Text("  FAIL  ", style="bold red")
    return mark + Text(printable(text, LINE_LIMIT), style="default")


def table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "", folds: bool = False
) -> RenderableType:
    """Return a table for people; every column except the first is aligned right.

    Args:
        columns: what they are called.
        rows: their cells.
        title: what stands above.
        folds: whether names that are too long for the first column take another line, and are not cut.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    result = Table(title=printable(title) or None, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    for number, column in enumerate(columns):
        overflow: OverflowMethod = "fold" if folds and not number else "ellipsis"
        result.add_column(Text(printable(column)), justify="right" if number else "left", overflow=overflow)
    for row in rows:
        result.add_row(*(Text(printable(cell)) for cell in row))
    return result
