"""Time and memory of a conversion, against SDNQ's own path and against the floor, in one run.

Four programs take turns on the same synthetic checkpoint: the reference (diffusers loads it in bfloat16, SDNQ
quantizes and saves it), ``lensconv convert`` without and with a plan that an earlier run has kept, and the floor, which
reads the source and writes as many bytes as the output has and does nothing else. Each is a process of its own,
measured by the system when it ends.
"""

from __future__ import annotations

import argparse
import datetime
import filecmp
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from converter._version import __version__
from converter.rendering import render

ROOT = Path(__file__).resolve().parents[1]
PIECE_BYTES = 4 << 20
#: The page with the table, and the lines before and after it.
PAGE = ROOT / "docs" / "how-it-works.md"
BEGIN, END = "<!-- benchmark: begin -->", "<!-- benchmark: end -->"

REFERENCE = """
import sys, torch
from sdnq.loader import save_sdnq_model
from sdnq.quantizer import sdnq_post_load_quant
from converter.models.lens.modules import LensTransformer2DModel
model = LensTransformer2DModel.from_pretrained(sys.argv[1], torch_dtype=torch.bfloat16)
model = sdnq_post_load_quant(
    model, weights_dtype="uint4", quantized_matmul_dtype="int8", use_quantized_matmul=True, dequantize_fp32=False,
    modules_to_not_convert=["*.img_mod.*", "*.txt_mod.*"],
)
save_sdnq_model(model, sys.argv[2])
"""


@dataclass(frozen=True)
class Measurement:
    """What the system says of a finished process; times in seconds."""

    wall: float
    cpu: float
    peak_rss_bytes: int


def main() -> None:
    """Measure, write the JSON, and put the table into the documentation if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=48, help="blocks of the timed model (default 48: 16.4 GB)")
    parser.add_argument("--depths", default="6,12,24,48", help="blocks at which memory is measured")
    parser.add_argument("--runs", type=int, default=3, help="timed runs of each program")
    parser.add_argument("--work", type=Path, default=Path("benchmark-work"), help="folder for sources and outputs")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "conversion.json", help="where results go")
    parser.add_argument("--page", action="store_true", help=f"replace the table in docs/{PAGE.name}")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    os.environ["LENSCONV_CACHE"] = str(arguments.work.resolve() / "cache")
    depths = [measure_depth(arguments.work, int(layers)) for layers in arguments.depths.split(",")]
    result = compare(arguments.work, arguments.layers, arguments.runs) | {"depths": depths}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    table = render("benchmark_table.md.jinja", **result, **summarise(result))
    print(table)
    if arguments.page:
        put_on_page(table, BEGIN, END)


def put_on_page(table: str, begin: str, end: str) -> None:
    """Replace what is between two lines of the page."""
    before, _, rest = PAGE.read_text().partition(begin)
    _, _, after = rest.partition(end)
    PAGE.write_text(f"{before}{begin}\n{table}{end}{after}")


def measure_depth(work: Path, layers: int) -> dict[str, int]:
    """Peak memory of a first and a second conversion at one depth: of all their processes, added up."""
    source, output = synthesize(work, layers), work / "depth"
    forget_plans()
    peaks = []
    for _ in range(2):
        shutil.rmtree(output, ignore_errors=True)
        finished = subprocess.run(lensconv("convert", source, output, "--json"), check=True, capture_output=True)
        peaks.append(json.loads(finished.stdout)["peak_rss_bytes"])
    shutil.rmtree(output)
    first, second = peaks
    return {"layers": layers, "source_bytes": size_of(source), "first_peak_bytes": first, "second_peak_bytes": second}


def forget_plans() -> None:
    """Remove what earlier conversions of this benchmark have kept."""
    shutil.rmtree(os.environ["LENSCONV_CACHE"], ignore_errors=True)


def compare(work: Path, layers: int, runs: int) -> dict[str, Any]:
    """Run the four programs in turn."""
    source = synthesize(work, layers)
    outputs = {name: work / name for name in ("reference", "first", "second", "floor")}
    measured: dict[str, list[Measurement]] = {name: [] for name in outputs}
    for _ in range(runs):
        for name, output in outputs.items():
            shutil.rmtree(output, ignore_errors=True)
            os.sync()
            read(source)
            if name == "reference":
                command = [sys.executable, "-c", REFERENCE, str(source), str(output)]
            elif name != "floor":
                if name == "first":
                    forget_plans()
                command = lensconv("convert", source, output, "--quiet", "--json")
            else:
                written = size_of(outputs["second"])
                command = [sys.executable, __file__, "floor", str(source), str(output), str(written)]
            measured[name].append(measure(command))
            print(f"{name}: {measured[name][-1]}", file=sys.stderr)
    same = all(compare_weights(outputs["reference"], outputs[name]) for name in ("first", "second"))
    for output in outputs.values():
        shutil.rmtree(output)
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": describe_machine(),
        "versions": {"lensconv": __version__, "sdnq": version("sdnq"), "torch": version("torch")},
        "layers": layers,
        "runs": runs,
        "source_bytes": size_of(source),
        "identical_bytes": same,
        "measured": {name: [asdict(item) for item in items] for name, items in measured.items()},
    }


def summarise(result: dict[str, Any]) -> dict[str, Any]:
    """Medians and ranges of what was measured, as the table shows them."""
    labels = {
        "reference": "SDNQ's own path",
        "first": "`lensconv convert`, first run",
        "second": "`lensconv convert`, later runs",
        "floor": "read and write, nothing else",
    }

    def span(name: str, key: str, scale: float, digits: int) -> str:
        values = [item[key] / scale for item in result["measured"][name]]
        low, middle, high = (f"{value:.{digits}f}" for value in (min(values), statistics.median(values), max(values)))
        return f"{middle} ({low} to {high})"

    rows = [
        {
            "label": label,
            "wall": span(name, "wall", 1, 1),
            "cpu": span(name, "cpu", 1, 1),
            "memory": span(name, "peak_rss_bytes", 1e9, 2),
        }
        for name, label in labels.items()
    ]
    walls = {name: statistics.median(item["wall"] for item in items) for name, items in result["measured"].items()}
    return {
        "rows": rows,
        "to_reference": [walls[name] / walls["reference"] for name in ("first", "second")],
        "to_floor": [walls[name] / walls["floor"] for name in ("first", "second")],
    }


def measure(command: list[str]) -> Measurement:
    """Run a process and ask the system what it took.

    The system reports the memory of one process; lensconv, which has two for a while, adds them up in its report.
    """
    started = time.perf_counter()
    with tempfile.TemporaryFile() as stdout:
        environment = {**os.environ, "SDNQ_USE_TORCH_COMPILE": "0"}
        process = subprocess.Popen(command, env=environment, stdout=stdout, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
        if status:
            raise SystemExit(f"{command[:3]} failed with status {status}")
        stdout.seek(0)
        report = stdout.read()
    peak = json.loads(report)["peak_rss_bytes"] if report.startswith(b"{") else usage.ru_maxrss * 1024
    return Measurement(wall, usage.ru_utime + usage.ru_stime, peak)


def lensconv(*arguments: object) -> list[str]:
    """The command line of lensconv."""
    return [sys.executable, "-m", "converter", *map(str, arguments)]


def synthesize(work: Path, layers: int) -> Path:
    """The synthetic source of that depth, made once."""
    source = work / f"source-{layers}"
    if not source.is_dir():
        subprocess.run(lensconv("synth", source, "--layers", layers), check=True)
    return source


def size_of(folder: Path) -> int:
    """Bytes of the weight files in a folder."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def compare_weights(first: Path, second: Path) -> bool:
    """Whether two folders contain the same weight files, byte for byte."""
    names = sorted(file.name for file in first.glob("*.safetensors"))
    match, _, _ = filecmp.cmpfiles(first, second, names, shallow=False)
    return sorted(match) == names == sorted(file.name for file in second.glob("*.safetensors"))


def read(folder: Path) -> None:
    """Read all weights once, so that they come from the page cache next time."""
    buffer = bytearray(PIECE_BYTES)
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass


def floor(source: Path, output: Path, written: int) -> None:
    """Read the source and write so many bytes, with a thread for each core, and do nothing else."""
    output.mkdir()
    workers = len(os.sched_getaffinity(0))
    files = sorted(source.glob("*.safetensors"))
    total = sum(file.stat().st_size for file in files)
    descriptors = [os.open(file, os.O_RDONLY) for file in files]
    pieces = [
        (descriptor, start)
        for descriptor, file in zip(descriptors, files, strict=True)
        for start in range(0, file.stat().st_size, PIECE_BYTES)
    ]
    target = os.open(output / "floor.safetensors", os.O_WRONLY | os.O_CREAT, 0o644)
    os.posix_fallocate(target, 0, written)

    def work(worker: int) -> None:
        buffer = memoryview(bytearray(PIECE_BYTES))
        for number in range(worker, len(pieces), workers):
            descriptor, start = pieces[number]
            os.preadv(descriptor, [buffer], start)
            begin, end = (written * (number + step) // len(pieces) for step in (0, 1))
            os.pwrite(target, buffer[: end - begin], begin)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(f"{total} bytes read, {written} written", file=sys.stderr)


def describe_machine() -> dict[str, Any]:
    """The shape of the machine, without its name."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    model = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {"cores": len(os.sched_getaffinity(0)), "processor": model, "memory_gib": round(memory / 2**30)}


if __name__ == "__main__":
    if sys.argv[1:2] == ["floor"]:
        floor(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
    else:
        main()
