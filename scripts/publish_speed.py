"""Time and memory of ``lensconv publish`` against ``hf upload``, and of ``lensconv verify hf://``, on a local Hub.

A synthetic checkpoint with the layout of microsoft/Lens is put on the Hub and audited there by its headers. Then it is
converted, and ``hf upload`` and ``lensconv publish`` upload its release in turn. Each upload starts with an empty Hub,
an empty cache of the client, and a release without notes, so that both send every byte and compute every checksum. The
time of ``publish`` includes examining the release before and reading it back afterwards. At last the same publication
is repeated, with nothing to do.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from converter._version import __version__
from converter.checkpoint.checksum import file_sha256
from converter.conversion.release.manifest import STATE_FOLDER
from converter.rehearsal.blobs import Blobs
from converter.rehearsal.settings import DEFAULT_NAME, HubSettings
from scripts.benchmark import ROOT, Measurement, describe_machine, lensconv, read, size_of, synthesize
from tests.faulty_hub import FaultyHub, faulty_hub

SOURCE = f"{DEFAULT_NAME}/Lens"
TRANSPORTS = ("xet", "lfs")
#: A source is not a release, so ``verify`` ends with 1.
AUDITED = (0, 1)


def main() -> None:
    """Measure, write the JSON, and print it without the single runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=48, help="blocks of the model (default 48: 16.4 GB, then 4.3 GB)")
    parser.add_argument("--pairs", type=int, default=3, help="uploads by either over each transport (default 3)")
    parser.add_argument("--transport", choices=TRANSPORTS, action="append", help="measure this one alone")
    parser.add_argument("--work", type=Path, help="folder to work in, with 25 GB free (default: a temporary one)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "publish.json", help="where results go")
    arguments = parser.parse_args()
    work = Path(tempfile.mkdtemp(dir=arguments.work))
    # Times of a machine that is busy mean nothing.
    load = round(os.getloadavg()[0], 2)
    try:
        source = synthesize(work, arguments.layers)
        result = {
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "machine": describe_machine(),
            "versions": {
                "lensconv": __version__,
                **{package: version(package) for package in ("huggingface_hub", "hf-xet")},
            },
            "layers": arguments.layers,
            "load_average_before": load,
            # The peak of a process includes the memory of its parent at the start, so smaller peaks cannot be measured.
            "rss_floor_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "audit": measure_audit(work, source, arguments.pairs),
            "upload": {},
        }
        release = make_release(source, work / "release")
        for transport in arguments.transport or TRANSPORTS:
            result["upload"][transport] = measure_uploads(work, release, transport, arguments.pairs)
    finally:
        shutil.rmtree(work)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(without_runs(result), indent=2))


def measure_audit(work: Path, source: Path, runs: int) -> dict[str, Any]:
    """Audit a checkpoint of float32 on the Hub."""
    folder = work / "hub"
    link_blobs(folder, source)
    audit = lensconv("verify", source, "--json")
    wanted = facts_of(run(audit, os.environ, statuses=AUDITED)[1])
    found = []
    with serving(folder) as hub:
        run(hf_upload(SOURCE, source), hub.environment(os.environ, work / "home", xet=False))
        for _ in range(runs):
            hub.forget_requests()
            measured, report = run_afresh(
                lensconv("verify", f"hf://{SOURCE}", "--json"), hub, work / "home", statuses=AUDITED
            )
            requests = hub.requests()
            found.append(
                {
                    **asdict(measured),
                    "requests": len(requests),
                    "bytes_transferred": sum(request["sent"] + request["received"] for request in requests),
                }
            )
            if facts_of(report) != wanted:
                raise SystemExit("the audit over the network finds another checkpoint than the one of the folder")
            print(f"audit: {found[-1]}", file=sys.stderr)
    return {"checkpoint_bytes": size_of(source), **medians(found), "runs": found}


def link_blobs(folder: Path, source: Path) -> None:
    """Let a Hub have the weight files already, so that a client only commits them: without a copy and a long upload.

    Args:
        folder: of the Hub, which does not run yet.
        source: the folder of the files.
    """
    blobs = Blobs(folder)
    for file in source.glob("*.safetensors"):
        blob = blobs.path(str(file_sha256(file)))
        blob.parent.mkdir(parents=True, exist_ok=True)
        os.link(file, blob)


def facts_of(report: str) -> dict[str, Any]:
    """Return what an audit says of a checkpoint, wherever it is."""
    content = json.loads(report)
    return {name: content[name] for name in ("tensors", "bytes_by_dtype", "total_bytes", "parameters", "families")}


def make_release(source: Path, release: Path) -> Path:
    """Convert the source, which is removed, and make the card of the release."""
    subprocess.run(lensconv("convert", source, release, "--quiet"), check=True)
    shutil.rmtree(source)
    subprocess.run(lensconv("card", release, "--license", "mit", "--quiet"), check=True)
    return release


def measure_uploads(work: Path, release: Path, transport: str, pairs: int) -> dict[str, Any]:
    """Upload a release in turn with either program, and publish it once more after each publication."""
    found: dict[str, list[dict[str, Any]]] = {"hf_upload": [], "publish": [], "publish_again": []}
    for number in range(pairs):
        # The second one may find the machine in another state, so the order alternates.
        for name in ("publish", "hf_upload") if number % 2 else ("hf_upload", "publish"):
            repository = f"{DEFAULT_NAME}/{name.replace('_', '-')}-{number}"
            shutil.rmtree(release / STATE_FOLDER, ignore_errors=True)
            os.sync()
            read(release)
            with serving(work / "hub") as hub:
                command = (
                    hf_upload(repository, release)
                    if name == "hf_upload"
                    else lensconv("publish", release, repository, "--json")
                )
                measured, _ = run_afresh(command, hub, work / "home", xet=transport == "xet")
                found[name].append({**asdict(measured), "stored_bytes": bytes_below(work / "hub")})
                print(f"{transport}, {name}: {found[name][-1]}", file=sys.stderr)
                if name == "publish":
                    again, report = run_afresh(command, hub, work / "home", xet=transport == "xet")
                    if json.loads(report)["changed"]:
                        raise SystemExit("a publication that had nothing to do made a commit")
                    found["publish_again"].append(asdict(again))
                    print(f"{transport}, again: {found['publish_again'][-1]}", file=sys.stderr)
    stored = [item["stored_bytes"] for name in ("hf_upload", "publish") for item in found[name]]
    if max(stored) > 1.01 * min(stored):
        raise SystemExit("the two did not send the same")
    ratios = [
        second["wall"] / first["wall"] for first, second in zip(found["hf_upload"], found["publish"], strict=True)
    ]
    return {
        "release_bytes": size_of(release),
        **{name: medians(items) for name, items in found.items()},
        "ratios_of_wall": [round(ratio, 3) for ratio in ratios],
        "median_ratio_of_wall": round(statistics.median(ratios), 3),
        "runs": found,
    }


@contextmanager
def serving(folder: Path) -> Iterator[FaultyHub]:
    """A Hub, whose folder is removed at the end."""
    try:
        with faulty_hub(HubSettings(folder)) as hub:
            yield hub
    finally:
        shutil.rmtree(folder)


def hf_upload(repository: str, folder: Path) -> list[str]:
    """The command line of the Hub's own client."""
    program = shutil.which("hf", path=Path(sys.executable).parent)
    if program is None:
        raise SystemExit("hf is not installed beside this Python")
    return [program, "upload", repository, str(folder)]


def run_afresh(
    command: list[str], hub: FaultyHub, home: Path, *, xet: bool = True, statuses: Container[int] = (0,)
) -> tuple[Measurement, str]:
    """Run a process with a client's cache that is empty."""
    shutil.rmtree(home, ignore_errors=True)
    return run(command, hub.environment(os.environ, home, xet=xet), statuses=statuses)


def run(
    command: list[str], environment: Mapping[str, str], *, statuses: Container[int] = (0,)
) -> tuple[Measurement, str]:
    """Run a process; gives what the system says of it and of all processes that it waited for, and what it printed."""
    started = time.perf_counter()
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        process = subprocess.Popen(command, env=environment, stdout=stdout, stderr=stderr)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode not in statuses:
            stderr.seek(0)
            raise SystemExit(f"{command[:4]} failed with {process.returncode}: {stderr.read()[-2000:]!r}")
        stdout.seek(0)
        return Measurement(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024), stdout.read().decode()


def bytes_below(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def medians(items: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The median of each figure: seconds, and whole numbers of the rest."""
    found = list(items)
    middles = {name: statistics.median(item[name] for item in found) for name in found[0]}
    return {name: round(middle, 3) if name in ("wall", "cpu") else int(middle) for name, middle in middles.items()}


def without_runs(value: Any) -> Any:
    """The same without the single runs."""
    if isinstance(value, dict):
        return {name: without_runs(item) for name, item in value.items() if name != "runs"}
    return value


if __name__ == "__main__":
    main()
