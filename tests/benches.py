"""What tests of the benchmark share."""

from __future__ import annotations

#: Small and quick; what is measured is the benchmark, not the model.
DRAWING = ("--steps", 2, "--height", 64, "--width", 64)
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
IDS = ("A1", "B2", "C3")
#: Seconds that nothing may take; starting workers on a busy machine does.
LIMIT = 240.0
