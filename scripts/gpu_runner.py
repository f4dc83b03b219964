"""Run the steps of scripts/gpu, each in processes of its own with a deadline, and write the JSON after each.

A fault on a GPU poisons the process that it happens in, and a kernel may hang; neither reaches the other steps.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts.gpu_steps import Part, Step

ROOT = Path(__file__).resolve().parents[1]
#: A step is killed after so many times its usual time and so many seconds more; other programs use the CPU, too.
_PATIENCE = {"cuda": 2.0, "cpu": 10.0}
EXTRA_SECONDS = 15.0
#: A step begins nothing more after so many times its usual time.
_SOFT_PATIENCE = {"cuda": 1.5, "cpu": 8.0}
#: On a CPU, parts that compile run with a budget of at least so many seconds.
_COMPILING_BUDGET = 300.0
#: A step with such parts then takes so many times as long.
_COMPILING_FACTOR = 6.0
#: With a shorter budget than this, SDNQ's Triton kernel tries 2 sizes of blocks and not 18.
_TUNING_BUDGET = 900.0
_FEW_SIZES = {
    "SDNQ_TRITON_MM_BLOCK_SIZE_M_LIST": "128",
    "SDNQ_TRITON_MM_BLOCK_SIZE_N_LIST": "128,256",
    "SDNQ_TRITON_MM_BLOCK_SIZE_K_LIST": "64",
}
#: On a CPU, nothing is compiled unless a part says so, and threads do not wait for those that other programs hold up.
_CPU_ENVIRONMENT = {"SDNQ_USE_TORCH_COMPILE": "0", "OMP_NUM_THREADS": "1"}
_TAIL_BYTES = 4000
#: The most characters of a reason.
_REASON_LENGTH = 300


class NothingRan(Exception):
    """The first step, without which figures say little, could not run; the text says why."""


@dataclass
class Runner:
    """Runs steps one after the other.

    Args:
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        work: folder for files, which exists.
        out: the JSON to write; None for ``gpu-CARD.json``.
        budget: seconds for all steps together.
        is_whole: whether all steps are run. What a card gives goes to the folder ``benchmarks`` then, and otherwise to
            the current folder, so that some steps do not replace the figures of all.
    """

    device: str
    work: Path
    out: Path | None
    budget: float
    is_whole: bool = True
    started: float = field(default_factory=time.monotonic)
    report: dict[str, Any] = field(default_factory=dict)

    def run(self, steps: Sequence[Step]) -> bool:
        """Run the steps, the first of which describes the device.

        Returns:
            Whether none failed.

        Raises:
            NothingRan: the first step was skipped, because of the budget or the device.
        """
        self.report = {
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "device": self.device,
            "budget_s": self.budget,
            "steps": {},
        }
        for number, step in enumerate(steps):
            found = self._too_much(step) or self._perform(step)
            self.report["steps"][step.name] = {"title": step.title, **found}
            if number == 0 and "skipped" in found:
                self.save()
                raise NothingRan(self._plain(found["skipped"]))
            self._choose_output()
            self.save()
            print(self._line(step.name), flush=True)
        results = [found["ok"] for found in self.report["steps"].values() if "ok" in found]
        return all(results)

    def save(self) -> None:
        """Write the JSON, whole or not at all, without paths and names of this machine."""
        if self.out is None or not self.report:
            return
        draft = self.out.with_name(f".{self.out.name}.{os.getpid()}")
        draft.write_text(json.dumps(self._plain(self.report), indent=1, ensure_ascii=False) + "\n")
        draft.replace(self.out)

    @property
    def _first_figures(self) -> dict[str, Any]:
        """What the first step found, once it has run."""
        first: dict[str, Any] = next(iter(self.report["steps"].values()), {})
        return dict(first.get("figures", {}))

    def _usual_seconds(self, step: Step) -> float:
        if self.device != "cpu":
            return step.seconds
        is_compiled = self._compiles and any(part.compiles for part in step.parts)
        return step.cpu_seconds * (_COMPILING_FACTOR if is_compiled else 1)

    def _too_much(self, step: Step) -> dict[str, Any] | None:
        """Say why a step is skipped; None if it fits."""
        need, left = self._usual_seconds(step), self.started + self.budget - time.monotonic()
        if left < need:
            return {"skipped": f"takes about {need:g} s; of the budget, {max(left, 0):.0f} s are left"}
        free = self._first_figures.get("free_device_gb")
        if free is not None and free < step.device_gb:
            return {"skipped": f"needs {step.device_gb:g} GB of device memory; {free:.1f} GB are free"}
        return None

    def _perform(self, step: Step) -> dict[str, Any]:
        """Run the parts of a step, which share its time."""
        usual = self._usual_seconds(step)
        started = time.monotonic()
        kind = self.device.partition(":")[0]
        soft, hard = started + _SOFT_PATIENCE[kind] * usual, started + _PATIENCE[kind] * usual + EXTRA_SECONDS
        if kind != "cpu":
            # The time of a GPU may be lent.
            end = self.started + self.budget
            soft, hard = min(soft, end), min(hard, end + EXTRA_SECONDS)
        figures: dict[str, Any] = {}
        problems: list[str] = []
        reasons: list[str] = []
        suitable = [part for part in step.parts if not self._unsuitable(part)]
        for part in step.parts:
            found: dict[str, Any] = {"skipped": self._unsuitable(part)}
            if part in suitable:
                # Parts begin nothing more after their share, and leave to the next ones what they do not need.
                now = time.monotonic()
                share = (soft - now) / (len(suitable) - suitable.index(part))
                found = self._perform_part(step, part, figures, (now + share, hard))
            content = dict(found.get("figures", {}))
            if found.get("skipped"):
                reasons.append(found["skipped"])
                content["skipped"] = found["skipped"]
            problems += [f"{part.name}: {text}" if part.name else text for text in found.get("problems", ())]
            figures.update({part.name: content} if part.name else content)
        if len(reasons) == len(step.parts) and not problems:
            return {"skipped": "; ".join(dict.fromkeys(reasons))}
        seconds = round(time.monotonic() - started, 2)
        return {"ok": not problems, "seconds": seconds, "figures": figures, "problems": problems}

    @property
    def _compiles(self) -> bool:
        return self.device != "cpu" or self.budget >= _COMPILING_BUDGET

    def _unsuitable(self, part: Part) -> str:
        """Say why a part does not run on a CPU; empty if it does."""
        if self.device != "cpu":
            return ""
        if part.needs_cuda:
            return "needs CUDA"
        if part.compiles and not self._compiles:
            return f"compiling needs CUDA, or a budget of {_COMPILING_BUDGET:g} s"
        return ""

    def _perform_part(
        self, step: Step, part: Part, earlier: Mapping[str, Any], deadlines: tuple[float, float]
    ) -> dict[str, Any]:
        """Run a process until it ends, or the second deadline; return its findings."""
        soft_seconds, seconds = (deadline - time.monotonic() for deadline in deadlines)
        if seconds <= 0:
            return {"problems": ["was not begun, because the parts before it took all of its time"]}
        result = self.work / "result.json"
        result.unlink(missing_ok=True)
        task = {
            "function": step.function,
            "parent": os.getpid(),
            "part": part.name,
            "device": self.device,
            "compiles": self._compiles,
            "work": str(self.work),
            "result": str(result),
            "seconds": soft_seconds,
            "earlier": earlier,
        }
        command = [sys.executable, "-P", "-m", "scripts.gpu_steps.process", json.dumps(task)]
        log = self.work / "log"
        with log.open("wb") as stream:
            reason = _run_process(command, self._environment(part), stream, seconds)
        found: dict[str, Any] = {"problems": []}
        with suppress(FileNotFoundError):
            found = json.loads(result.read_text())
        if reason:
            last = _last_line(log) if reason.startswith("ended") else ""
            found["problems"].append(f"{reason}: {last}" if last else reason)
        return found

    def _environment(self, part: Part) -> dict[str, str]:
        """The user's environment, without network, with caches that are removed in the end."""
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        caches = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
        defaults = _CPU_ENVIRONMENT if self.device == "cpu" else {}
        if self.budget < _TUNING_BUDGET:
            defaults = {**defaults, **_FEW_SIZES}
        return {
            **defaults,
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
            "HF_HUB_OFFLINE": "1",
            **{name: str(self.work / folder) for name, folder in caches.items()},
            **part.environment,
        }

    def _choose_output(self) -> None:
        """Name the JSON after the card, which the first step has found."""
        if self.out is None:
            card = self._first_figures.get("card", "unknown")
            folder = ROOT / "benchmarks" if self.is_whole and self.device != "cpu" else Path()
            self.out = folder / f"gpu-{re.sub(r'[^a-z0-9]+', '-', card.lower()).strip('-')}.json"

    def _line(self, name: str) -> str:
        found = self.report["steps"][name]
        if "skipped" in found:
            end = f"skipped: {found['skipped']}"
        else:
            end = f"{'ok' if found['ok'] else 'FAILED'}, {found['seconds']:.1f} s"
            end += "".join(f"\n    {text}" for text in found["problems"])
        return str(self._plain(f"{name:>2} {found['title']}: {end}"))

    def _plain(self, value: Any) -> Any:
        """Remove folders and the name of this machine from all texts of a JSON value."""
        if isinstance(value, dict):
            return {name: self._plain(item) for name, item in value.items()}
        if isinstance(value, list):
            return [self._plain(item) for item in value]
        if not isinstance(value, str):
            return value
        host = socket.gethostname()
        text = re.sub(r"(?<![\w:/.])/(?:[^\s/:'\"]+/)+", "", value)
        return re.sub(rf"\b{re.escape(host)}\b", "HOST", text) if host else text


def _run_process(command: list[str], environment: Mapping[str, str], log: Any, seconds: float) -> str:
    """Run a process and all that it starts; return what went wrong, empty if nothing did."""
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
    )
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        return f"was stopped: not done after {seconds:.0f} s"
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        return f"was killed by {name}"
    return f"ended with exit code {code}" if code else ""


def _last_line(log: Path) -> str:
    """The last line that a process wrote, which says what was raised."""
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        lines = stream.read().decode(errors="replace").split("\n")
    text = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return "".join(letter for letter in text if letter.isprintable())[:_REASON_LENGTH]
