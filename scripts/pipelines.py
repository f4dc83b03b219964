"""Tries the whole workflow on tiny pipelines of many models, and prints a table of what worked, with seconds.

For each preset of `lensconv synth`: make it, plan it, convert its denoiser and then all components, compare every
component with what SDNQ itself writes, verify, generate with both repos, load the release in a process without lensconv
(Lens apart) and compare the image, measure, draw grid, report and card, and rehearse the publication.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from converter.checkpoint.source import open_checkpoint
from converter.libraries import load_library
from converter.synthesis.synthesize import PRESETS
from tests.reference import convert_with_sdnq, weight_files

#: Presets that are whole pipelines.
PIPELINES = tuple(preset for preset in PRESETS if preset.startswith("tiny"))
#: Those that make videos: nothing is drawn with them.
VIDEOS = ("tiny-wan",)
PROMPT = "a red cube on a wooden table"
#: Small and few, so that a CPU takes seconds.
DRAWING = ("--height", "64", "--width", "64", "--steps", "2", "--seed", "3")
#: Draws as the card says, in a process that has not seen lensconv.
_STOCK = """
import sys
import torch
import sdnq
from diffusers import DiffusionPipeline
folder, output, prompt, extra = sys.argv[1:5]
pipe = DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.bfloat16)
assert not any(name.partition(".")[0] in ("converter", "lensconv") for name in sys.modules)
arguments = dict(prompt=prompt, height=64, width=64, num_inference_steps=2, generator=torch.Generator().manual_seed(3))
pipe(**arguments, **eval(extra)).images[0].save(output)
"""
#: Two prompts, one of them with a text to read.
_SUITE = f"""
name = "two"

[[prompts]]
id = "P01"
scenario = "A cube"
seed = 1
prompt = "{PROMPT}"

[[prompts]]
id = "P02"
scenario = "A sign"
seed = 2
prompt = "a sign that says OPEN"
required_text = ["OPEN"]
"""
#: What a call needs beside them: Qwen-Image has guidance only with a negative prompt, which lensconv gives it.
_EXTRA = {"tiny-qwen-image": "dict(negative_prompt='')"}


def main() -> None:
    """Try the presets that were named; exits with 1 if a step failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("presets", nargs="*", metavar="PRESET", help=f"by default all: {', '.join(PIPELINES)}")
    parser.add_argument("--work", type=Path, help="folder to work in, which is kept; a temporary one by default")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.presets if name not in PIPELINES]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}")
    work = arguments.work or Path(tempfile.mkdtemp())
    try:
        courses = [Course(name, work / name) for name in arguments.presets or PIPELINES]
        for course in courses:
            course.run()
    finally:
        if arguments.work is None:
            shutil.rmtree(work)
    steps = list(dict.fromkeys(step for course in courses for step in course.seconds))
    print(f"| preset | {' | '.join(steps)} |\n| --- |{' ---: |' * len(steps)}")
    for course in courses:
        print(f"| {course.preset} | {' | '.join(course.shown(step) for step in steps)} |")
    for course in courses:
        for step, problem in course.problems.items():
            print(f"{course.preset}, {step}: {problem}")
    sys.exit(1 if any(course.problems for course in courses) else 0)


class Failed(Exception):
    """A step did not give what it should."""


@dataclass
class Course:
    """The steps for one preset.

    Args:
        preset: its name.
        work: folder to work in.
    """

    preset: str
    work: Path
    seconds: dict[str, float] = field(default_factory=dict)
    """Seconds of each step that was begun."""
    problems: dict[str, str] = field(default_factory=dict)
    """What went wrong, by step."""

    @property
    def source(self) -> Path:
        """The original."""
        return self.work / "original"

    @property
    def release(self) -> Path:
        """The release in which all components are quantized that can be."""
        return self.work / "all"

    def run(self) -> None:
        """Run all steps; one that fails does not stop those that do not need it."""
        self.work.mkdir(parents=True, exist_ok=True)
        with self._step("synth"):
            lensconv("synth", self.source, "--preset", self.preset, "--overwrite")
        planned: dict[str, Any] = {}
        converted: dict[str, Any] = {}
        with self._step("plan"):
            planned |= lensconv("plan", self.source, *self._components)
        with self._step("denoiser"):
            lensconv("convert", self.source, self.work / "denoiser", "--overwrite")
        with self._step("all components"):
            converted |= lensconv("convert", self.source, self.release, *self._components, "--overwrite")
            if planned and planned["output"]["total_bytes"] != sum(converted["bytes_by_dtype"].values()):
                raise Failed("the bytes that were written are not those that were planned")
        with self._step("as SDNQ"):
            self._compare_with_sdnq(converted)
        with self._step("verify"):
            lensconv("verify", self.release, "--against", self.source, "--checksums", "--load")
        if self.preset not in VIDEOS:
            self._draw()
        evidence = ("--evidence", self.work / "evidence") if self.preset not in VIDEOS else ()
        with self._step("card"):
            options = ("--repo", f"owner/{self.preset}", "--base-model", f"owner/{self.preset}", "--license", "mit")
            lensconv("card", self.release, *evidence, *options)
        with self._step("rehearse"):
            lensconv("publish", self.release, f"owner/{self.preset}", "--rehearse")

    def _draw(self) -> None:
        image = self.work / "lensconv.png"
        with self._step("generate"):
            for repo, output in ((self.source, self.work / "original.png"), (self.release, image)):
                lensconv("generate", repo, "--prompt", PROMPT, "--out", output, "--overwrite", *DRAWING)
        if self.preset != "tiny":
            with self._step("without lensconv"):
                self._draw_without_lensconv(image)
        evidence = self.work / "evidence"
        with self._step("bench"):
            suite = self.work / "two.toml"
            suite.write_text(_SUITE)
            options = ("--prompts", suite, "--mode", "standard", "--pairs", "2", "--restart")
            lensconv("bench", self.source, self.release, *options, *DRAWING[:-2], "--out", evidence)
        with self._step("grid"):
            lensconv("grid", evidence)
        with self._step("charts"):
            lensconv("charts", evidence)
        with self._step("report"):
            lensconv("report", evidence, "--out", self.work / "report.html")

    @property
    def _components(self) -> tuple[str, ...]:
        """Every component that has linears to quantize: the text encoders are below the limit of `all`."""
        # The text encoder of Lens is a mixture of experts.
        if self.preset == "tiny":
            return ()
        index = json.loads((self.source / "model_index.json").read_text())
        names = [name for name in index if name.startswith(("text_encoder", "transformer", "unet")) and index[name][0]]
        return tuple(word for name in names for word in ("--component", name))

    def _compare_with_sdnq(self, converted: dict[str, Any]) -> None:
        for component in converted.get("components", ()):
            name, class_name = component["name"], component["class_name"]
            if class_name == "LensTransformer2DModel":
                load_library("converter.models.lens.registration")
            config = open_checkpoint(self.release, component=name).config["quantization_config"]
            options = {key: config[key] for key in ("weights_dtype", "use_quantized_matmul", "dequantize_fp32")}
            if self.preset == "tiny":
                options["modules_to_not_convert"] = ["*.img_mod.*", "*.txt_mod.*"]
            expected = self.work / "expected"
            shutil.rmtree(expected, ignore_errors=True)
            convert_with_sdnq(self.source / name, expected, class_name, options)
            if weight_files(self.release / name) != weight_files(expected):
                raise Failed(f"{name}: the weights are not those that SDNQ writes")

    def _draw_without_lensconv(self, image: Path) -> None:
        output = self.work / "stock.png"
        command = [sys.executable, "-I", "-c", _STOCK, self.release, output, PROMPT, _EXTRA.get(self.preset, "{}")]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "SDNQ_USE_TORCH_COMPILE": "0"}
        done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Failed((done.stderr.strip().splitlines() or ["no output"])[-1])
        pictures = load_library("PIL.Image")
        if pictures.open(output).tobytes() != pictures.open(image).tobytes():
            raise Failed("the image is not the one that lensconv drew")

    @contextmanager
    def _step(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        except Failed as problem:
            self.problems[name] = str(problem)
        finally:
            self.seconds[name] = time.monotonic() - started

    def shown(self, step: str) -> str:
        """Seconds of a step; empty if it does not apply."""
        if step not in self.seconds:
            return ""
        return "failed" if step in self.problems else f"{self.seconds[step]:.1f}"


def lensconv(*arguments: object) -> dict[str, Any]:
    """Run a command; returns what it prints.

    Raises:
        Failed: it ended with an error, or a check failed.
    """
    command = [sys.executable, "-m", "converter", *map(str, arguments), "--json", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        raise Failed((done.stderr.strip().splitlines() or ["no output"])[-1]) from None
    if "error" in answer:
        raise Failed(answer["error"]["message"])
    if done.returncode:
        raise Failed("; ".join(str(check) for check in answer.get("checks", ()) if not check["ok"]))
    return answer


if __name__ == "__main__":
    main()
