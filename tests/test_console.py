"""What is printed where, with a clock that tests wind themselves."""

from __future__ import annotations

import io
import json
import os
from contextlib import suppress
from threading import Thread

import pytest

from converter import errors
from converter.console import Console, LineProgress, Progress, readable_size, table
from converter.errors import LensconvError, MalformedCheckpoint, OutputError, printable


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_line_every_few_seconds() -> None:
    clock, lines = Clock(), list[str]()
    progress = LineProgress("converting", 10_000_000_000, lines.append, clock=clock)
    progress.advance(1_000_000_000)
    clock.now += 4.9
    progress.refresh()
    assert lines == []
    clock.now += 0.1
    progress.refresh()
    progress.refresh()
    assert lines == ["converting: 1.000 GB of 10.000 GB, 200.0 MB/s, 45 s left"]
    progress.advance(4_000_000_000)
    clock.now += 5
    progress.refresh()
    assert lines[1:] == ["converting: 5.000 GB of 10.000 GB, 500.0 MB/s, 10 s left"]


def test_what_is_counted_need_not_be_bytes() -> None:
    clock, lines = Clock(), list[str]()
    progress = LineProgress("drawing", 20, lines.append, "steps", clock)
    clock.now += 5
    progress.advance(4)
    progress.refresh()
    assert lines == ["drawing: 4 of 20 steps, 20 s left"]


def test_what_was_done_before_says_nothing_about_speed() -> None:
    clock, lines = Clock(), list[str]()
    progress = LineProgress("converting", 1000, lines.append, clock=clock)
    progress.skip(900)
    clock.now += 5
    progress.refresh()
    assert lines == ["converting: 900 B of 1.0 kB, 0 B/s"]
    progress.advance(50)
    clock.now += 5
    progress.refresh()
    assert lines[1] == "converting: 950 B of 1.0 kB, 5 B/s, 10 s left"


def test_many_threads_may_count() -> None:
    progress = Progress("x", 100)

    def count() -> None:
        for _ in range(1000):
            progress.advance(1)

    threads = [Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert progress.done == 8000


def test_the_right_progress_for_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    lines, terminal = Console(stderr=io.StringIO()), Console(stderr=Terminal())
    assert isinstance(lines.progress("x", 1), LineProgress)
    assert type(Console(quiet=True).progress("x", 1)) is Progress
    with terminal.progress("converting", 100) as bar:
        bar.advance(50)
        bar.refresh()
    assert isinstance(terminal.stderr, Terminal)
    assert "converting" in terminal.stderr.getvalue()


def captured(**options: bool) -> tuple[Console, io.StringIO, io.StringIO]:
    """A console and its streams."""
    stdout, stderr = io.StringIO(), io.StringIO()
    return Console(**options, stdout=stdout, stderr=stderr), stdout, stderr


def test_results_and_errors_as_json() -> None:
    console, stdout, stderr = captured(as_json=True)
    console.result({"a": 1}, "for people")
    console.note("a note")
    assert json.loads(stdout.getvalue()) == {"a": 1}
    assert stderr.getvalue() == "a note\n"
    console, stdout, _ = captured(as_json=True)
    console.error(OutputError("taken", "Move."))
    assert json.loads(stdout.getvalue()) == {"error": {"type": "OutputError", "message": "taken", "hint": "Move."}}


def test_a_reader_that_is_gone_is_not_a_stream_that_cannot_be_written() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    stream = os.fdopen(writer, "w")
    with pytest.raises(BrokenPipeError):
        Console(as_json=True, stdout=stream).result({})
    with suppress(BrokenPipeError):
        stream.close()


def test_results_and_errors_for_people() -> None:
    console, stdout, stderr = captured()
    console.result({"a": 1}, table(["name", "size"], [["[bold]x[/bold]\x1b[31m", "3"]], title="A table"), "done")
    console.warn("careful")
    console.error(OutputError("taken", "Move."))
    text = stderr.getvalue()
    assert stdout.getvalue() == ""
    assert "[bold]x[/bold]" in text
    assert "\x1b" not in text
    assert "warning: careful" in text
    assert "error: taken" in text


def test_quiet_leaves_errors() -> None:
    console, _, stderr = captured(quiet=True)
    console.result({}, "x")
    console.note("x")
    console.warn("x")
    assert stderr.getvalue() == ""
    console.error(OutputError("taken"))
    assert stderr.getvalue() == "error: taken\n"


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ("taken", "taken. Move it."),
        ("say 'v1.'", "say 'v1.' Move it."),
        ("did you mean --json?", "did you mean --json? Move it."),
        ("no such option (try --json)", "no such option (try --json). Move it."),
        ("stop!", "stop! Move it."),
        ("a…", "a… Move it."),
    ],
)
def test_one_mark_ends_a_message_before_its_hint(message: str, text: str) -> None:
    stderr = io.StringIO()
    Console(stderr=stderr).error(OutputError(message, "Move it."))
    assert stderr.getvalue() == f"error: {text}\n"


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (2_500_000, "2.5 MB"), (16_416_900_608, "16.417 GB")],
)
def test_sizes(size: int, text: str) -> None:
    assert readable_size(size) == text


def test_names_from_files_are_made_harmless() -> None:
    assert printable("a\x1b[31mb\nc") == "a\\x1b[31mb\\nc"
    assert printable("é中") == "é中"
    assert printable("\ud800\u202e") == "\\ud800\\u202e"
    assert printable("x" * 300 + "y") == "x" * 100 + "…" + "x" * 98 + "y"
    error = MalformedCheckpoint("a\nb", "is wrong", tensor="\x07")
    assert error.message == "a\\nb: tensor \\x07: is wrong"


def test_every_error_has_an_exit_code_of_the_contract() -> None:
    def below(kind: type[LensconvError]) -> list[type[LensconvError]]:
        return [kind, *(found for child in kind.__subclasses__() for found in below(child))]

    for kind in below(LensconvError)[1:]:
        assert kind.exit_code in (1, 2, 3, 4, 130), kind
        assert kind.__name__ in (errors.__doc__ or ""), f"{kind.__name__} is not in the tree"
