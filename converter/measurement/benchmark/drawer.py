"""What a worker needs of a pipeline: load it, draw an image with it, and say how it works.

A session measures all pipelines alike, with the drawer of their kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias

import torch

from converter.measurement.benchmark.meter import Stopwatch
from converter.measurement.benchmark.repos import MeasuredRepo
from converter.measurement.generation.memory import MemoryNeed

#: May change the weights of a model.
Adapt: TypeAlias = Callable[[str, torch.nn.Module], object]
#: The stages of an image, as evidence names them.
ENCODING, DENOISING, DECODING = "text_encoder", "transformer", "vae"


class Drawer(Protocol):
    """A repo on a device, with one way of offloading.

    Settings are those of an image, of the kind that ``settings`` returns. What loads or draws raises the errors of
    `generate`.
    """

    @property
    def repo(self) -> MeasuredRepo:
        """The opened repo."""

    def settings(self, content: Mapping[str, Any]) -> Any:
        """Return the settings that a task has as JSON values."""

    def predict(self, settings: Any) -> MemoryNeed:
        """Predict the memory of an image with all components loaded."""

    def prepare(self) -> None:
        """Import and try what does not count as loading."""

    def load(self, settings: Any, adapt: Adapt, placed: Callable[[str], object]) -> Any:
        """Load all components.

        Args:
            settings: of the images.
            adapt: called with the name and the model of each component that LoRA can be for, while it is on the CPU.
            placed: called with the name of each model that was moved to the device.
        """

    def set_up(self, pipeline: Any, settings: Any) -> dict[str, Any]:
        """Choose how a loaded pipeline computes, and say how it does.

        Returns:
            ``quantization``: how quantized layers work, or None; ``int8`` and ``mxfp4`` as ``Session.load``.
        """

    def draw(self, pipeline: Any, settings: Any, start: Callable[[str], Stopwatch]) -> tuple[Any, dict[str, Any]]:
        """Draw an image as users do.

        Args:
            pipeline: a loaded one.
            settings: of the image.
            start: starts a stopwatch with this stage.

        Returns:
            The image, and what the stopwatch measured.
        """

    def metadata(self, pipeline: Any, settings: Any) -> dict[str, Any]:
        """Return everything that an image depends on, except the weights, as JSON values.

        Args:
            pipeline: it drew the image.
            settings: of the image, with its size as drawn.
        """

    def text_lengths(self, pipeline: Any, settings: Any) -> tuple[int, ...]:
        """Numbers of tokens of the prompts that are encoded; code is compiled for each."""
