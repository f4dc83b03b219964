"""The work inside a worker: load a pipeline, generate images, and measure both."""

from __future__ import annotations

import gc
import hashlib
import os
from datetime import date
from pathlib import Path
from typing import Any

import torch

from converter.libraries import quantization_environment
from converter.measurement.benchmark.changes import refuse_changed_files
from converter.measurement.benchmark.job import Job, Task
from converter.measurement.benchmark.meter import Meter, Stopwatch
from converter.measurement.evidence.units import DIGITS
from converter.measurement.generation.devices import choose_device
from converter.measurement.generation.generate import call_arguments, image_metadata, refuse_not_finite
from converter.measurement.generation.image_file import write_image
from converter.measurement.generation.loading import (
    blaming,
    encoder_unpacks,
    load_pipeline,
    load_text_encoder,
    load_tokenizer,
)
from converter.measurement.generation.memory import predict_memory, require_memory
from converter.measurement.generation.repo import WEIGHTS, open_pipeline
from converter.measurement.generation.settings import Settings
from converter.memory import free_memory_bytes
from converter.models.int8_kernels import find_int8_kernel


class Session:
    """One pipeline on one device.

    Args:
        job: what to load, and how.

    Raises:
        InputError: the repo is not what it should be, or its weights changed.
        DeviceError: this machine does not have the accelerator.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self.device = choose_device(job.device)
        if self.device.type == "cpu":
            os.environ.update(quantization_environment())
        self.repo = open_pipeline(Path(job.repo))
        refuse_changed_files(job.states)
        self._dtype = getattr(torch, job.dtype)
        self._meter = Meter(self.device)
        #: Set by ``load``.
        self.pipeline: Any = None

    def load(self) -> dict[str, Any]:
        """Load all components, and keep them loaded.

        Returns:
            ``time_s``, ``peak_…_gb``, whether all files fit into the page cache (``cache_warm``), and the memory of
            each component (``components``).

        Raises:
            InputError: a component cannot be loaded.
            MemoryLimitError: there is not enough memory.
        """
        offload = self._job.offload
        unpacks = encoder_unpacks(self.repo, offload)
        settings = Settings(**self._job.tasks[0].settings)
        on_cpu = self.device.type == "cpu"
        cached = sum(file.stat().st_size for file in self.repo.weight_files) < free_memory_bytes()
        need = predict_memory(self.repo, settings, offload=offload, on_cpu=on_cpu, unpacks=unpacks, keeps_encoder=True)
        require_memory(need, self.device)
        if self.device.type == "cuda":
            # Setting up the device does not count as loading, nor does trying SDNQ's kernels on it.
            torch.zeros(1, device=self.device)
            if self.repo.quantization is not None:
                with blaming(self.repo.folder):
                    find_int8_kernel(self.device)
        self.synchronize()
        stays = self.repo.has_packed_text_encoder and not unpacks
        encoder_device = self.device if offload == "none" or (offload == "model" and stays) else torch.device("cpu")
        with self._meter.watching():
            watch = Stopwatch(self._meter, "load")
            self.pipeline = load_pipeline(
                self.repo,
                self._dtype,
                self.device,
                offload,
                tokenizer=load_tokenizer(self.repo),
                text_encoder=load_text_encoder(self.repo, self._dtype, encoder_device, unpacks=unpacks),
            )
            figures = watch.stop()
        figures.pop("stages")
        self.pipeline.prompt_date = date.fromisoformat(settings.date)
        return {**figures, "cache_warm": cached, "components": self._component_sizes()}

    def generate(self, task: Task) -> dict[str, Any]:
        """Generate an image, and write it to the path in the task.

        Returns:
            ``time_s``, ``peak_…_gb`` and ``stages``; ``pixels_sha256``, and ``image_sha256`` of the file.

        Raises:
            UnsupportedCheckpoint: the model raises an error.
            MemoryLimitError: memory is used up.
            ImageError: the model computes values that are not finite.
            OutputError: the image cannot be written.
            DiskError: the disk is full.
        """
        settings = Settings(**task.settings)
        # Garbage of the last image would count as memory of this one, and its collection as time.
        gc.collect()
        self.synchronize()
        with self._meter.watching(), blaming(self.repo.folder):
            image, figures = self._measure(settings)
        figures["pixels_sha256"] = hashlib.sha256(image.tobytes()).hexdigest()
        if task.image is not None:
            output = Path(task.image)
            write_image(image, output, image_metadata(settings, self.device, self.repo, self.pipeline))
            figures["image_sha256"] = hashlib.sha256(output.read_bytes()).hexdigest()
        return figures

    def synchronize(self) -> None:
        """Wait until the device has done its work."""
        self._meter.synchronize()

    def _measure(self, settings: Settings) -> tuple[Any, dict[str, Any]]:
        """Call the pipeline as users do; its stages are recognised by the components that it calls."""
        latents = []

        def step_done(_: Any, step: int, __: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if step == settings.steps - 1:
                latents.append(tensors["latents"])
                watch.begin("vae")
            return {}

        watch = Stopwatch(self._meter, "text_encoder")
        hook = self.pipeline.transformer.register_forward_pre_hook(lambda *_: watch.begin("transformer"))
        try:
            image = self.pipeline(
                settings.prompt,
                settings.negative_prompt,
                **call_arguments(settings),
                callback_on_step_end=step_done,
            ).images[0]
            figures = watch.stop()
        finally:
            hook.remove()
        refuse_not_finite(latents[0])
        return image, figures

    def _component_sizes(self) -> dict[str, dict[str, float]]:
        components = {name: getattr(self.pipeline, name) for name in WEIGHTS}
        # With sequential offloading, the weights of the models are on the meta device.
        return {name: _memory_of(model) for name, model in components.items() if model.device.type != "meta"}


def _memory_of(module: torch.nn.Module) -> dict[str, float]:
    """Return the GB of a module's parameters and buffers, and how many of them are on an accelerator."""
    sizes = {
        tensor.untyped_storage().data_ptr(): (tensor.untyped_storage().nbytes(), tensor.device.type)
        for tensor in (*module.parameters(), *module.buffers())
    }
    total = sum(size for size, _ in sizes.values())
    on_device = sum(size for size, kind in sizes.values() if kind != "cpu")
    return {"memory_gb": round(total / 1e9, DIGITS), "device_gb": round(on_device / 1e9, DIGITS)}
