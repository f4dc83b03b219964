"""The work inside a worker: load a pipeline, generate images, and measure both."""

from __future__ import annotations

import gc
import hashlib
import statistics
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import torch

from converter.measurement.benchmark.changes import refuse_changed_files
from converter.measurement.benchmark.components import Allocations, component_sizes
from converter.measurement.benchmark.counters import read_counters
from converter.measurement.benchmark.cpu_probe import probe_ms
from converter.measurement.benchmark.job import Job, Task
from converter.measurement.benchmark.meter import Meter, Stopwatch
from converter.measurement.benchmark.traces import replay_trace, tracing
from converter.measurement.evidence.units import DIGITS
from converter.measurement.generation.compiling import compiling
from converter.measurement.generation.devices import choose_device, use_device
from converter.measurement.generation.generate import (
    call_arguments,
    describe_quantization,
    image_metadata,
    refuse_not_finite,
)
from converter.measurement.generation.image_file import write_image
from converter.measurement.generation.loading import (
    blaming,
    choose_int8,
    encoder_unpacking,
    import_sdnq,
    load_pipeline,
    load_text_encoder,
    load_tokenizer,
)
from converter.measurement.generation.memory import predict_memory, require_memory
from converter.measurement.generation.repo import open_pipeline
from converter.measurement.generation.settings import Settings
from converter.memory import free_memory_bytes
from converter.models.int8_kernels import find_int8_kernel
from converter.models.lens.int8_chain import uses_int8_chain
from converter.models.lens.prompts import tokenize_prompts


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
        use_device(self.device)
        self.repo = open_pipeline(Path(job.repo))
        refuse_changed_files(job.states)
        self._dtype = getattr(torch, job.dtype)
        self._meter = Meter(self.device)
        #: Set by ``load``.
        self.pipeline: Any = None

    def load(self) -> dict[str, Any]:
        """Load all components, and keep them loaded.

        Returns:
            ``time_s``, ``peak_…_gb``, whether all files fit into the page cache (``cache_warm``), the memory of each
            component (``components``), and how quantized layers work (``quantization``). If the chain was asked for,
            whether it is used or why not (``int8``). If it depends on the machine, whether the text encoder stays
            packed (``mxfp4``).

        Raises:
            InputError: a component cannot be loaded.
            MemoryLimitError: there is not enough memory.
        """
        offload = self._job.offload
        unpacks = bool(encoder_unpacking(self.repo, offload, self.device))
        settings = Settings(**self._job.tasks[0].settings)
        on_cpu = self.device.type == "cpu"
        cached = sum(file.stat().st_size for file in self.repo.weight_files) < free_memory_bytes()
        need = predict_memory(self.repo, settings, offload=offload, on_cpu=on_cpu, unpacks=unpacks, keeps_encoder=True)
        require_memory(need, self.device)
        # Importing SDNQ, which may compile a test function, and trying its kernels do not count as loading.
        import_sdnq(self.repo, self.device)
        if self.repo.quantization is not None:
            with blaming(self.repo.folder):
                find_int8_kernel(self.device)
        self.synchronize()
        encoder_device = self.device if offload == "none" else torch.device("cpu")
        allocations = Allocations(self.device)
        with self._meter.watching():
            watch = Stopwatch(self._meter, "load")
            text_encoder = load_text_encoder(self.repo, self._dtype, encoder_device, unpacks=unpacks)
            allocations.note("text_encoder")
            self.pipeline = load_pipeline(
                self.repo,
                self._dtype,
                self.device,
                offload,
                compiles=settings.compiles,
                tokenizer=load_tokenizer(self.repo),
                text_encoder=text_encoder,
                placed=allocations.note,
            )
            figures = watch.stop()
        figures.pop("stages")
        reason = choose_int8(self.pipeline, self.repo, self.device, settings.int8)
        if reason or uses_int8_chain(self.pipeline.transformer):
            figures["int8"] = f"sdnq: {reason}" if reason else "chain"
        if self.repo.has_packed_text_encoder and offload != "sequential":
            figures["mxfp4"] = "unpacked" if unpacks else "packed"
        self.pipeline.prompt_date = date.fromisoformat(settings.date)
        return {
            **figures,
            "cache_warm": cached,
            "components": component_sizes(self.pipeline, offload, allocations),
            "quantization": describe_quantization(self.repo, self.pipeline.transformer, self.device),
        }

    def generate(self, task: Task) -> dict[str, Any]:
        """Generate an image, and write it to the path in the task.

        Returns:
            ``time_s``, ``peak_…_gb`` and ``stages``; what else happened on the machine (``conditions``);
            ``pixels_sha256``, and ``image_sha256`` of the file; ``trace``, if its trajectory is to be recorded: as
            ``tracing`` returns it.

        Raises:
            UnsupportedCheckpoint: the model raises an error.
            MemoryLimitError: memory is used up.
            CompilerError: the blocks cannot be compiled.
            ImageError: the model computes values that are not finite.
            OutputError: the image cannot be written.
            DiskError: the disk is full.
        """
        settings = Settings(**task.settings)
        # Garbage of the last image would count as memory of this one, and its collection as time.
        gc.collect()
        self.synchronize()
        probes = self._probe()
        before = read_counters()
        with (
            self._meter.watching(),
            blaming(self.repo.folder),
            compiling(settings.compile),
            tracing(self.pipeline, task) as traced,
        ):
            image, figures = self._measure(settings)
        figures["conditions"] = read_counters().since(before) | self._meter.gpu_conditions()
        probes += self._probe()
        figures["conditions"]["cpu_probe_ms"] = round(statistics.fmean(probes), DIGITS) if probes else None
        figures |= traced
        figures["pixels_sha256"] = hashlib.sha256(image.tobytes()).hexdigest()
        if task.image is not None:
            output = Path(task.image)
            write_image(image, output, image_metadata(settings, self.device, self.repo, self.pipeline))
            figures["image_sha256"] = hashlib.sha256(output.read_bytes()).hexdigest()
        return figures

    def replay(self, task: Task) -> dict[str, Any]:
        """Repeat the steps of the original's trajectory in the task.

        Returns:
            As ``replay_trace``.

        Raises: as ``generate``, except for errors of images.
        """
        settings = Settings(**task.settings)
        with blaming(self.repo.folder), compiling(settings.compile):
            return replay_trace(self.pipeline, task)

    def warm_ups(self, first: Task, others: Sequence[Task]) -> list[Task]:
        """Return what has to run before the others, so that none of them waits for a compiler.

        Code is compiled for each shape, and kernels are chosen by trying them. The shapes of a suite differ only in
        the numbers of text tokens, so one step for each of those is enough.

        Args:
            first: the task that was done already.
            others: the tasks to be measured.

        Returns:
            The first of the others with each number of text tokens that ``first`` does not have, with one step; none
            where nothing is compiled.
        """
        if self.device.type != "cuda" and not Settings(**first.settings).compiles:
            return []
        found = {self._text_lengths(first): first}
        for task in others:
            found.setdefault(self._text_lengths(task), task)
        return [
            replace(task, image=None, trace=None, settings={**task.settings, "steps": 1})
            for task in found.values()
            if task is not first
        ]

    def synchronize(self) -> None:
        """Wait until the device has done its work."""
        self._meter.synchronize()

    def _probe(self) -> list[float]:
        """The time of a fixed computation, if this generates images on the CPU."""
        return [probe_ms()] if self.device.type == "cpu" else []

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

    def _text_lengths(self, task: Task) -> tuple[int, ...]:
        """Numbers of tokens of the prompt and, where it is encoded, of the negative one."""
        tokenizer, day = self.pipeline.tokenizer, self.pipeline.prompt_date
        prompts = Settings(**task.settings).prompts
        return tuple(tokenize_prompts(tokenizer, [prompt], day=day)[0].shape[1] for prompt in prompts)
