"""A reporter for tests: it keeps what it is told."""

from __future__ import annotations

from converter.console import Progress, Reporter


class Notes(Reporter):
    """Keeps the notes and the progress, in their order."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.shown: list[Progress] = []

    def progress(self, label: str, total: int, unit: str = "") -> Progress:
        """Keep it."""
        self.shown.append(Progress(label, total, unit))
        return self.shown[-1]

    def note(self, text: str) -> None:
        """Keep it."""
        self.texts.append(text)
