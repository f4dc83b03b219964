"""What was measured with: the machine, the versions and the settings, as labels and texts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from converter.measurement.evidence.names import MODEL_TITLES, MODELS
from converter.measurement.evidence.weights import measured_weights
from converter.presentation.tables.figures import count
from converter.presentation.tables.table import NOTHING, Code, Table

LIBRARIES = ("diffusers", "transformers", "accelerate", "safetensors")
_MACHINE = (
    "hardware",
    "torch",
    "cuda",
    "driver",
    "cudnn",
    "triton",
    "storage",
    "cpu_cores",
    "threads",
    "waiting_threads",
)
#: How quantized models work.
_LAYERS = ("int8_kernel", "sdnq_compiles", "sdnq_environment", "mxfp4")
_ENVIRONMENT = (*_MACHINE, "sdnq", *_LAYERS, *LIBRARIES, "lensconv", "date")
_IMAGE_SETTINGS = ("base_resolution", "aspect_ratio", "width", "height", "num_inference_steps", "guidance_scale")
#: Settings of pipelines other than Lens; the first says which one it is.
_PIPELINE_SETTINGS = ("pipeline", "max_sequence_length")
_SETTINGS = (*_PIPELINE_SETTINGS, *_IMAGE_SETTINGS, "repeats", "pairs", "timing_prompts", "dtype", "compile", "int8")
#: Labels of keys that are not their own labels.
_LABELS = {
    "torch": "PyTorch",
    "cuda": "CUDA",
    "cudnn": "cuDNN",
    "triton": "Triton",
    "cpu_cores": "CPU cores",
    "int8_kernel": "int8 kernel",
    "sdnq_compiles": "SDNQ compiles",
    "sdnq_environment": "variables",
    "mxfp4": "MXFP4",
    "num_inference_steps": "steps",
    "guidance_scale": "guidance",
    "compile": "torch.compile",
    "int8": "int8 layers",
}


def environment(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return labels and texts of an environment.

    Args:
        values: ``environment`` in a file of measurements; what it lacks is left out.
    """
    return _listed(values, _ENVIRONMENT)


def settings(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return labels and texts of the settings of generation.

    Args:
        values: ``settings`` in a file of measurements; what it lacks is left out.
    """
    return _listed(values, _SETTINGS)


def sources_table(sources: Mapping[str, Any]) -> Table:
    """Return the weight files of the models that were measured, with their checksums.

    Args:
        sources: ``sources`` in a file of measurements.
    """
    rows: list[list[object]] = []
    for model, title in zip(MODELS, MODEL_TITLES, strict=True):
        # An ablation is of the original alone.
        if model not in sources:
            continue
        source = sources[model]
        weights = measured_weights(source)
        for name, file in ((name, file) for name, files in weights.items() for file in files):
            path = f"{name}/{file['name']}" if len(weights) > 1 else file["name"]
            cells = [Code(path), count(file["bytes"]), Code(file["sha256"])]
            rows.append([title, source["repo_id"], source.get("revision") or NOTHING, *cells])
    return Table(["Model", "Repository", "Revision", "File", "Bytes", "sha256"], rows, "llllrl")


def _listed(values: Mapping[str, Any], keys: Iterable[str]) -> list[tuple[str, str]]:
    shown = ((_LABELS.get(key, key.replace("_", " ")), _text(values.get(key))) for key in keys)
    return [(label, text) for label, text in shown if text]


def _text(value: Any) -> str:
    """Return a value as a text, which is empty if there is none."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={text}" for name, text in value.items())
    return "" if value is None else str(value)
