"""What tests of the benchmark share."""

from __future__ import annotations

import json
from typing import Any

#: Small and quick; what is measured is the benchmark, not the model.
DRAWING = ("--steps", 2, "--height", 64, "--width", 96, "--negative-prompt", "blur")
#: One process for each model and mode.
ONCE = ("--pairs", 1)
SUITE = """
name = "three"

[[prompts]]
id = "A1"
scenario = "A Kettle"
seed = 301
prompt = 'a tin kettle with a label that says "TEA"'
required_text = ["TEA"]

[[prompts]]
id = "B2"
scenario = "Вывеска"
seed = 302
prompt = 'вывеска "ХЛЕБ" над дверью'
required_text = ["ХЛЕБ"]

[[prompts]]
id = "C3"
scenario = "A | B"
seed = 303
prompt = "a red cube"
"""
#: Seconds that nothing may take; starting workers on a busy machine does.
LIMIT = 240.0


def folded(content: Any, indent: str = "") -> str:
    """JSON, where only what is too long for a line has several."""
    text = json.dumps(content, ensure_ascii=False)
    if len(text) < 1500 or not isinstance(content, dict | list):
        return text
    inner = indent + " "
    if isinstance(content, list):
        return "[" + f",\n{inner}".join(folded(value, inner) for value in content) + "]"
    parts = [f"{json.dumps(key)}: {folded(value, inner)}" for key, value in content.items()]
    return "{" + f",\n{inner}".join(parts) + "}"
