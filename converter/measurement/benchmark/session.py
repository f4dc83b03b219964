"""The work inside a worker: load a pipeline, generate images, and measure both."""

from __future__ import annotations

import gc
import hashlib
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from converter.conversion.adapters.choice import AdapterChoice
from converter.measurement.benchmark.changes import refuse_changed_files
from converter.measurement.benchmark.components import Allocations, component_sizes
from converter.measurement.benchmark.counters import read_counters
from converter.measurement.benchmark.cpu_probe import probe_ms
from converter.measurement.benchmark.drawer import Drawer
from converter.measurement.benchmark.job import Job, Task
from converter.measurement.benchmark.lens_drawer import LensDrawer
from converter.measurement.benchmark.meter import Meter, Stopwatch
from converter.measurement.benchmark.pipeline_drawer import PipelineDrawer
from converter.measurement.benchmark.repos import MeasuredRepo, open_measured
from converter.measurement.benchmark.traces import replay_trace, tracing
from converter.measurement.evidence.units import DIGITS
from converter.measurement.generation.adapters import AddedAdapters, open_adapters
from converter.measurement.generation.compiling import compiling
from converter.measurement.generation.devices import choose_device, use_device
from converter.measurement.generation.image_file import write_image
from converter.measurement.generation.loading import blaming
from converter.measurement.generation.memory import require_memory
from converter.measurement.generation.repo import PipelineRepo
from converter.memory import free_memory_bytes


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
        self.repo = open_measured(Path(job.repo))
        refuse_changed_files(job.states)
        choices = [AdapterChoice(Path(file), scale) for file, scale in job.adapters]
        self._adapters = open_adapters(self.repo.folder, choices, job.adapted)
        self._adapter_metadata = self._adapters.metadata
        self._drawer = _make_drawer(self.repo, self.device, job)
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
        drawer = self._drawer
        settings = drawer.settings(self._job.tasks[0].settings)
        cached = sum(file.stat().st_size for file in self.repo.weight_files) < free_memory_bytes()
        require_memory(drawer.predict(settings).with_host(self._adapters.bytes), self.device)
        # Importing SDNQ, which may compile a test function, and trying its kernels do not count as loading.
        drawer.prepare()
        self.synchronize()
        allocations = Allocations(self.device)
        with self._meter.watching():
            watch = Stopwatch(self._meter, "load")

            def adapt(name: str, model: torch.nn.Module) -> None:
                # Nobody who loads the original has to do it.
                with watch.paused():
                    self._adapters.add(name, model)

            self.pipeline = drawer.load(settings, adapt, allocations.note)
            figures = watch.stop()
        figures.pop("stages")
        # What it holds would count as memory of the images.
        self._adapters = AddedAdapters()
        return {
            **figures,
            **drawer.set_up(self.pipeline, settings),
            "cache_warm": cached,
            "components": component_sizes(self.pipeline, self._job.offload, allocations, self.repo.headers),
        }

    def generate(self, task: Task) -> dict[str, Any]:
        """Generate an image, and write it to the path in the task.

        Returns:
            ``time_s``, ``peak_…_gb`` and, where they are known, ``stages``; what else happened on the machine
            (``conditions``); ``pixels_sha256``, and ``image_sha256`` of the file; ``trace``, if its trajectory is to be
            recorded: as ``tracing`` returns it.

        Raises:
            UnsupportedCheckpoint: the model raises an error.
            MemoryLimitError: memory is used up.
            CompilerError: the blocks cannot be compiled.
            ImageError: the model computes values that are not finite.
            OutputError: the image cannot be written.
            DiskError: the disk is full.
        """
        settings = self._drawer.settings(task.settings)
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
            drawn = replace(settings, width=image.width, height=image.height)
            write_image(image, output, {**self._drawer.metadata(self.pipeline, drawn), **self._adapter_metadata})
            figures["image_sha256"] = hashlib.sha256(output.read_bytes()).hexdigest()
        return figures

    def replay(self, task: Task) -> dict[str, Any]:
        """Repeat the steps of the original's trajectory in the task.

        Returns:
            As ``replay_trace``.

        Raises: as ``generate``, except for errors of images.
        """
        settings = self._drawer.settings(task.settings)
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
        if self.device.type != "cuda" and not self._drawer.settings(first.settings).compiles:
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

    def _measure(self, settings: Any) -> tuple[Any, dict[str, Any]]:
        return self._drawer.draw(self.pipeline, settings, lambda stage: Stopwatch(self._meter, stage))

    def _text_lengths(self, task: Task) -> tuple[int, ...]:
        return self._drawer.text_lengths(self.pipeline, self._drawer.settings(task.settings))


def _make_drawer(repo: MeasuredRepo, device: torch.device, job: Job) -> Drawer:
    if isinstance(repo, PipelineRepo):
        return LensDrawer(repo, device, job.offload, getattr(torch, job.dtype))
    return PipelineDrawer(repo, device, job.offload)
