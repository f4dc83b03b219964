"""Kills conversions at random moments and runs them again.

Every killed run is followed by another of the same command. It must end with the same sha256 of every file as a run
that was never killed; the output folder must be absent or whole at every moment; and what the journal says was
finished must not be done again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from converter.checkpoint.staging import SPOOLED


def main() -> None:
    """Kill and rerun as often as asked, and print what happened."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50, help="how many conversions to kill")
    parser.add_argument("--layers", type=int, default=8, help="blocks of the model")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random moments")
    parser.add_argument("--recipe", default="lens-uint4-static")
    parser.add_argument("--work", type=Path, help="folder to work in; a temporary one by default")
    arguments = parser.parse_args()
    work = Path(tempfile.mkdtemp(dir=arguments.work))
    try:
        run(work, arguments)
    finally:
        shutil.rmtree(work)


def run(work: Path, arguments: argparse.Namespace) -> None:
    """Run the test in a folder."""
    source, output, cache = work / "source", work / "output", work / "cache"
    os.environ["LENSCONV_CACHE"] = str(cache)
    subprocess.run(lensconv("synth", source, "--layers", arguments.layers, "--quiet"), check=True)
    convert = lensconv("convert", source, output, "--recipe", arguments.recipe, "--json")
    # The first run compiles the kernels; the second shows how long one takes.
    wanted = finish(convert, output)
    started = time.monotonic()
    finish(convert, output)
    length = time.monotonic() - started
    generator = random.Random(arguments.seed)  # noqa: S311 - moments, not secrets
    kept = redone = number = 0
    while number < arguments.kills:
        # Half of them let SDNQ plan in a second process; the others, and all reruns, begin with a plan that was kept.
        line = [*convert, "--no-cache"] if number % 2 else convert
        process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(generator.uniform(0, 1.05 * length))
        process.send_signal(signal.SIGKILL)
        process.wait()
        journal = work / ".output.lensconv" / "journal"
        finished = count_finished(journal)
        if output.exists():
            check_whole(output, wanted)
            if not journal.exists():
                shutil.rmtree(output)
                print("one had ended before it was killed, and does not count")
                continue
        number += 1
        done = subprocess.run(convert, check=True, capture_output=True)
        report = json.loads(done.stdout)
        if files_of(report) != wanted:
            raise SystemExit(f"{number}: the rerun gave other files")
        check_whole(output, wanted)
        resumed = report["resumed_tensors"]
        kept += min(resumed, finished)
        redone += max(0, finished - resumed)
        print(f"{number}: {finished} tensors were finished, {resumed} were kept")
        leftovers = {path.name for path in work.iterdir()} - {"source", "output", "cache"}
        if leftovers:
            raise SystemExit(f"{number}: left behind: {leftovers}")
        shutil.rmtree(output)
    share = kept / (kept + redone) if kept + redone else 1.0
    print(
        f"{arguments.kills} kills in a run of {length:.1f} s; {100 * share:.1f} % of finished tensors were not redone"
    )
    if share < 0.9:
        raise SystemExit("too much was done again")


def lensconv(*arguments: object) -> list[str]:
    """The command line of lensconv."""
    return [sys.executable, "-m", "converter", *map(str, arguments)]


def finish(convert: list[str], output: Path) -> dict[str, str]:
    """Run a conversion to its end; returns the sha256 of its files, and removes it."""
    done = subprocess.run(convert, check=True, capture_output=True)
    shutil.rmtree(output)
    return files_of(json.loads(done.stdout))


def files_of(report: dict[str, list[dict[str, str]]]) -> dict[str, str]:
    """Checksums by file."""
    return {file["name"]: file["sha256"] for file in report["files"]}


def check_whole(output: Path, wanted: dict[str, str]) -> None:
    """Check that a folder contains all files as its manifest says, and that they are those of an undisturbed run."""
    subprocess.run(lensconv("verify", output, "--checksums", "--quiet"), check=True)
    manifest = json.loads((output / "lensconv_manifest.json").read_text())
    found = files_of(manifest)
    if found != {name: digest for name, digest in wanted.items() if name != "lensconv_manifest.json"}:
        raise SystemExit("a whole folder has other files than an undisturbed run")


def count_finished(journal: Path) -> int:
    """Tensors of the output that a journal says are finished."""
    try:
        lines = journal.read_bytes().split(b"\n")
    except OSError:
        return 0
    # The last element is empty, or a line that was cut off.
    noted = [json.loads(line) for line in lines[1:-1]]
    return sum({line["tensor"].removeprefix(SPOOLED): line["outputs"] for line in noted}.values())


if __name__ == "__main__":
    main()
