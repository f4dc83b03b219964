"""Where workers put what they make, and note what is finished."""

from __future__ import annotations

from typing import Any, Protocol

from converter.checkpoint.journal import Finished


class Journal(Protocol):
    """Where finished tensors of the source are noted."""

    @property
    def begun(self) -> Finished:
        """What an interrupted run had begun."""

    def note(self, tensor: str, **facts: Any) -> None:
        """Note that a tensor is finished."""

    def note_begun(self, tensor: str, **facts: Any) -> None:
        """Note that a part of a tensor is finished."""


class Slots(Protocol):
    """What takes the bytes of the output."""

    def write(self, file: str, offset: int, data: bytes | memoryview) -> None:
        """Take bytes at an offset of a file."""


class Follower(Protocol):
    """What works on finished tensors of the output."""

    def finish_slot(self, *names: str) -> None:
        """Say that they are in their slots."""
