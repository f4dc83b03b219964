"""What it costs to convert a model straight from a Hub, against downloading it, at the same speed of the link.

A synthetic checkpoint with the layout of microsoft/Lens is put on a local Hub. Its answers go over a link whose speed
all connections share; the link adds no delay. Three things take turns: huggingface_hub downloads the repo, and at once
``lensconv convert`` converts the download; ``lensconv convert hf://`` without a kept plan; the same with one. What a
download alone takes is what the first half of the first thing takes. Everything comes over plain HTTP. While a program
runs, the disk space of all its files is added up several times a second.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from converter._version import __version__
from converter.checkpoint.checksum import file_sha256
from converter.rehearsal.settings import DEFAULT_NAME, HubSettings
from converter.rendering import render
from scripts.benchmark import PAGE, ROOT, describe_machine, put_on_page, synthesize
from scripts.publish_speed import bytes_below, hf_upload, link_blobs, run
from scripts.slow_hub import SlowHub, slow_hub

RESULTS = ROOT / "benchmarks" / "streaming.json"
#: The lines before and after the table on its page.
BEGIN, END = "<!-- streaming: begin -->", "<!-- streaming: end -->"
SOURCE = f"{DEFAULT_NAME}/Lens"
DOWNLOAD = """
import json, sys
from huggingface_hub import snapshot_download
from converter.memory import peak_rss_bytes
snapshot_download(sys.argv[1], local_dir=sys.argv[2])
print(json.dumps({"peak_rss_bytes": peak_rss_bytes()}))
"""
LABELS = {
    "download": "downloading alone",
    "download_then_convert": "downloading, then `lensconv convert`",
    "stream": "`lensconv convert hf://`, first run",
    "stream_again": "`lensconv convert hf://`, later runs",
}
#: Seconds between two looks at the disk.
_INTERVAL = 0.1


@dataclass(frozen=True)
class Sample:
    """A run of a program."""

    wall: float
    """In seconds, like all times."""
    cpu: float
    peak_rss_bytes: int
    """Of all its processes together."""
    sent_bytes: int
    """Bytes of the answers' bodies."""
    disk_bytes: int
    """The most disk space of all its files at any time."""
    before_data: float | None = None
    """Time until the data of the weights began to come; None for two runs, like the following."""
    after_data: float | None = None
    """Time after the last byte had come."""
    mbit: float | None = None
    """Speed of the link in between, in 10^6 bits a second."""

    def followed_by(self, other: Sample) -> Sample:
        """Return what two runs take, one after the other."""
        return Sample(
            self.wall + other.wall,
            self.cpu + other.cpu,
            max(self.peak_rss_bytes, other.peak_rss_bytes),
            self.sent_bytes + other.sent_bytes,
            max(self.disk_bytes, other.disk_bytes),
        )


class Programs:
    """Programs that use a repo on a local Hub, in a folder of their own.

    Args:
        work: the folder.
        hub: has the repo.
        mbit: speed of the link.
    """

    def __init__(self, work: Path, hub: SlowHub, mbit: float) -> None:
        self._hub = hub
        self._mbit = mbit
        self._cache = work / "cache"
        self._place = work / "place"
        self.download = self._place / "download"
        self.release = self._place / "release"

    def clean(self) -> None:
        """Remove what programs have written, but for the plans that they keep."""
        shutil.rmtree(self._place, ignore_errors=True)
        (self._place / "temporary").mkdir(parents=True)
        # What was written before must not slow down the next one.
        os.sync()

    def forget_plans(self) -> None:
        """Remove the plans."""
        shutil.rmtree(self._cache, ignore_errors=True)

    def measure(self, *command: object) -> Sample:
        """Run a Python program that prints the peak of its memory, and return what it took."""
        environment = self._hub.environment(os.environ, self._place / "home", xet=False) | {
            "LENSCONV_CACHE": str(self._cache),
            "TMPDIR": str(self._place / "temporary"),
        }
        self._hub.restart(self._mbit)
        with watching(self._place, self._cache) as most:
            started = time.monotonic()
            measured, output = run([sys.executable, *map(str, command)], environment)
            stopped = time.monotonic()
        counted = self._hub.counted()
        link = {}
        if (began := counted["began"]) is not None:
            seconds = counted["ended"] - began
            link = {
                "before_data": began - started,
                "after_data": stopped - counted["ended"],
                "mbit": (counted["sent_bytes"] - counted["bytes_before"]) * 8 / 1e6 / seconds,
            }
        # The system's peak of a process includes the memory of its parent at the start, and only that of one process.
        peak = json.loads(output)["peak_rss_bytes"]
        return Sample(measured.wall, measured.cpu, peak, counted["sent_bytes"], max(most), **link)

    def convert(self, source: object) -> Sample:
        """Convert a folder or an address into the release."""
        return self.measure("-m", "converter", "convert", source, self.release, "--quiet", "--json")

    def weights(self) -> dict[str, str]:
        """Return the sha256 of the release's weight files, by name."""
        return {file.name: str(file_sha256(file)) for file in sorted(self.release.glob("*.safetensors"))}


def main() -> None:
    """Measure, write the JSON, and put the table into the documentation if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=48, help="blocks of the model (default 48: 16.4 GB)")
    parser.add_argument("--mbit", default="1000", help="speeds of the link, in 10^6 bits a second (default 1000)")
    parser.add_argument("--runs", type=int, default=3, help="runs of each at each speed (default 3)")
    parser.add_argument("--xet", action="store_true", help="let the Hub store the files over Xet, not LFS")
    parser.add_argument("--work", type=Path, help="folder to work in, with 40 GB free (default: a temporary one)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where results go")
    parser.add_argument("--page", action="store_true", help=f"replace the table in docs/{PAGE.name}")
    arguments = parser.parse_args()
    speeds = [float(mbit) for mbit in arguments.mbit.split(",")]
    work = Path(tempfile.mkdtemp(dir=arguments.work))
    try:
        cases = measure_all(work, arguments.layers, speeds, arguments.runs, uses_xet=arguments.xet)
    finally:
        shutil.rmtree(work)
    result = joined(arguments.out, cases)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    table = render("streaming_table.md.jinja", **result, **summarise(result))
    print(table)
    if arguments.page:
        put_on_page(table, BEGIN, END)


def joined(out: Path, cases: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return cases with those of the file that they do not replace, if machine and versions are the same."""
    result = {
        "machine": describe_machine(),
        "versions": {"lensconv": __version__, "huggingface_hub": version("huggingface_hub")},
    }
    known = json.loads(out.read_text()) if out.exists() else {}
    earlier = known["cases"] if known and all(known[name] == value for name, value in result.items()) else []
    found = {(case["storage"], case["layers"], case["mbit"]): case for case in [*earlier, *cases]}
    return {**result, "cases": [found[identity] for identity in sorted(found)]}


def measure_all(work: Path, layers: int, speeds: Sequence[float], runs: int, *, uses_xet: bool) -> list[dict[str, Any]]:
    """Put a model on a Hub, and measure at each speed."""
    # Times of a machine that is busy mean nothing.
    load = round(os.getloadavg()[0], 2)
    source, folder = synthesize(work, layers), work / "hub"
    if not uses_xet:
        link_blobs(folder, source)
    cases = []
    with slow_hub(HubSettings(folder)) as hub:
        run(hf_upload(SOURCE, source), hub.environment(os.environ, work / "home", xet=uses_xet))
        source_bytes = bytes_below(source)
        shutil.rmtree(source)
        for mbit in speeds:
            print(f"{mbit:g} Mbit/s", file=sys.stderr)
            cases.append(
                {
                    "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
                    "load_average_before": load,
                    "storage": "xet" if uses_xet else "lfs",
                    "layers": layers,
                    "mbit": mbit,
                    "runs": runs,
                    "source_bytes": source_bytes,
                    **measure_speed(Programs(work, hub, mbit), runs),
                }
            )
    return cases


def measure_speed(programs: Programs, runs: int) -> dict[str, Any]:
    """Download, convert, and convert straight from the Hub, in turn.

    Raises:
        SystemExit: the conversions do not give the same bytes.
    """
    measured: dict[str, list[Sample]] = {name: [] for name in LABELS}
    expected: dict[str, str] = {}
    release_bytes = 0

    def note(name: str, sample: Sample) -> None:
        measured[name].append(sample)
        print(f"{name}: {sample}", file=sys.stderr)

    for _ in range(runs):
        programs.clean()
        note("download", programs.measure("-c", DOWNLOAD, SOURCE, programs.download))
        programs.forget_plans()
        note("download_then_convert", measured["download"][-1].followed_by(programs.convert(programs.download)))
        release_bytes = disk_space(programs.release)
        expected = expected or programs.weights()
        for name in ("stream", "stream_again"):
            programs.clean()
            if name == "stream":
                programs.forget_plans()
            note(name, programs.convert(f"hf://{SOURCE}"))
            if programs.weights() != expected:
                raise SystemExit("a conversion straight from the Hub gives other bytes than one of the download")
    return {
        "release_bytes": release_bytes,
        "weights": expected,
        "measured": {name: [asdict(sample) for sample in samples] for name, samples in measured.items()},
    }


def summarise(result: Mapping[str, Any]) -> dict[str, Any]:
    """Medians and ranges of what was measured, as the table shows them."""
    rows = []
    for case in result["cases"]:
        measured = case["measured"]
        alone = middle(measured["download"], "wall")
        source, release = case["source_bytes"], case["release_bytes"]
        link = f"{case['layers']} blocks, {source / 1e9:.1f} GB, {case['mbit']:g} Mbit/s"
        for name, label in LABELS.items():
            runs = measured[name]
            rows.append(
                {
                    "link": link + (", Xet" if case["storage"] == "xet" else "") if name == "download" else "",
                    "label": label,
                    "wall": span(runs, "wall"),
                    "to_download": f"{middle(runs, 'wall') / alone:.2f}",
                    "cpu": span(runs, "cpu"),
                    "memory": f"{max(item['peak_rss_bytes'] for item in runs) / 1e9:.2f}",
                    "sent": f"{max(item['sent_bytes'] for item in runs) / source:.3f}",
                    "disk": f"{max(item['disk_bytes'] for item in runs) / release:.3f}",
                }
            )
    cases = result["cases"]
    reached = [run["mbit"] / case["mbit"] for case in cases for run in case["measured"]["download"]]
    return {
        "rows": rows,
        "dates": sorted({case["date"] for case in cases}),
        "runs": sorted({case["runs"] for case in cases}),
        "reached": [100 * min(reached), 100 * max(reached)],
    }


def middle(runs: Sequence[Mapping[str, float]], name: str) -> float:
    """The median of a figure."""
    return statistics.median(item[name] for item in runs)


def span(runs: Sequence[Mapping[str, float]], name: str) -> str:
    """The median of a figure, with its least and its most."""
    values = [item[name] for item in runs]
    return f"{middle(runs, name):.1f} ({min(values):.1f} to {max(values):.1f})"


@contextmanager
def watching(*folders: Path) -> Iterator[list[int]]:
    """Note the disk space of folders several times a second, as long as a block runs.

    Yields: the figures in bytes; the last one comes at the end of the block.
    """
    found: list[int] = []
    stopping = threading.Event()

    def watch() -> None:
        while not stopping.wait(_INTERVAL):
            found.append(disk_space(*folders))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        stopping.set()
        thread.join()
        found.append(disk_space(*folders))


def disk_space(*folders: Path) -> int:
    """Bytes that the files in folders take on the disk; holes take none, and hard links count once."""
    taken = {}
    for folder in folders:
        for place, _, names in os.walk(folder):
            for name in names:
                # Programs rename and remove files meanwhile.
                with suppress(FileNotFoundError):
                    status = (Path(place) / name).lstat()
                    taken[status.st_dev, status.st_ino] = status.st_blocks * 512
    return sum(taken.values())


if __name__ == "__main__":
    main()
