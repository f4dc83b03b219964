"""LoRA adapters that are added to the weights of an original while it is loaded.

The weights are then those that a conversion would quantize: numbers of the source and products of factors are added in
float32, and rounded to the dtype in which the model computes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch

from converter.checkpoint.files import read_json
from converter.checkpoint.header import changed_since
from converter.checkpoint.reader import TensorReader
from converter.checkpoint.source import PIPELINE_INDEX, Checkpoint, open_checkpoint, pipeline_components
from converter.conversion.adapters.additions import ADDED_BYTES
from converter.conversion.adapters.choice import AdapterChoice
from converter.conversion.adapters.file import open_adapter
from converter.conversion.adapters.fitting import FittedAdapters, fit_adapters
from converter.conversion.adapters.loaders import loadable_components
from converter.conversion.adapters.weights import read_added
from converter.errors import MalformedCheckpoint, UnsupportedCheckpoint
from converter.measurement.generation.loading import blaming
from converter.memory import return_free_memory
from converter.verification.copied import is_quantized


@dataclass(frozen=True)
class AddedAdapters:
    """Adapters that fit a pipeline, and what they are added to; of none, nothing is changed."""

    fitted: FittedAdapters = field(default_factory=lambda: FittedAdapters((), {}))
    checkpoints: Mapping[str, Checkpoint] = field(default_factory=dict)
    """The components to which they may be added, by name."""

    def add(self, component: str, model: torch.nn.Module) -> None:
        """Add what there is for a component to its parameters, tensor by tensor.

        Args:
            component: its name.
            model: on the CPU, as it was loaded from the checkpoint.

        Raises:
            MissingInput: a file cannot be read any more.
            MalformedCheckpoint: a file has become shorter, or an adapter was changed.
            UnsupportedCheckpoint: the model has other parameters than its class has by the config.
            MemoryLimitError: memory is used up.
        """
        checkpoint = self.checkpoints.get(component)
        if checkpoint is None:
            return
        with TensorReader() as reader, torch.no_grad(), blaming(checkpoint.folder):
            for name, source, addition in self.fitted.parameters(component):
                model.get_parameter(name).copy_(read_added(addition, checkpoint.tensors[source], reader))
        # The largest tensor took several times its size.
        return_free_memory()
        for adapter in self.fitted.adapters:
            if changed_since(adapter.file.header):
                hint = "Wait until no program writes to it, then run the command again."
                raise MalformedCheckpoint(adapter.file.file, "was changed while it was read", hint)

    @property
    def bytes(self) -> int:
        """Bytes of memory that adding takes at most, besides the model."""
        needed = [
            addition.fixed_bytes + ADDED_BYTES * prod(checkpoint.tensors[source].entry.shape)
            for component, checkpoint in self.checkpoints.items()
            for _, source, addition in self.fitted.parameters(component)
        ]
        return self.fitted.held_bytes + max(needed, default=0)

    def describe(self) -> dict[str, list[dict[str, Any]]]:
        """The adapters by component, in the order in which they are added, as manifests describe them."""
        found = {component: self.fitted.describe(component) for component in self.checkpoints}
        return {component: described for component, described in found.items() if described}

    @property
    def files(self) -> list[Path]:
        """The files that were read, with those beside them."""
        found = [adapter.file for adapter in self.fitted.adapters]
        return [file.file for file in found] + [file.config_file for file in found if file.neighbour is not None]

    @property
    def metadata(self) -> dict[str, Any]:
        """What the metadata of an image says of them; empty without any."""
        return {"adapters": described} if (described := self.describe()) else {}

    @property
    def notes(self) -> Iterator[str]:
        """What a user should know of them."""
        return self.fitted.notes


def open_adapters(pipeline: Path, choices: Sequence[AdapterChoice], components: Sequence[str] = ()) -> AddedAdapters:
    """Read adapters, and find out what they add to a pipeline.

    Args:
        pipeline: the pipeline repo.
        choices: the adapters, in the order in which they are added.
        components: what they may be added to; by default all components for which the pipeline's class loads adapters.

    Raises:
        UnsupportedCheckpoint: a component is quantized already, or diffusers loads no adapters into such a pipeline.

    Raises also what ``open_adapter``, ``open_checkpoint`` and ``fit_adapters`` raise.
    """
    if not choices:
        return AddedAdapters()
    files = [open_adapter(choice) for choice in choices]
    if not components:
        pipeline_class = str(read_json(pipeline / PIPELINE_INDEX).get("_class_name"))
        present = pipeline_components(pipeline)
        loadable = loadable_components(pipeline_class, choices[0].file)
        components = [name for name in loadable if name in present]
        if not components:
            raise UnsupportedCheckpoint(f"--lora: {pipeline} has no {' and no '.join(loadable)} to add adapters to")
    checkpoints = {name: open_checkpoint(pipeline, component=name) for name in components}
    for checkpoint in checkpoints.values():
        if is_quantized(checkpoint):
            raise UnsupportedCheckpoint(
                f"--lora: {checkpoint.folder} is quantized, and nothing can be added to its weights",
                "Give the original. If it was converted with --lora, the adapters are in its weights already; "
                "otherwise load them with load_lora_weights of diffusers.",
            )
    return AddedAdapters(fit_adapters(files, list(checkpoints.values())), checkpoints)
