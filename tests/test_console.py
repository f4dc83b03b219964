"""What is printed where, with a clock that tests wind themselves."""

from __future__ import annotations

import io
import json
import os
import re
from contextlib import suppress

import pytest

from converter import errors
from converter.console import Console, LineProgress, Progress, Reporter, readable_size, table, verdict
from converter.errors import LensconvError, MalformedCheckpoint, OutputError, printable, unreadable


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


def shown(total: int, unit: str, *steps: tuple[float, int, int]) -> list[str]:
    """The lines of a progress after each step: seconds that pass, what is skipped and what is done."""
    clock, lines = Clock(), list[str]()
    progress = LineProgress("work", total, lines.append, unit, clock)
    for seconds, skipped, done in steps:
        progress.skip(skipped)
        progress.advance(done)
        with progress:
            clock.now += seconds
        progress.__exit__()
    return lines


def test_a_line_every_few_seconds() -> None:
    assert shown(10**10, "", (4.9, 0, 10**9), (0.1, 0, 0), (4.9, 0, 0), (0.1, 0, 4 * 10**9)) == [
        "work: 1.000 GB of 10.000 GB, 200.0 MB/s, 45 s left",
        "work: 5.000 GB of 10.000 GB, 500.0 MB/s, 10 s left",
    ]
    assert shown(20, "steps", (5, 0, 4)) == ["work: 4 of 20 steps, 20 s left"]
    # What was done before says nothing about speed.
    assert shown(1000, "", (5, 900, 0), (5, 0, 50)) == [
        "work: 900 B of 1.0 kB, 0 B/s",
        "work: 950 B of 1.0 kB, 5 B/s, 10 s left",
    ]


def test_the_right_progress_for_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    lines, terminal = Console(stderr=io.StringIO()), Console(stderr=Terminal())
    for reporter, kind in ((lines, LineProgress), (Console(quiet=True), Progress), (Reporter(), Progress)):
        made = reporter.progress("x", 4, "images")
        assert (type(made), made.label, made.total, made.unit) == (kind, "x", 4, "images")
    with terminal.progress("converting", 100) as bar:
        bar.advance(50)
        bar.label = "converting more"
    with terminal.progress("drawing", 4, "images"):
        pass
    assert isinstance(terminal.stderr, Terminal)
    shown = terminal.stderr.getvalue()
    words = ("converting more", "50/100 bytes", "31m?", "-:--", "drawing", "0/4", "images")
    assert [word for word in words if word not in shown] == []
    # Nothing of a bar stays: the cursor goes up, and its line is erased.
    assert shown.count("\x1b[1A\x1b[2K") == 2


def captured(**options: bool) -> tuple[Console, io.StringIO, io.StringIO]:
    """A console and its streams."""
    stdout, stderr = io.StringIO(), io.StringIO()
    return Console(**options, stdout=stdout, stderr=stderr), stdout, stderr


def test_a_width_that_no_terminal_has_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    def printed(stream: io.StringIO, columns: str) -> str:
        monkeypatch.setenv("COLUMNS", columns)
        console = Console(stderr=stream)
        console.result({}, table(["name", "size"], [["x" * 30, "1 B"]]), verdict("sound " * 20, ok=True), "done " * 20)
        with console.progress("reading", 10) as shown:
            shown.advance(10)
        return stream.getvalue()

    monkeypatch.setenv("TERM", "xterm")
    for stream in (io.StringIO, Terminal):
        normal = printed(stream(), "80")
        assert normal.count("done") == normal.count("sound") == 20
        found = [printed(stream(), columns) for columns in ("0", "1", "19", "-3", "many", "")]
        assert found == [normal] * len(found)
        assert printed(stream(), "20") != normal


def test_results_and_errors_as_json() -> None:
    error = OutputError("taken", "Move.")
    console, stdout, stderr = captured(as_json=True)
    console.result({"a": 1}, "for people")
    console.note("a note")
    console.error(error)
    text = '{\n  "error": {\n    "type": "OutputError",\n    "message": "taken",\n    "hint": "Move."\n  }\n}\n'
    assert (stdout.getvalue(), stderr.getvalue()) == ('{\n  "a": 1\n}\n' + text, "a note\n")
    again = LensconvError.from_dict(json.loads(text)["error"])
    assert (type(again), again.message, again.hint) == (OutputError, "taken", "Move.")
    assert type(LensconvError.from_dict({"type": "Other", "message": "", "hint": ""})) is LensconvError


def test_a_reader_that_is_gone_is_not_a_stream_that_cannot_be_written() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    stream = os.fdopen(writer, "w", buffering=1)
    with pytest.raises(BrokenPipeError):
        Console(as_json=True, stdout=stream).result({})
    # What is said to people may get lost, now and when the stream is closed.
    Console(stderr=stream).note("x")
    with suppress(BrokenPipeError):
        stream.close()
    Console(stderr=stream).note("x")


def test_results_and_errors_for_people() -> None:
    console, stdout, stderr = captured()
    rows = [["[bold]x[/bold]\x1b[31m", "3"], ["y", "1234567"]]
    console.result({"a": 1}, table(["name", "size"], rows, title="A table"), "done " * 500, verdict("[b]\n", ok=False))
    console.warn("careful")
    console.error(OutputError("taken", "Move."))
    lines = stderr.getvalue().splitlines()
    middle = [line for line in lines if "done" in line]
    assert [line.rstrip() for line in lines if line not in middle] == [
        *("A table", "", "  name                        size", " " + "─" * 34, "  [bold]x[/bold]\\x1b[31m         3"),
        *("  y                        1234567", "", "  FAIL  [b]\\n", "warning: careful", "error: taken. Move."),
    ]
    assert (stdout.getvalue(), sum(map(len, middle))) == ("", 2000)


def test_quiet_leaves_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    console, _, stderr = captured(quiet=True)
    console.result({}, "x")
    console.note("x")
    console.warn("x")
    console.error(OutputError("taken"))
    assert stderr.getvalue() == "error: taken\n"
    # Nobody is asked either, even at a terminal.
    for quiet in (True, False):
        monkeypatch.setattr("sys.stdin", Terminal("y\n"))
        assert Console(quiet=quiet, stderr=Terminal()).confirm("Delete it?") != quiet


def test_one_mark_ends_a_message_before_its_hint() -> None:
    ended = ("say 'v1.'", "did you mean --json?", "stop!", 'say "so!"', "a…")
    messages = ("taken", "no such option (try --json)", *(message for message in ended))
    texts = [OutputError(message, "Move it.").with_hint for message in messages]
    assert texts == [f"{message}{'' if message in ended else '.'} Move it." for message in messages]


def test_sizes() -> None:
    sizes = (0, 999, 1000, 999_949, 10**6, 2_500_000, 10**9, 16_416_900_608)
    texts = "0 B, 999 B, 1.0 kB, 999.9 kB, 1.0 MB, 2.5 MB, 1.000 GB, 16.417 GB"
    assert ", ".join(map(readable_size, sizes)) == texts


def test_names_from_files_are_made_harmless() -> None:
    assert printable("a\x1b[31mb\nc") == "a\\x1b[31mb\\nc"
    assert printable("é中") == "é中"
    assert printable("\ud800\u202e") == "\\ud800\\u202e"
    assert printable("x" * 200) == "x" * 200
    assert printable("x" * 300 + "y") == "x" * 100 + "…" + "x" * 98 + "y"
    assert unreadable("a", OSError("odd"), "Look.").with_hint == "a: odd. Look."
    long = OutputError("x" * 3000, "x" * 3000)
    assert [len(text) for text in (long.message, long.hint, str(verdict("x" * 3000, ok=True)))] == [2000, 2000, 2008]
    assert MalformedCheckpoint("a\nb", "is wrong", tensor="\x07").message == "a\\nb: tensor \\x07: is wrong"


def test_every_error_has_its_place_and_exit_code_in_the_tree() -> None:
    def below(kind: type[LensconvError]) -> list[type[LensconvError]]:
        return [kind, *(found for child in kind.__subclasses__() for found in below(child))]

    drawn, above, codes = {}, ["Exception"] * 9, {"Exception": ""}
    for branch, name, code in re.findall(r"^([│├└─ ]*)(\w+)  +(?:exit (\d+))?", errors.__doc__ or "", re.MULTILINE):
        parent, above[len(branch) // 4 + 1] = above[len(branch) // 4], name
        codes[name] = code or codes[parent]
        drawn[name] = (parent, int(codes[name]))
    assert {kind.__name__: (kind.__mro__[1].__name__, kind.exit_code) for kind in below(LensconvError)} == drawn
