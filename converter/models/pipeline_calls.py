"""What a pipeline of diffusers makes, and what its call takes: read from its class, not from a list of names."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: Arguments that are the guidance scale of a pipeline, the one that counts first. FLUX has both of the first two, and
#: its guidance_scale counts, as it is distilled; Qwen-Image has both, and its guidance_scale is None.
_GUIDANCES = ("guidance_scale", "true_cfg_scale", "distilled_guidance_scale")
#: Fields of the outputs of pipelines, by what the pipeline makes.
_OUTPUTS = {"frames": "videos", "video": "videos", "audios": "audio", "images": "images", "image": "images"}
#: What the field ``images`` contains where it is something else than images; by the beginning of the class name.
_NO_IMAGES = {"TextToVideo": "videos", "ShapE": "views of a three-dimensional object"}
#: Pipelines whose outputs are defined in another module.
_IMAGES = ("WuerstchenCombinedPipeline",)
#: Parts of the names of classes that need more than a prompt, though their calls have a default for it.
_NEEDS = (
    (re.compile(r"Control|Adapter"), "a control image"),
    (re.compile(r"Inpaint|Fill"), "an image and a mask"),
    (
        re.compile(r"Img2Img|Image2Image|Edit(?!ing)|Upscale|SuperRes|Refiner|Pix2Pix|Depth2Img|I2I|Layered|Variation"),
        "an image",
    ),
    (re.compile(r"Onnx"), "onnxruntime"),
)


@dataclass(frozen=True)
class PipelineCall:
    """The call of a pipeline."""

    defaults: Mapping[str, Any]
    """Every parameter, by name in its order, with its default; ``inspect.Parameter.empty`` without one."""

    def takes(self, name: str) -> bool:
        """Whether there is such a parameter."""
        return name in self.defaults

    def default(self, name: str) -> Any:
        """The default of a parameter; None if there is none, or no such parameter."""
        value = self.defaults.get(name)
        return None if value is inspect.Parameter.empty else value

    @property
    def guidance(self) -> str:
        """The parameter that is the guidance scale; empty if there is none."""
        named = [name for name in _GUIDANCES if name in self.defaults]
        return next((name for name in named if self.default(name) is not None), named[0] if named else "")

    @property
    def needs_negative(self) -> bool:
        """Whether the guidance scale has no effect without a negative prompt, even an empty one."""
        return self.guidance == "true_cfg_scale"

    @property
    def ignores_negative(self) -> bool:
        """Whether a negative prompt has no effect, as the scale for it is 1 by default, besides the guidance scale."""
        scale = self.default("true_cfg_scale")
        return not self.needs_negative and isinstance(scale, int | float) and scale <= 1

    @property
    def required(self) -> tuple[str, ...]:
        """The parameters that have no default."""
        return tuple(name for name, value in self.defaults.items() if value is inspect.Parameter.empty)


def describe_call(pipeline_class: Any) -> PipelineCall:
    """Read the parameters of a pipeline's call."""
    parameters = list(inspect.signature(pipeline_class.__call__).parameters.values())[1:]
    named = [item for item in parameters if item.kind not in (item.VAR_POSITIONAL, item.VAR_KEYWORD)]
    return PipelineCall({item.name: item.default for item in named})


def makes(pipeline_class: Any) -> str:
    """What a pipeline makes: ``images``, ``videos``, ``audio``, or something else in words.

    Its module contains the class of its output, which has a field for each kind.
    """
    name = pipeline_class.__name__
    for beginning, made in _NO_IMAGES.items():
        if name.startswith(beginning):
            return made
    fields = _output_fields(pipeline_class)
    return next((made for field, made in _OUTPUTS.items() if field in fields), "images" if name in _IMAGES else "parts")


def lacking_inputs(pipeline_class: Any, call: PipelineCall) -> str:
    """What a pipeline needs besides a prompt, in words; empty if a prompt is enough.

    Args:
        pipeline_class: its class.
        call: its call.
    """
    required = [name for name in call.required if name != "prompt"]
    if required:
        return ", ".join(required)
    if not call.takes("prompt"):
        return "something else than a prompt"
    return next((need for pattern, need in _NEEDS if pattern.search(pipeline_class.__name__)), "")


def _output_fields(pipeline_class: Any) -> set[str]:
    """Names of the fields of the outputs that the module of a pipeline knows."""
    from diffusers.utils import BaseOutput

    known = vars(sys.modules[pipeline_class.__module__])
    outputs = [
        value
        for name, value in known.items()
        if isinstance(value, type) and issubclass(value, BaseOutput) and "Pipeline" in name
    ]
    return {
        field.name for output in outputs if dataclasses.is_dataclass(output) for field in dataclasses.fields(output)
    }
