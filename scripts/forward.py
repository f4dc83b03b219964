"""Measure loading and one forward pass of the full-depth Lens transformer, original and quantized.

Every variant runs in a process of its own. It loads the model, runs it on the same random input, and writes its output,
which is compared with the original's. On a CPU, the input is an image of 256x256, and memory is that of the process. On
a GPU, it is 1440x1440, timed by CUDA events after two passes to warm up, and memory is torch's.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from converter import convert, synthesize
from converter._version import __version__
from converter.memory import peak_rss_bytes
from scripts.benchmark import describe_machine

ROOT = Path(__file__).resolve().parents[1]
#: Text tokens of the input, about those of the published prompts.
TEXT_TOKENS = 128
#: Side of the image in pixels, passes to warm up and timed passes, by kind of device.
SCALES = {"cpu": (256, 0, 1), "cuda": (1440, 2, 3)}
#: Folder, dtype and quantized matmul of each variant; the first one is the original.
VARIANTS = {
    "cpu": {
        "original, float32": ("Lens", "float32", None),
        "original, bfloat16": ("Lens", "bfloat16", None),
        "SDNQ uint4": ("Lens-uint4", "bfloat16", False),
        "SDNQ uint4, int8 matmul": ("Lens-uint4", "bfloat16", True),
    },
    "cuda": {
        "original, bfloat16": ("Lens", "bfloat16", None),
        "SDNQ uint4": ("Lens-uint4", "bfloat16", False),
        "SDNQ uint4, int8 matmul": ("Lens-uint4", "bfloat16", True),
    },
}


def main() -> None:
    """Create the models if they do not exist, measure every variant, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=tuple(SCALES), default="cpu", help="where to run")
    parser.add_argument("--layers", type=int, default=48, help="blocks of the model (default 48: 16.4 GB)")
    parser.add_argument("--work", type=Path, default=Path("benchmark-work"), help="folder for the models")
    parser.add_argument("--out", type=Path, help="file for the results (default benchmarks/forward-DEVICE.json)")
    parser.add_argument("--measure", nargs=3, metavar=("VARIANT", "DEVICE", "OUTPUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        variant, device, output = arguments.measure
        print(json.dumps(measure(arguments.work, variant, device, Path(output))))
        return
    arguments.work = arguments.work.resolve()
    original, quantized = arguments.work / "Lens", arguments.work / "Lens-uint4"
    if not original.exists():
        synthesize(original, layers=arguments.layers)
    if not quantized.exists():
        convert(original, quantized)
    results: dict[str, dict[str, Any]] = {}
    for variant in VARIANTS[arguments.device]:
        output = arguments.work / f"output-{len(results)}.npy"
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "scripts.forward",
                "--work",
                arguments.work,
                "--measure",
                variant,
                arguments.device,
                output,
            ],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            cwd=ROOT,
        )
        results[variant] = json.loads(done.stdout)
        results[variant]["relative_error"] = relative_error(output, arguments.work / "output-0.npy")
        print(variant, json.dumps(results[variant]))
    side, warm_up, timed = SCALES[arguments.device]
    report = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": {**describe_machine(), "gpu": gpu(arguments.device)},
        "versions": {"lensconv": __version__, **{name: version(name) for name in ("torch", "sdnq", "diffusers")}},
        "layers": arguments.layers,
        "image_side": side,
        "text_tokens": TEXT_TOKENS,
        "warm_up_passes": warm_up,
        "timed_passes": timed,
        "variants": results,
    }
    file = arguments.out or ROOT / "benchmarks" / f"forward-{arguments.device}.json"
    file.write_text(json.dumps(report, indent=2) + "\n")
    print(f"written to {file}")


def measure(work: Path, variant: str, device: str, output: Path) -> dict[str, Any]:
    """Load one variant, run it, and write its output."""
    import numpy as np
    import torch

    from converter.lens import LensTransformer2DModel
    from converter.models.sdnq_layers import quantized_layers

    folder, dtype_name, matmul = VARIANTS[device][variant]
    dtype = getattr(torch, dtype_name)
    started = time.perf_counter()
    model = LensTransformer2DModel.from_pretrained(work / folder, torch_dtype=dtype).to(device).eval()
    if matmul is not None:
        from sdnq.loader import apply_sdnq_options_to_model

        model = apply_sdnq_options_to_model(model, use_quantized_matmul=matmul)
        active = {layer.sdnq_dequantizer.use_quantized_matmul for layer in quantized_layers(model)}
        if active != {matmul}:
            raise RuntimeError(f"quantized matmul is {active}, not {matmul}")
    load_s = time.perf_counter() - started
    loaded_bytes = torch.cuda.max_memory_allocated() if device == "cuda" else anonymous_rss_bytes()
    side, warm_up, timed = SCALES[device]
    rows = side // 16
    generator = torch.Generator().manual_seed(0)
    config = model.config
    latents = torch.randn(1, rows * rows, config.in_channels, generator=generator)
    features = [
        torch.randn(1, TEXT_TOKENS, config.enc_hidden_dim, generator=generator) for _ in config.selected_layer_index
    ]
    call = {
        "hidden_states": latents.to(device, dtype),
        "encoder_hidden_states": [feature.to(device, dtype) for feature in features],
        "timestep": torch.tensor([0.7], device=device),
        "img_shapes": [(1, rows, rows)],
    }
    with torch.no_grad():
        for _ in range(warm_up):
            model(**call)
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds = []
        for _ in range(timed):
            elapsed, result = time_pass(lambda: model(**call).sample, device)
            seconds.append(elapsed)
    np.save(output, result.float().cpu().numpy())
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else peak_rss_bytes()
    return {"load_s": load_s, "loaded_bytes": loaded_bytes, "forward_s": seconds, "peak_bytes": peak}


def time_pass(run: Any, device: str) -> tuple[float, Any]:
    """Return the seconds of one pass, and its output."""
    import torch

    if device != "cuda":
        started = time.perf_counter()
        result = run()
        return time.perf_counter() - started, result
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    result = run()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1000, result


def relative_error(file: Path, reference: Path) -> float:
    """Return the norm of the difference to the original's output, divided by the norm of that output."""
    import numpy as np

    found, expected = np.load(file).astype(np.float64), np.load(reference).astype(np.float64)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def anonymous_rss_bytes() -> int:
    """Return the memory of this process without pages of files, which the system can drop."""
    (kibibytes,) = re.findall(r"^RssAnon:\s*(\d+) kB$", Path("/proc/self/status").read_text(), flags=re.MULTILINE)
    return int(kibibytes) * 1024


def gpu(device: str) -> str | None:
    """Return the name of the GPU and the version of its driver; None without a GPU."""
    if device != "cuda":
        return None
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
