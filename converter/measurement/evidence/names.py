"""Names in files of measurements: of the files, the models, the modes of a benchmark, and the peaks of memory."""

from __future__ import annotations

METRICS_NAME = "benchmark_metrics.json"
MATRIX_NAME = "comparison_matrix.json"
OFFLOAD_NAME = "model_cpu_offload_benchmark.json"
SEQUENTIAL_NAME = "sequential_cpu_offload_benchmark.json"
IMAGES_NAME = "image_fidelity.json"
WEIGHTS_NAME = "weight_fidelity.json"
ABLATION_NAME = "ablation.json"
#: Of several benchmarks, in the folder above theirs: the figures, and their table in Markdown.
SWEEP_NAME, SWEEP_TABLE_NAME = "sweep.json", "sweep.md"

ORIGINAL, QUANTIZED = MODELS = ("original", "quantized")
#: How people read the names of the models, in the same order.
MODEL_TITLES = ("Original", "Quantized")
#: What ``sdnq_quantization_summary.json`` calls the models, in the same order.
SUMMARY_MODELS = ("base", "quant")

#: The mode in which all weights are on the device.
STANDARD = "standard"
#: Files of the modes in which weights are on the CPU until they are needed, by the name of the mode.
OFFLOAD_FILES = {"offload": OFFLOAD_NAME, "sequential": SEQUENTIAL_NAME}

#: Kinds of peaks as tables call them, in the order of their rows.
PEAKS = {
    "allocated": "peak allocated VRAM, GB",
    "reserved": "peak reserved VRAM, GB",
    "rss": "peak memory of the process, GB",
    "device": "peak memory of the device, GB",
}
#: Kinds of peaks as charts call them. A chart shows the first kind that was measured.
CHART_PEAKS = {
    "allocated": "Peak allocated on the GPU",
    "rss": "Peak resident memory of the process",
    "reserved": "Peak reserved on the GPU",
    "device": "Peak in use on the GPU",
}
#: Parts of an offload benchmark.
OFFLOAD_PARTS = ("setup", "cold", "warm")
#: Components whose peaks are measured one by one, in the order in which they run.
STAGES = {"text_encoder": "Text encoder", "transformer": "Transformer", "vae": "VAE"}


def peak_key(kind: str) -> str:
    """Return the key of a peak of this kind; its values are GB of 10^9 bytes."""
    return f"peak_{kind}_gb"
