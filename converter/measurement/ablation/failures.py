"""Variants that could not be measured at one level, and why."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from converter.errors import ImageError
from converter.measurement.prompts.suite import SuitePrompt


class Failures:
    """The first prompt at which each variant failed.

    Prompts after it do not count, though another thread may have measured one before: so the figures are those of one
    prompt after the other, wherever each was measured.

    Args:
        prompts: all that are measured, in their order.
    """

    def __init__(self, prompts: Sequence[SuitePrompt]) -> None:
        self._prompts = list(prompts)
        self._found: dict[str, tuple[int, str]] = {}
        self._lock = threading.Lock()

    def note(self, digest: str, prompt: SuitePrompt, error: ImageError) -> None:
        """Note that a variant failed at a prompt. Any thread may call this."""
        failed = self._prompts.index(prompt), error.message
        with self._lock:
            self._found[digest] = min(failed, self._found.get(digest, failed))

    def counted(self, digest: str) -> list[SuitePrompt]:
        """The prompts before the one at which a variant failed; all if it did not."""
        return self._prompts[: self._found[digest][0]] if digest in self._found else self._prompts

    def reason(self, digest: str) -> str | None:
        """Why a variant failed; None if it did not."""
        return self._found[digest][1] if digest in self._found else None
