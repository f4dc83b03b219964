"""JSON Schemas of everything that lensconv prints with ``--json``, and of the manifest."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

#: What there are schemas for.
NAMES = ("convert", "error", "generate", "manifest", "plan", "synth", "verify")


def load_schema(name: str) -> dict[str, Any]:
    """The schema of a command's result, of an ``error``, or of the ``manifest``."""
    schema: dict[str, Any] = json.loads(resources.files(__name__).joinpath(f"{name}.json").read_text("utf-8"))
    return schema
