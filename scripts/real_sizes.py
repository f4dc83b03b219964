"""Plans published models at their real sizes: denoisers and large text encoders, all in one plan.

The configurations are in ``real_sizes.json``. Each model is a pipeline folder whose weights are holes, which take no
space; `lensconv plan` reads headers only. The table shows bytes in and out of each component, and seconds and peak
memory of each plan.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights

from converter.checkpoint.source import PIPELINE_INDEX
from converter.libraries import load_library
from converter.models.classes import find_class
from converter.models.config import ModelConfig
from converter.models.empty import EmptyModel, saved_names
from tests.checkpoints import write_holes

_CONTENT = json.loads(Path(__file__).with_suffix(".json").read_text("utf-8"))
MODELS: dict[str, Any] = _CONTENT["models"]
COMPONENTS: dict[str, Any] = _CONTENT["components"]


@dataclass(frozen=True)
class Planned:
    """A plan, and what it took."""

    report: dict[str, Any]
    elapsed_s: float
    peak_bytes: int


def main() -> None:
    """Plan the models that were named, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"by default all: {', '.join(MODELS)}")
    parser.add_argument("--recipe", help="instead of the default for each class")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.models if name not in MODELS]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}")
    print("| model | component | class | parameters | bytes in | bytes out |")
    print("| --- | --- | --- | ---: | ---: | ---: |")
    plans = {}
    for name in arguments.models or MODELS:
        with tempfile.TemporaryDirectory() as folder:
            plans[name] = make_plan(write_model(Path(folder) / "model", MODELS[name]), arguments.recipe)
        for part in plans[name].report["components"]:
            source, output = part["source"], part["output"]
            sizes = f"{source['parameters']:,} | {source['total_bytes']:,} | {output['total_bytes']:,}"
            print(f"| {name} | {part['name']} | {part['class_name']} | {sizes} |")
    print("\n| model | bytes in | bytes out | smaller | left as it is | seconds | peak memory |")
    print("| --- | ---: | ---: | ---: | --- | ---: | ---: |")
    for name, plan in plans.items():
        source, output = (plan.report[key]["total_bytes"] for key in ("source", "output"))
        left = ", ".join(other["name"] for other in plan.report["other_components"]) or "nothing"
        cost = f"{plan.elapsed_s:.1f} | {plan.peak_bytes / 1e9:.2f} GB"
        print(f"| {name} | {source:,} | {output:,} | {100 * (1 - output / source):.1f} % | {left} | {cost} |")


def write_model(folder: Path, model: dict[str, Any]) -> Path:
    """Write a pipeline folder without weights; returns it."""
    folder.mkdir()
    index = {"_class_name": model["class"], **model.get("extra", {})}
    for name, kind in model["components"].items():
        content = COMPONENTS[kind]
        library = write_component(folder / name, content)
        index[name] = [library, content["class"]]
    (folder / PIPELINE_INDEX).write_text(json.dumps(index))
    return folder


def write_component(folder: Path, content: dict[str, Any]) -> str:
    """Write a component without weights; returns the library of its class."""
    folder.mkdir()
    model_class = find_class(content["class"], str(folder))
    is_transformers = issubclass(model_class, load_library("transformers").PreTrainedModel)
    with init_empty_weights(include_buffers=True):
        if is_transformers:
            model = model_class(model_class.config_class(**content["config"]))
        else:
            model = model_class(**content["config"])
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if parameters != content["parameters"]:
        raise SystemExit(f"{content['class']} has {parameters} parameters, published are {content['parameters']}")
    if is_transformers:
        config = {**model.config.to_dict(), "architectures": [content["class"]]}
        (folder / "config.json").write_text(json.dumps(config))
    else:
        model.save_config(folder)
    empty = EmptyModel(model, is_transformers, ModelConfig(content["class"], content["config"], {}), {}, ())
    tensors = [
        (content["dtype"] if tensor.dtype is torch.float32 else "I64", name, tuple(tensor.shape))
        for name, tensor in saved_names(empty).items()
    ]
    write_holes(folder / f"{empty.stem}.safetensors", tensors)
    return "transformers" if is_transformers else "diffusers"


def make_plan(folder: Path, recipe: str | None) -> Planned:
    """Plan the denoisers and the large text encoders of a pipeline in a process of its own."""
    command = [sys.executable, "-m", "converter", "plan", str(folder), "--component", "all", "--json", "--quiet"]
    command += ["--recipe", recipe] if recipe else []
    with tempfile.TemporaryFile() as output:
        started = time.monotonic()
        process = subprocess.Popen(command, stdout=output)
        _, status, usage = os.wait4(process.pid, 0)
        elapsed = time.monotonic() - started
        output.seek(0)
        report = json.load(output)
    if status:
        raise SystemExit(f"{folder}: {report['error']['message']}")
    return Planned(report, elapsed, usage.ru_maxrss * 1024)


if __name__ == "__main__":
    main()
