"""Step 6: workers of the benchmark with a model of full size, except the experts of the text encoder."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from converter.measurement.benchmark.job import FAILED, GENERATED, LOADED, Job, Task
from converter.measurement.benchmark.options import MODES
from converter.measurement.benchmark.worker_process import WorkerProcess
from converter.measurement.generation.options import GenerateOptions
from converter.measurement.generation.repo import open_pipeline
from converter.measurement.generation.settings import choose_settings
from scripts.gpu_steps import models
from scripts.gpu_steps.images import PROMPT, check_figures, check_offload, pipeline_with
from scripts.gpu_steps.process import StepRun

#: As in GPT-OSS 20B, except that there are few experts, and small ones.
_ENCODER = {"hidden_size": 2880, "num_local_experts": 2, "intermediate_size": 64, "num_attention_heads": 8}
_STEPS = 4
#: Sides of the images in pixels, on a GPU and on a CPU.
_SIDES = (1440, 64)
#: Seconds after which loading, or an image, hangs.
_TIMEOUT = 90.0


def run_workers(run: StepRun) -> None:
    """Generate with the original and the quantized model, with all on the device and with components offloaded."""
    repos = {"original": _full_pipeline(run)}
    repos["quantized"] = _with_quantized_transformer(run, repos["original"])
    for model in ("quantized",) if run.is_small else tuple(repos):
        peaks = {}
        for mode in ("standard",) if run.is_small else ("standard", "offload"):
            figures = _run_worker(run, repos[model], f"{model}, {mode}", MODES[mode])
            peaks[mode] = figures.get("peak_allocated_gb", 0.0)
        check_offload(run, model, peaks)


def _run_worker(run: StepRun, repo: Path, name: str, offload: str) -> dict[str, Any]:
    """Run a worker for two images, of which the second is warm; return the figures of the last one."""
    side = _SIDES[run.is_small]
    options = GenerateOptions(steps=_STEPS, height=side, width=side, guidance=5.0)
    settings = asdict(choose_settings(open_pipeline(repo), PROMPT, options))
    tasks = [Task(key, settings, None) for key in (("cold",) if run.is_small else ("cold", "warm"))]
    job = Job(str(repo), {}, offload, run.device, options.dtype, tasks)
    last: dict[str, Any] = {}
    with WorkerProcess(job, _TIMEOUT, lambda: None) as worker:
        for event in worker.events():
            kind = event.pop("event")
            if kind == LOADED:
                run.record(**{name: {"load": event}})
            elif kind == GENERATED:
                last = event
                run.record(**{name: {event.pop("key"): event}})
                check_figures(run, name, event)
            elif kind == FAILED or "message" in event:
                run.check(False, f"{name}: {event.get('reason') or event.get('message')}")
    return last


def _full_pipeline(run: StepRun) -> Path:
    """A pipeline with a transformer of full depth, the real autoencoder and a small text encoder."""
    tiny = models.tiny_pipeline(run)
    if run.is_small:
        return tiny
    folder, encoder, vae = (run.work / name for name in ("full", "full-encoder", "full-vae"))
    if not folder.exists():
        _write_encoder(tiny / "text_encoder", encoder, run.device)
        _write_vae(vae, run.device)
        parts = {path.name: path for path in tiny.iterdir()}
        parts |= {"transformer": models.transformer(run), "text_encoder": encoder, "vae": vae}
        pipeline_with(folder, parts)
    return folder


def _with_quantized_transformer(run: StepRun, original: Path) -> Path:
    """The same pipeline with the transformer quantized."""
    if run.is_small:
        return models.quantized(run, original)
    folder = run.work / "full-uint4"
    if not folder.exists():
        parts = {path.name: path.resolve() for path in original.iterdir()}
        pipeline_with(folder, parts | {"transformer": models.quantized(run, models.transformer(run))})
    return folder


def _write_encoder(tiny: Path, folder: Path, device: str) -> None:
    from transformers import GptOssConfig, GptOssForCausalLM

    config = GptOssConfig.from_dict({**json.loads((tiny / "config.json").read_text()), **_ENCODER, "head_dim": 64})
    with torch.device(device):
        model = GptOssForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(folder)


def _write_vae(folder: Path, device: str) -> None:
    from diffusers import AutoencoderKLFlux2

    with torch.device(device):
        model = AutoencoderKLFlux2()
    model.to(torch.bfloat16).save_pretrained(folder)
