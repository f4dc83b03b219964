"""Check and measure everything of lensconv that runs on a GPU, and write one JSON.

It runs in the Python that calls it: it installs nothing and uses no network. Each step runs in processes of its own
with a deadline. Steps that do not fit into the budget are skipped. The JSON is written after each step. Exit codes: 0,
no step failed; 1, one failed; 2, usage; 3, nothing could run, for example because there is no GPU; 130, interrupted.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from scripts.gpu_runner import NothingRan, Runner
from scripts.gpu_steps import STEPS, Step
from scripts.gpu_table import update_pages

#: A folder in memory, used for the models where so many bytes are free in it.
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - the folder that is made in it has a name of its own
SHARED_MEMORY_BYTES = 30_000_000_000
_PREFIX = "lensconv-gpu-"
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main(arguments: Sequence[str] | None = None, steps: Sequence[Step] = STEPS) -> int:
    """Run the steps that were asked for; return the exit code.

    Args:
        arguments: of the command line.
        steps: from which to choose; the first one always runs.
    """
    options = _parse(arguments, steps)
    if options.table:
        return _renew_tables()
    for number in _SIGNALS:
        signal.signal(number, _stop)
    chosen = [step for number, step in enumerate(steps) if number == 0 or step.name in options.only]
    runner: Runner | None = None
    try:
        with _work_folder(options.work, is_large=options.device != "cpu") as work:
            is_whole = len(chosen) == len(steps)
            runner = Runner(options.device, work, options.out, options.budget, is_whole=is_whole)
            return 0 if runner.run(chosen) else 1
    except NothingRan as error:
        print(f"nothing could run: {error}", file=sys.stderr)
        return 3
    except BrokenPipeError:
        # Nobody reads the lines any more; Python would complain at its exit that it cannot write the rest.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print("interrupted: stdout is closed", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"--out or --work: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if runner is not None:
            runner.save()
        print("interrupted", file=sys.stderr)
        return 130


def make_parser(steps: Sequence[Step] = STEPS) -> argparse.ArgumentParser:
    """The command line, for these steps."""
    names = [step.name for step in steps]
    listed = "; ".join(f"{step.name}: {step.title}" for step in steps)
    parser = argparse.ArgumentParser(prog="scripts/gpu", description=__doc__, epilog=f"Steps: {listed}.")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu, which runs small models (default cuda)")
    parser.add_argument("--budget", type=float, default=480, help="seconds for everything (default 480)")
    parser.add_argument("--only", default=",".join(names), help=f"steps, with commas; step {names[0]} always runs")
    parser.add_argument(
        "--work",
        type=Path,
        help="folder for the models, about 30 GB, which are removed in the end (default /dev/shm where that much is "
        "free, or else the folder for temporary files)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="the JSON to write (default benchmarks/gpu-CARD.json; with --only or --device cpu, gpu-CARD.json in the "
        "current folder)",
    )
    parser.add_argument("--table", action="store_true", help="only renew the tables in docs/gpu.md and README.md")
    return parser


def _parse(arguments: Sequence[str] | None, steps: Sequence[Step]) -> Any:
    parser, names = make_parser(steps), [step.name for step in steps]
    options = parser.parse_args(arguments)
    options.only = [name.strip() for name in options.only.split(",") if name.strip()]
    unknown = [name for name in options.only if name not in names]
    if unknown or not options.only:
        parser.error(f"--only {', '.join(unknown)}: steps are {', '.join(names)}")
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", options.device):
        parser.error(f"--device {options.device}: must be cpu, cuda, or cuda:0, cuda:1 …")
    if not 0 < options.budget < float("inf"):
        parser.error("--budget: must be a positive number of seconds")
    if options.out is not None and not options.out.absolute().parent.is_dir():
        parser.error(f"--out {options.out}: the folder does not exist")
    if options.out is not None and options.out.is_dir():
        parser.error(f"--out {options.out}: is a folder")
    return options


def _renew_tables() -> int:
    try:
        update_pages()
    except (OSError, ValueError) as error:
        print(f"--table: {error}", file=sys.stderr)
        return 2
    return 0


@contextmanager
def _work_folder(chosen: Path | None, *, is_large: bool) -> Iterator[Path]:
    """Make a folder for the models and remove it in the end, with those of runs that were killed."""
    parent = chosen
    if chosen is not None:
        chosen.mkdir(parents=True, exist_ok=True)
    elif is_large and SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free >= SHARED_MEMORY_BYTES:
        parent = SHARED_MEMORY
    parent = (parent or Path(tempfile.gettempdir())).resolve()
    _remove_abandoned(parent)
    work = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    try:
        with work.joinpath("lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _remove_abandoned(parent: Path) -> None:
    """Remove folders of runs that were killed: nobody holds their lock."""
    for lock in parent.glob(f"{_PREFIX}*/lock"):
        try:
            with lock.open("rb") as stream:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.parent, ignore_errors=True)
        except OSError:
            # It belongs to a run that is not done, or to another user.
            continue


def _stop(*_: object) -> NoReturn:
    # What removes the files in the end is not interrupted.
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
