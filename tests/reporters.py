"""A reporter for tests: it keeps what it is told."""

from __future__ import annotations

from converter.console import Reporter


class Notes(Reporter):
    """Keeps the notes, in their order."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        """Keep it."""
        self.texts.append(text)
