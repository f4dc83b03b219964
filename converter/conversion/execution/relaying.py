"""What a conversion writes, notes and counts, as values that go to another process in order."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from converter.checkpoint.journal import Finished
from converter.checkpoint.reader import ranges
from converter.console import Progress, Reporter
from converter.conversion.execution.converting import Stopped

#: Bytes of results that wait to be taken before a conversion waits, and of one message, besides a piece.
MESSAGE_BYTES = 8 << 20
#: The most bytes of results in one step.
STEP_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes for a slot."""

    file: str
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Note:
    """A tensor of the source is finished, or a file of it is proven."""

    tensor: str
    facts: dict[str, Any]


@dataclass(frozen=True, slots=True)
class NoteBegun:
    """A part of a tensor of the source is finished."""

    tensor: str
    facts: dict[str, Any]


@dataclass(frozen=True, slots=True)
class FinishSlots:
    """Tensors of the output are in their slots."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Count:
    """Bytes of the source are done."""

    bytes: int
    is_skipped: bool = False
    """Whether an earlier run did them."""


@dataclass(frozen=True, slots=True)
class Tell:
    """A line that users want to know."""

    text: str


@dataclass(frozen=True, slots=True)
class Received:
    """Bytes have been received from the Hub."""

    bytes: int


Step = Write | Note | NoteBegun | FinishSlots | Count | Tell | Received


class Outbox:
    """Takes the steps of a conversion from one thread, and gives them to another in order, several at a time.

    It is a ``Journal``, ``Slots`` and a ``Follower``.

    Args:
        begun: what an earlier attempt had begun.
    """

    def __init__(self, begun: Finished) -> None:
        self.begun = begun
        self._steps: list[Step] = []
        self._bytes = 0
        self._is_ended = False
        self._is_stopped = False
        self._changed = threading.Condition()

    def write(self, file: str, offset: int, data: bytes | memoryview) -> None:
        """Take bytes at an offset of a file; they are copied, as buffers are used again.

        Raises:
            Stopped: nobody takes them any longer.
        """
        view = memoryview(data)
        if view.nbytes:
            view = view.cast("B")
        for start, stop in ranges(view.nbytes, STEP_BYTES):
            self.put(Write(file, offset + start, bytes(view[start:stop])), stop - start)

    def note(self, tensor: str, **facts: Any) -> None:
        """Take the note that a tensor is finished. Raises what ``write`` raises."""
        self.put(Note(tensor, facts))

    def note_begun(self, tensor: str, **facts: Any) -> None:
        """Take the note that a part of a tensor is finished. Raises what ``write`` raises."""
        self.put(NoteBegun(tensor, facts))

    def finish_slot(self, *names: str) -> None:
        """Take the news that tensors are in their slots. Raises what ``write`` raises."""
        self.put(FinishSlots(names))

    def put(self, step: Step, size: int = 0) -> None:
        """Take a step, with so many bytes. Raises what ``write`` raises."""
        with self._changed:
            self._changed.wait_for(lambda: self._bytes < MESSAGE_BYTES or self._is_stopped)
            if self._is_stopped:
                raise Stopped
            self._steps.append(step)
            self._bytes += size
            self._changed.notify_all()

    def end(self) -> None:
        """Say that no further step comes."""
        with self._changed:
            self._is_ended = True
            self._changed.notify_all()

    def stop(self) -> None:
        """Say that nobody takes steps any longer."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()

    def messages(self) -> Iterator[list[Step]]:
        """Yield the steps until ``end`` is called, as many at a time as there are."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._steps) or self._is_ended)
                steps, self._steps, self._bytes = self._steps, [], 0
                self._changed.notify_all()
            if not steps:
                return
            yield steps


class RelayedProgress(Progress):
    """Counts in another process.

    Args:
        outbox: takes what is counted.
    """

    def __init__(self, outbox: Outbox) -> None:
        super().__init__()
        self._outbox = outbox

    def skip(self, size: int) -> None:
        """Count what was done before."""
        if size:
            self._outbox.put(Count(size, is_skipped=True))

    def advance(self, size: int) -> None:
        """Count work that was just done."""
        if size:
            self._outbox.put(Count(size))


class RelayedReporter(Reporter):
    """Shows notes in another process.

    Args:
        outbox: takes them.
    """

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox

    def note(self, text: str) -> None:
        """Show a line that users want to know."""
        self._outbox.put(Tell(text))
