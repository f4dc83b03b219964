"""Figures of the published release WaveCut/Lens-SDNQ-uint4-static, in the formats of the files of measurements."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from converter.conversion.release.manifest import SUMMARY_NAME
from converter.measurement.evidence.names import MATRIX_NAME, METRICS_NAME, OFFLOAD_NAME

LABELS = ("Original Lens", "SDNQ uint4 static")
#: Scenario, seconds of both models, peak GB of both, by the prompts' order; seeds begin with 301.
_ROWS = (
    ("Midnight Library Weather Station", 19.518, 24.105, 27.461, 23.532),
    ("Desert Observatory Treaty Room", 16.986, 18.565, 27.461, 23.532),
    ("Arctic Submarine Greenhouse", 13.903, 17.882, 27.461, 23.532),
    ("Long English Museum Labels", 14.439, 17.848, 27.461, 23.533),
    ("Tokyo Rooftop Repair Diner", 14.253, 17.779, 27.461, 23.532),
    ("Russian Provincial Print Shop", 16.744, 18.136, 27.467, 23.538),
    ("Ocean Cartography Bakery", 13.918, 14.828, 27.461, 23.532),
    ("Long English Train Notice Wall", 13.906, 14.826, 27.461, 23.532),
    ("Orbital Botanical Courtroom", 16.204, 17.74, 27.461, 23.533),
    ("Byzantine Data Center Chapel", 13.703, 17.665, 27.461, 23.532),
)


def published_matrix() -> dict[str, Any]:
    """``comparison_matrix.json``."""
    rows = [
        {"id": f"P{number:02}", "scenario": scenario, "seed": 300 + number}
        | {"original": {"time_s": original, "peak_allocated_gb": original_peak}}
        | {"quantized": {"time_s": quantized, "peak_allocated_gb": quantized_peak}}
        for number, (scenario, original, quantized, original_peak, quantized_peak) in enumerate(_ROWS, 1)
    ]
    return {"schema": "lensconv.matrix/1", "prompts": rows}


def published_metrics() -> dict[str, Any]:
    """``benchmark_metrics.json``."""

    def model(number: int, repo_id: str, load: tuple[float, ...], storage: float, rest: tuple[float, ...]) -> Any:
        return (
            {"label": LABELS[number], "repo_id": repo_id, "load_time_s": load[0]}
            | {"load_peak_allocated_gb": load[1], "load_peak_reserved_gb": load[2]}
            | {"transformer_storage_gb": storage, "generation_time_s": {"mean": rest[0], "median": rest[1]}}
            | {"generation_peak_allocated_gb": {"mean": rest[2], "max": rest[3]}}
        )

    return {
        "schema": "lensconv.benchmark/1",
        "environment": {"hardware": "RunPod NVIDIA H100 80GB HBM3 (H100 SXM)", "torch": "2.8.0", "cuda": "12.8"}
        | {"storage": "local container disk", "date": "2026-05-24"},
        "settings": {"base_resolution": 1440, "aspect_ratio": "1:1", "num_inference_steps": 20, "guidance_scale": 5.0},
        "models": {
            "original": model(0, "microsoft/Lens", (17.641, 22.342, 22.471), 16.417, (15.357, 14.346, 27.462, 27.467)),
            "quantized": model(
                1, "WaveCut/Lens-SDNQ-uint4-static", (14.605, 18.446, 18.516), 4.301, (17.937, 17.813, 23.533, 23.538)
            ),
        },
        "transformer_storage_reduction_percent": 73.8,
    }


def published_offload() -> dict[str, Any]:
    """``model_cpu_offload_benchmark.json``."""

    def point(time: float, allocated: float, reserved: float) -> dict[str, float]:
        return {"time_s": time, "peak_allocated_gb": allocated, "peak_reserved_gb": reserved}

    def warm(*figures: float) -> dict[str, Any]:
        mean, median, allocated, most_allocated, reserved, most_reserved = figures
        return {
            "time_s": {"mean": mean, "median": median},
            "peak_allocated_gb": {"mean": allocated, "max": most_allocated},
            "peak_reserved_gb": {"mean": reserved, "max": most_reserved},
        }

    return {
        "schema": "lensconv.offload/1",
        "method": "enable_model_cpu_offload",
        "cold_prompt": "P01",
        "warm_prompts": [f"P{number:02}" for number in range(2, 11)],
        "models": {
            "original": {
                "label": LABELS[0],
                "setup": point(15.510, 12.582, 13.881),
                "cold": point(26.217, 19.274, 19.608),
                "warm": warm(18.123, 17.178, 19.271, 19.276, 19.630, 19.803),
            },
            "quantized": {
                "label": LABELS[1],
                "setup": point(13.573, 12.582, 13.881),
                "cold": point(21.473, 15.479, 19.126),
                "warm": warm(17.650, 17.519, 15.480, 15.482, 18.965, 19.210),
            },
        },
    }


def published_summary() -> dict[str, Any]:
    """``sdnq_quantization_summary.json``, its figures."""
    return (
        {"source_model": "microsoft/Lens", "target_model": "WaveCut/Lens-SDNQ-uint4-static"}
        | {"method": "SDNQ uint4 static", "weights_dtype": "uint4", "quantized_matmul_dtype": "int8"}
        | {"group_size": 0, "use_quantized_matmul": True, "dequantize_fp32": False}
        | {"base_transformer_tensor_storage_gb": 16.417, "quant_transformer_tensor_storage_gb": 4.301}
        | {"transformer_storage_reduction_percent": 73.8}
        | {"base_transformer_dtypes": {"FLOAT32": 16_416_900_608}}
        | {"quant_transformer_dtypes": {"BFLOAT16": 2_942_501_632, "UINT8": 1_358_954_496}}
        | {"base_transformer_tensors": 1264, "quant_transformer_tensors": 2224}
    )


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


#: Makes the content of each file that was published, by its name.
PUBLISHED = {
    METRICS_NAME: published_metrics,
    MATRIX_NAME: published_matrix,
    OFFLOAD_NAME: published_offload,
    SUMMARY_NAME: published_summary,
}


def write_published(folder: Path) -> Path:
    """Write all of them into a folder."""
    for name, make in PUBLISHED.items():
        (folder / name).write_text(json.dumps(make()))
    return folder


def shown_figures(value: object) -> set[str]:
    """Figures with a fraction in the content of a file, as tables show them."""
    if isinstance(value, dict | list):
        items = value.values() if isinstance(value, dict) else value
        return set().union(*map(shown_figures, items))
    return {f"{value:.3f}"} if isinstance(value, float) and value not in (5.0, 73.8) else set()
