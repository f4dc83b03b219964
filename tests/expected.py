"""Whole outputs that tests compare with, kept as files beside them."""

from __future__ import annotations

import os
from pathlib import Path

EXPECTED = Path(__file__).parent / "expected"


def check_expected(name: str, text: str) -> None:
    """Compare a text with the kept one; ``RENEW_EXPECTED=1`` writes it instead, for a reader of the diff to judge."""
    file = EXPECTED / name
    if os.environ.get("RENEW_EXPECTED"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, "utf-8")
    assert text == file.read_text("utf-8")
