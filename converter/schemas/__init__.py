"""JSON Schemas of everything that lensconv prints with ``--json``, of the manifest and of files of measurements."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

#: What there are schemas for.
NAMES = (
    "ablate",
    "ablation",
    "ablation_measurement",
    "bench",
    "benchmark_metrics",
    "card",
    "charts",
    "comparison_matrix",
    "convert",
    "error",
    "evidence",
    "generate",
    "grid",
    "hub",
    "image_fidelity",
    "manifest",
    "measurement",
    "model_cpu_offload_benchmark",
    "plan",
    "prompts",
    "publish",
    "rehearsal",
    "report",
    "reproduce",
    "sdnq_quantization_summary",
    "scores",
    "search",
    "search_measurement",
    "sweep",
    "synth",
    "verify",
    "weight_fidelity",
)


def load_schema(name: str) -> dict[str, Any]:
    """The schema of a command's result, of an ``error``, or of a file."""
    schema: dict[str, Any] = json.loads(resources.files(__name__).joinpath(f"{name}.json").read_text("utf-8"))
    return schema
