"""Figures of the published release WaveCut/Lens-SDNQ-uint4-static, in the formats of the files of measurements."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from converter.conversion.release.manifest import SUMMARY_NAME
from converter.measurement.evidence.names import MATRIX_NAME, METRICS_NAME, OFFLOAD_NAME

_FILES = Path(__file__).with_suffix(".json").read_text("utf-8")


def _published(name: str) -> dict[str, Any]:
    """Content of a file that was published, which may be changed."""
    content: dict[str, Any] = json.loads(_FILES)[name]
    return content


#: Makes the content of each of these files, by its name.
PUBLISHED: dict[str, Callable[[], dict[str, Any]]] = {
    name: partial(_published, name) for name in (METRICS_NAME, MATRIX_NAME, OFFLOAD_NAME, SUMMARY_NAME)
}
published_metrics, published_matrix, published_offload, published_summary = PUBLISHED.values()


def write_published(folder: Path) -> Path:
    """Write all of them into a folder."""
    for name, make in PUBLISHED.items():
        (folder / name).write_text(json.dumps(make()))
    return folder


def image_pair(identity: str, seed: int, psnr: float, added: float) -> dict[str, Any]:
    """An entry of ``image_fidelity.json`` without a baseline; its figures are invented."""
    grid = {"original": 0.1, "quantized": 0.2, "added": added}
    size = {"width": 1440, "height": 1440, "num_inference_steps": 20}
    figures = {"identical": False, "psnr_db": psnr, "ssim": 0.5, "lpips": None, "periodic_grid": grid}
    return {"id": identity, "seed": seed, **size, **figures, "baseline": None, "text": []}


def image_fidelity(pairs: list[dict[str, Any]], summary: dict[str, Any]) -> dict[str, Any]:
    """``image_fidelity.json`` of these pairs and of a summary of their figures."""
    return (
        {"schema": "lensconv.fidelity/1", "num_inference_steps": 20, "pairs": pairs}
        | {"summary": {"lpips": None, "baseline": None, "text": None, **summary}}
        | {"methods": dict.fromkeys(("psnr_db", "ssim", "periodic_grid"), "x"), "not_measured": {}}
    )
